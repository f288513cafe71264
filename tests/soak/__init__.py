"""A real run under a seeded storm of faults, judged by the checker: `tempera soak`.

storage -> the shard server that misbehaves on demand; processes -> the run's processes, found by what they are;
faults -> what can be done to them; session -> the storm; record -> what was done; verdict -> checker, leaks, table.
"""

from tests.soak.faults import FAULTS
from tests.soak.session import soak
from tests.soak.verdict import Outcome

__all__ = ["FAULTS", "Outcome", "soak"]
