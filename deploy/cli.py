"""The `tempera` command: parse, dispatch, print one answer or one clear line.

Every command is a function in `deploy/commands/` that returns an Answer; `--json` anywhere on the line prints its
facts instead of its view. An error that the user can fix ends with one line and exit status 2; any other is a defect
and shows its traceback.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

from tyro.extras import SubcommandApp

from deploy.commands import (
    bench,
    control,
    dashboard,
    demo,
    doctor,
    evaluate,
    history,
    jobs,
    manifest,
    reproduce,
    runs,
    score,
    shards,
)
from deploy.console import ERR, FOR_SCRIPT, Answer

DESCRIPTION = (
    "Pre-train vision encoders by masked image modeling, and decide live which images they see. "
    "Every command takes --json for machine output."
)
GROUPS = {
    "manifest": "Write files that describe a cluster.",
    "shards": "Write, index and check WebDataset shards.",
    "set": "Change what a live run draws, from its next window on.",
    "eval": "Evaluate an encoder: neighbours, probes, fine-tuning, few shots, detection, segmentation.",
    "bench": "Measure this machine, as ratios inside one run.",
}
BOX = "\u2502\u256d\u256e\u2570\u256f\u2500\u2022|+"
"""Characters of the boxes that tyro draws."""
USER_ERROR = 2
INTERRUPTED = 130
Command = Callable[..., Answer | None]
COMMANDS: dict[str, Command | dict[str, Command]] = {
    "demo": demo.demo,
    "shards": {"build": shards.build, "index": shards.index, "verify": shards.verify, "info": shards.info},
    "score": score.score,
    "train": runs.train,
    "resume": runs.resume,
    "submit": jobs.submit,
    "up": manifest.up,
    "manifest": {"kuberay": manifest.kuberay},
    "jobs": jobs.jobs,
    "status": runs.status,
    "watch": runs.watch,
    "dashboard": dashboard.dashboard,
    "monitor": dashboard.monitor,
    "set": {
        "effective-size": control.set_effective_size,
        "temperature": control.set_temperature,
        "policy": control.set_policy,
        "distances": control.set_distances,
    },
    "release": control.release,
    "scale": control.scale,
    "log": control.log,
    "pause": control.pause,
    "continue": control.go_on,
    "stop": control.stop,
    "token": control.token,
    "replay": history.replay,
    "inspect": history.inspect,
    "eval": {
        "knn": evaluate.knn,
        "linear": evaluate.linear,
        "finetune": evaluate.finetune,
        "fewshot": evaluate.fewshot,
        "rauc": evaluate.rauc,
        "detection": evaluate.detection,
        "segmentation": evaluate.segmentation,
    },
    "export": evaluate.export,
    "reproduce": reproduce.reproduce,
    "bench": {
        "loader": bench.loader,
        "trainer": bench.trainer,
    },
    "doctor": doctor.doctor,
}
"""Commands by name, in the order of the help; a dict is a group of commands."""


def build_app() -> SubcommandApp:
    """Return the command line of all commands."""
    app = SubcommandApp()
    for name, command in COMMANDS.items():
        if callable(command):
            app.command(name=name)(_deferred(command))
            continue
        group: Any = SubcommandApp()
        group.__doc__ = GROUPS[name]
        for inner_name, inner in command.items():
            group.command(name=inner_name)(_deferred(inner))
        app.command(name=name)(group)
    return app


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command: the words after `tempera`, by default those of the process.

    Returns:
        The exit status: 0, 1 when an answer reports a failure, 2 for an error that the user can fix, 130 after Ctrl-C.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    # Taken out here: tyro knows an option only behind the command that declares it.
    as_json = "--json" in words
    parsed = _parse([word for word in words if word != "--json"] or ["--help"])
    if isinstance(parsed, int):
        return parsed
    before = FOR_SCRIPT.set(as_json)
    try:
        answer = parsed()
    except KeyboardInterrupt:
        return _fail("interrupted.", status=INTERRUPTED)
    except Exception as error:
        # One line is enough for a wrong path or value; a defect needs its traceback.
        if os.environ.get("TEMPERA_TRACEBACK") or not _is_user_error(error):
            raise
        return _fail(_one_line("\n".join([str(error), *getattr(error, "__notes__", ())])))
    finally:
        FOR_SCRIPT.reset(before)
    if answer is None:
        return 0
    answer.show(as_json=as_json)
    return 0 if answer.ok else 1


def _parse(words: Sequence[str]) -> Callable[[], Answer | None] | int:
    """Return the command with its arguments bound, or the exit status when there is nothing to run."""
    stderr = io.StringIO()
    try:
        # tyro prints its errors in a box and exits; help goes to standard output and exits with 0.
        with contextlib.redirect_stderr(stderr):
            command: Callable[[], Answer | None] = build_app().cli(prog="tempera", description=DESCRIPTION, args=words)
    except SystemExit as stop:
        if not stop.code:
            return 0
        return _fail(_one_line(stderr.getvalue()))
    return command


def _is_user_error(error: Exception) -> bool:
    """Tell whether the user can fix the error. The packages with their own errors are imported only when needed."""
    if isinstance(error, ValueError | OSError):
        return True
    from loader import LoaderError
    from scoring import ScoringError
    from trainer import TrainerError

    return isinstance(error, LoaderError | ScoringError | TrainerError)


def _deferred(command: Command) -> Callable[..., Callable[[], Answer | None]]:
    """Return a function of the same signature and help that only binds the arguments: tyro calls it while it parses."""

    @functools.wraps(command)
    def bind(*args: object, **kwargs: object) -> Callable[[], Answer | None]:
        return functools.partial(command, *args, **kwargs)

    bind.__annotations__ = {**command.__annotations__, "return": Callable}
    return bind


def _one_line(text: str) -> str:
    """Return a message as one line, without the box that tyro draws around it."""
    lines = (line.strip(f" {BOX}") for line in text.splitlines())
    words = (re.sub(rf"[{BOX}-]{{3,}}", ":", line).strip() for line in lines)
    return " ".join(line for line in words if line.strip(":"))


def _fail(message: str, *, status: int = USER_ERROR) -> int:
    ERR.print(f"tempera: {message}", highlight=False, markup=False, soft_wrap=True)
    return status


def run() -> None:
    """Entry point of the installed command."""
    sys.exit(main())


if __name__ == "__main__":
    run()
