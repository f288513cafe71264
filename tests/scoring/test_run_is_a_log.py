"""A run is its log: restarts and threads change nothing of what is drawn."""

import threading
from concurrent.futures import ThreadPoolExecutor, wait

import numpy as np
import pytest

from scoring import Control, Event, RunLog, Selection, replay_run
from tests.scoring.configs import distances, selection_config

N = 700
POLICIES = ("prototypical", "hard", "importance", "bss", "bss*prototypical", "uniform", "uniform_replacement", "pass")


def config(**changes):
    return selection_config(**{"seed": 8, "global_batch": 16, "window_steps": 4, "start": 0.3, **changes})


def step(selection, rng, number, digests):
    """One random act, the same for the same generator whatever came of the acts before."""
    act, size, policy = rng.integers(8), 0.15 + 0.4 * rng.random(), POLICIES[rng.integers(len(POLICIES))]
    ids, values, kind = rng.integers(0, N, 200), rng.random(200), ("bss", "pass", "loss")[rng.integers(3)]
    try:
        if act < 3:
            digests.append(selection.window(selection.next_window, effective_size=size).digest)
        elif act == 3:
            selection.report_scores(ids, values, kind=kind, step=number, producer="ab"[number % 2], sequence=number)
        elif act == 4:
            for k, every in enumerate(("bss", "pass")):
                sweep = {"kind": every, "step": number, "producer": "sweep", "sequence": 2 * number + k}
                selection.report_scores(np.arange(N), np.resize(values, N), **sweep)
                selection.control(Control(kind="round", value=every, author="trainer"))
        elif act == 5:
            selection.control(Control(kind="policy", value=policy, author="ann"))
        elif act == 6:
            selection.control(Control(kind=("effective_size", "temperature")[number % 2], value=size, author="bob"))
        else:
            selection.control(Control(kind="release", author="bob"))
            selection.record(Event(kind="scale", author="ann", value=number))
    except ValueError as error:
        digests.append(str(error))


def outcome(tmp_path, seed, *, restarts=(), **changes):
    """Digests, errors and final state of a random run of sixty acts."""
    rng, digests = np.random.default_rng(seed), []
    path = tmp_path / f"{seed}-{len(restarts)}-{len(changes)}" / "run.sqlite"
    run = config(snapshot_windows=3, kept_windows=2, **changes)
    selection = Selection(distances(N), run, runlog=RunLog(path), clock=lambda: 0.0)
    for number in range(60):
        if number in restarts:
            selection.close()
            selection = Selection(distances(N), run, runlog=RunLog(path), clock=lambda: 0.0)
        step(selection, rng, number, digests)
    state, drawn, history = selection.state(), selection.times_drawn().tolist(), selection.log()
    assert replay_run(selection._log, run, distances(N)).different == ()
    selection.close()
    return digests, state, drawn, history


@pytest.mark.parametrize("seed", range(6))
def test_restarts_change_nothing(tmp_path, seed):
    restarts = set(np.random.default_rng(100 + seed).integers(0, 60, 8).tolist())
    whole, restarted = outcome(tmp_path, seed), outcome(tmp_path, seed, restarts=restarts)
    for part, again in zip(whole, restarted, strict=True):
        assert again == part


def test_threads_leave_a_log_that_replays(tmp_path):
    log = RunLog(tmp_path / "run.sqlite")
    run = config(policy="importance", snapshot_windows=4)
    selection = Selection(distances(N), run, runlog=log)
    replies, done = [], threading.Event()

    def steer(rank):
        rng = np.random.default_rng(rank)
        for number in range(12):
            kind, value = (
                ("policy", POLICIES[rng.integers(3)]) if number % 2 else ("temperature", float(0.1 + rng.random()))
            )
            try:
                reply = selection.control(Control(kind=kind, value=value, author=f"person-{rank}"))
                replies.append((reply.version, reply.window, kind, value))
            except ValueError:
                continue  # a temperature while the policy has none

    def report(rank):
        rng, number = np.random.default_rng(rank), 0
        while not done.is_set():
            ids = rng.integers(0, N, 50)
            about = {"kind": "loss", "step": number, "producer": f"rank-{rank}", "sequence": number}
            selection.report_scores(ids, rng.random(50), **about)
            number += 1

    with ThreadPoolExecutor(6) as threads:
        reporting = [threads.submit(report, rank) for rank in range(3)]
        steering = [threads.submit(steer, rank) for rank in range(3)]
        windows = [selection.window(index, effective_size=0.2 + index / 100) for index in range(30)]
        wait(steering)
        done.set()
    for ended in (*steering, *reporting):
        ended.result()
    windows += [selection.window(index) for index in range(30, 33)]
    assert replay_run(log, run, distances(N)).different == ()
    assert sorted(version for version, *_ in replies) == list(range(1, len(replies) + 1))
    for version, window, kind, value in replies:
        later = [w for v, w, k, _ in replies if k == kind and v > version]
        if kind == "policy" and window < len(windows) and window not in later:
            assert windows[window].policy == value
