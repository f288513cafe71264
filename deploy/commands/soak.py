"""`tempera soak`: a real run under a storm of faults, and whether it kept its promises."""

from __future__ import annotations

from pathlib import Path

from deploy.console import Answer


def soak(*, minutes: float = 20.0, seed: int = 0, out: Path = Path("runs/soak"), kinds: tuple[str, ...] = ()) -> Answer:
    """Train on the bundled digits while processes are killed and frozen, storage fails and people steer.

    Exit status 1 when a promise was broken or something leaked.

    Args:
        minutes: length of the storm.
        seed: of the faults and their times.
        out: new folder for everything that is written.
        kinds: only these faults, such as loader_kill storage_hang steer; all by default.
    """
    from tests.soak import FAULTS
    from tests.soak import soak as run_soak
    from trainer.config import choose, require

    require(minutes > 0, f"--minutes must be above 0; got {minutes:g}.")
    for kind in kinds:
        choose(kind, FAULTS, "a kind of fault")
    outcome = run_soak(out, minutes=minutes, seed=seed, kinds=kinds)
    return Answer(data=outcome.data(), view=outcome.view(), ok=not outcome.violations)
