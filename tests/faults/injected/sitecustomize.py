"""Python imports this at the start of each process whose PYTHONPATH names this folder: its failpoints are set."""

from tests.faults.failpoints import install

install()
