"""Where a fleet's last wish is kept, and that nothing of it is left over."""

import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from loader.fleet.desired_size import TemporaryWishFile, Wish, WishFile

WISH = Wish(size=3, author="mira", reason="a try", sequence=7)
STARTER = """
import os, tempfile
from loader.fleet.desired_size import TemporaryWishFile, Wish
TemporaryWishFile().save(Wish(size=3, author="mira", reason="a try", sequence=7))
print(os.listdir(tempfile.gettempdir()))
"""


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch) -> Path:
    """A folder for temporary files that nobody else uses."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def start_and_die():
    """What a process does that starts a fleet without a file and is killed."""
    TemporaryWishFile().save(WISH)
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_wish_is_kept_until_it_is_forgotten_and_closing_leaves_the_callers_file(tmp_path):
    wishes = WishFile(tmp_path / "fleet.json")
    assert wishes.load() is None
    wishes.save(WISH)
    wishes.close()
    assert WishFile(tmp_path / "fleet.json").load() == WISH
    wishes.forget()
    assert list(tmp_path.iterdir()) == []


def test_a_temporary_wish_goes_when_it_is_closed_and_travels_as_a_plain_file(temporary):
    wishes = TemporaryWishFile()
    travelled = pickle.loads(pickle.dumps(wishes))
    assert type(travelled) is WishFile
    travelled.save(WISH)
    assert wishes.load() == WISH
    travelled.close()
    assert wishes.load() == WISH
    wishes.close()
    wishes.close()
    assert list(temporary.iterdir()) == []
    travelled.save(WISH)  # a fleet that says something in its last moment


def test_a_process_that_ends_takes_its_wish_with_it(temporary):
    done = subprocess.run([sys.executable, "-c", STARTER], check=True, capture_output=True, text=True)
    assert done.stdout.count("tempera-fleet-") == 1
    assert list(temporary.iterdir()) == []


def test_what_a_killed_process_leaves_is_removed_by_the_next_and_that_of_a_living_one_is_not(temporary):
    mine = TemporaryWishFile()
    mine.save(WISH)
    starter = multiprocessing.get_context("fork").Process(target=start_and_die)
    starter.start()
    starter.join()
    assert starter.exitcode == -signal.SIGKILL
    assert len(list(temporary.glob("tempera-fleet-*/fleet.json"))) == 2, "the killed one could not tidy up"
    next_one = TemporaryWishFile()
    assert len(list(temporary.iterdir())) == 2
    assert mine.load() == WISH
    mine.close()
    next_one.close()
    assert list(temporary.iterdir()) == []


def test_a_link_and_a_fork_remove_nothing(temporary, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "precious").touch()
    (temporary / "tempera-fleet-link").symlink_to(elsewhere)
    wishes = TemporaryWishFile()
    wishes.save(WISH)
    child = os.fork()
    if not child:
        wishes.close()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert wishes.load() == WISH
    assert (elsewhere / "precious").exists()
    wishes.close()
