"""Ray Train's controller is an actor like others: a call that Ray loses may end it, and must not end the run."""

from __future__ import annotations

import pytest

MOST = 3


def fitted(*failures: Exception, most: int = MOST) -> tuple[str, int]:
    """What comes of a trainer that fails so, one time after the other, and how often it was started."""
    from ray.train import ControllerError

    from trainer.actors import fit_with_restarts

    left, starts = list(failures), []

    class Trainer:
        def fit(self) -> str:
            starts.append(self)
            if left:
                raise ControllerError(left.pop(0))
            return "trained"

    return fit_with_restarts(Trainer, max_failures=most), len(starts)


def lost_call() -> Exception:
    from ray.exceptions import RayActorError

    return RayActorError()


def test_a_controller_that_a_lost_call_ends_is_started_again():
    assert fitted(lost_call(), lost_call()) == ("trained", 3)
    assert fitted(*[lost_call() for _ in range(9)], most=-1) == ("trained", 10)


def test_one_that_fails_too_often_or_by_an_error_of_ours_ends_the_run():
    from ray.train import ControllerError

    with pytest.raises(ControllerError):
        fitted(*[lost_call() for _ in range(MOST + 1)])
    with pytest.raises(ControllerError):
        fitted(lost_call(), most=0)
    with pytest.raises(ControllerError, match="ours"):
        fitted(ValueError("ours"))
