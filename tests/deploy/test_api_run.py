"""A change through the API takes effect as its reply says, and reading through it does not change the training."""

from __future__ import annotations

import json
import re
import sqlite3
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from deploy.api.backend import finished_backend
from deploy.api.client import ChangedSince, Refused, RunClient
from deploy.api.latency import bound_steps
from deploy.api.line_index import LineIndex
from deploy.api.options import ApiOptions
from deploy.api.server import serving
from deploy.api.ttl_cache import TtlCache
from deploy.launch.launch import launch_in_process
from deploy.runs.config import DataConfig, load_config
from deploy.runs.rundir import RunDir, RunError
from loader import ShardIndex
from scoring import Prototypes, RunLog
from tests.deploy.api_run import WINDOW_STEPS, alive, paused, tiny
from tests.runs import losses, wait_for

ENOUGH = 12


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, digits: DataConfig) -> Iterator[RunDir]:
    with alive(tmp_path_factory.mktemp("api") / "run", tiny(digits, steps=10**6)) as run:
        yield run


def test_a_change_reaches_the_trainer_within_its_bound(run: RunDir, client: RunClient) -> None:
    """From the request to the first batch drawn under it, in steps and in the log; the bound is known beforehand."""
    wait_for(lambda: client.state()["control"]["bound_s"], "a known speed")
    bound = client.state()["control"]
    assert bound["bound_steps"] == bound_steps(WINDOW_STEPS) == 9
    before = client.state()["latency"]["count"]
    replies = []
    for value in (0.3, 0.5, 0.35, 0.25):
        replies.append(client.control("effective_size", value, author="ann", reason="up and down"))
        done = before + len(replies)
        wait_for(lambda done=done: client.state()["latency"]["count"] >= done, "the first batch under it")
    latency = client.state()["latency"]
    assert 0 < latency["p50_s"] <= latency["p99_s"]
    wait_for(lambda: len(measured(client)) >= done, "the measurements in the log")
    steps = []
    for reply, entry in zip(replies, measured(client)[-4:], strict=True):
        found = re.search(r"first batch at step (\d+), (\d+) steps after", entry["reason"])
        assert found
        assert int(found[1]) == reply["step"]
        steps.append(int(found[2]))
        assert entry["value"] <= latency["p99_s"] + 1e-3
    # Steps of a few milliseconds: while a request is on its way to the selection, another window may be drawn.
    assert sorted(steps)[1] <= bound["bound_steps"]
    assert max(steps) <= bound["bound_steps"] + 4 * WINDOW_STEPS
    with closing(sqlite3.connect(f"file:{run.log}?mode=ro", uri=True)) as log:
        rows = dict(log.execute('SELECT "index", effective_size FROM windows'))
    for reply, value in zip(replies, (0.3, 0.5, 0.35, 0.25), strict=True):
        assert rows[reply["window"]] == pytest.approx(value)
        assert rows.get(reply["window"] - 1) != pytest.approx(value)


def measured(client: RunClient) -> list[dict[str, Any]]:
    return [entry for entry in client.log(limit=500, changes_only=True) if entry["kind"] == "control_latency"]


def test_of_two_changes_at_once_one_wins_and_the_other_gets_its_author(client: RunClient, run: RunDir) -> None:
    version = client.state()["control"]["version"]
    lost: list[ChangedSince] = []
    won = []

    def drag(name: str, start: float) -> None:
        seen = version
        with RunClient.attach(run) as person:
            for step in range(5):
                try:
                    value = start + step / 100
                    reply = person.control("effective_size", value, author=name, expected_version=seen)
                    won.append((name, reply["version"], value))
                    seen = reply["version"]
                except ChangedSince as late:
                    lost.append(late)
                    seen = late.version or 0

    with ThreadPoolExecutor(2) as people:
        for done in [people.submit(drag, "ann", 0.2), people.submit(drag, "bob", 0.4)]:
            done.result()
    versions = [version for _, version, _ in won]
    assert sorted(versions) == list(range(version + 1, version + 1 + len(won))), "each version has one author"
    assert len(won) + len(lost) == 10
    for late in lost:
        assert late.winner is not None
        assert late.winner["author"] in ("ann", "bob")
        assert f"{late.winner['author']} was faster: effective_size" in str(late)
    with pytest.raises(ChangedSince, match="expected_version must be the current control version"):
        client.control("release", None, author="eve", expected_version=version)
    assert client.state()["control"]["version"] == max(versions)


def test_the_same_request_sent_twice_is_applied_once(client: RunClient) -> None:
    asked = {"kind": "effective_size", "value": 0.33, "author": "ann", "request": "one-press"}
    first, second = (client._http.post("controls", json=asked).json() for _ in range(2))
    assert first == second
    assert client.state()["control"]["version"] == first["version"]


def test_other_distances_are_taken_into_use_and_shown(
    client: RunClient, run: RunDir, digits: DataConfig, tmp_path: Path
) -> None:
    assert digits.prototypes is not None
    held = Prototypes.load(digits.prototypes)
    other = run.path / "prototypes" / "turned.parquet"
    other.parent.mkdir(exist_ok=True)
    turned = replace(held, distance=held.distance.max() - held.distance, cluster=held.cluster + 1)
    turned.save(other, ShardIndex.load(digits.index).fingerprint)
    elsewhere = tmp_path / "prototypes.parquet"
    elsewhere.write_bytes(other.read_bytes())
    for wrong in (str(elsewhere), "prototypes/none.parquet", "/etc/passwd", "../../../../etc/passwd"):
        with pytest.raises(Refused, match="distances must name a prototypes file below"):
            client.control("distances", wrong, author="ann")
    before = client.get("samples/17")
    client.control("distances", "prototypes/turned.parquet", author="ann", reason="the other way round")
    after = client.get("samples/17")
    assert after["distance"] == pytest.approx(float(turned.distance[17]))
    assert after["cluster"] == before["cluster"] + 1, "the clusters are those of the file in use"
    client.control("distances", digits.prototypes, author="ann", reason="back")
    assert client.get("samples/17")["distance"] == before["distance"]
    taken = [entry["value"] for entry in client.log(limit=20, changes_only=True) if entry["kind"] == "distances"]
    assert taken == [str(other), digits.prototypes]


def test_a_resting_run_takes_no_step_and_goes_on(client: RunClient) -> None:
    client.post("pause", author="ann", reason="lunch")
    wait_for(lambda: client.state()["run"]["status"] == "paused", "the rest")
    step = client.metrics(points=1)[-1]["step"]
    held = client.control("effective_size", 0.4, author="ann")
    time.sleep(0.5)
    assert client.metrics(points=1)[-1]["step"] == step
    before = client.state()["latency"]["count"]
    assert client.post("resume", author="ann")["pausing"] is False
    wait_for(lambda: client.metrics(points=1)[-1]["step"] > held["step"], "the steps after it")
    assert client.state()["paused"] is False
    assert client.state()["latency"]["count"] == before, "a pause is no latency"
    said = [entry["kind"] for entry in client.log(limit=20, changes_only=True) if entry["author"] == "ann"]
    assert said[-3:] == ["pause", "effective_size", "resume"]


def test_what_is_shown_is_what_the_selection_has(client: RunClient, run: RunDir) -> None:
    client.control("release", None, author="ann")
    client.control("effective_size", 0.5, author="ann")
    state, curve = client.state(), client.get("curve")
    assert (state["selection"]["manual"], curve["manual"]) == (True, True)
    assert curve["past"][0][:2] == [0, 0.2]
    assert curve["past"][-1][1] == pytest.approx(0.5)
    assert curve["scheduled"][0][1] == pytest.approx(0.2)
    assert curve["scheduled"][-1] == [10**6, pytest.approx(0.61)]
    solved = client.get("solve", effective_size=0.5)
    assert solved["temperature"] == pytest.approx(state["selection"]["temperature"])
    assert client.get("solve", temperature=solved["temperature"])["effective_size"] == pytest.approx(0.5)
    assert client.get("solve", policy="uniform")["effective_size"] == 1.0
    hard = client.get("solve", policy="hard")
    assert (hard["policy"], hard["effective_size"]) == ("hard", pytest.approx(0.5))
    assert client.state()["selection"]["policy"] == "prototypical", "asking what would be changes nothing"
    nearest = client.get("samples/top", by="prototypes", k=5)["samples"]
    assert [sample["distance"] for sample in nearest] == [0.0] * 5
    assert len({sample["cluster"] for sample in nearest}) == 5
    shown = client.get("distribution", bins=8)
    assert sum(shown["count"]) == 1437
    assert sum(shown["sampled_mass"]) == pytest.approx(1.0)
    drawn = client.get("samples/top", by="times_drawn", k=3)["samples"]
    assert drawn[0]["times_drawn"] >= drawn[2]["times_drawn"] > 0
    assert client.get(f"samples/{drawn[0]['sample_id']}")["key"] == drawn[0]["key"]
    picture = client._http.get(f"samples/{drawn[0]['sample_id']}/image", params={"side": 48})
    assert picture.headers["content-type"] == "image/jpeg"
    assert picture.content.startswith(b"\xff\xd8")
    assert client.get("bad-samples") == {"total": 0, "samples": []}
    assert client.post("export", author="ann")["rows"] == 1437
    assert (run.report / "samples.parquet").is_file()


def test_the_log_is_read_in_pages(client: RunClient) -> None:
    wait_for(lambda: client.get("log", limit=1)["entries"][0]["sequence"] > 12, "a longer log")
    newest = client.get("log", limit=4)
    older = client.get("log", limit=4, before=newest["entries"][0]["sequence"])
    sequences = [entry["sequence"] for entry in older["entries"] + newest["entries"]]
    assert sequences == sorted(set(sequences))
    assert (len(sequences), newest["more"]) == (8, True)


def test_the_stream_brings_states_and_new_rows(client: RunClient) -> None:
    steps: list[int] = []
    states = 0
    for name, data in client.events():
        states += name == "state"
        steps += [row["step"] for row in data["rows"] if "loss" in row] if name == "metrics" else []
        if states >= 3 and len(steps) > 3:
            break
    assert steps == list(range(steps[0], steps[0] + len(steps)))


@pytest.fixture
def resting(run: RunDir) -> Iterator[None]:
    """Pause the run of the other tests: it draws from torch's global generator, which this process shares."""
    with paused(run):
        yield


@pytest.mark.usefixtures("resting")
def test_reading_changes_no_loss(tmp_path: Path, digits: DataConfig) -> None:
    """Floods of reading, wrong tokens and refused changes: the losses are those of a run that nobody looked at."""
    config = tiny(digits, steps=ENOUGH)
    alone = RunDir(tmp_path / "alone")
    launch_in_process(config, alone)
    over, answers = threading.Event(), []
    with alive(tmp_path / "watched", config) as run:

        def flood(number: int) -> None:
            with RunClient.attach(run) as friend, RunClient(friend.url, "x" * 43) as stranger:
                while not over.is_set() and run.api_url():
                    try:
                        friend.get(("state", "distribution", "samples/top", "summary", "log", "curve")[number % 6])
                        answers.append(200)
                    except Refused as error:
                        answers.append(error.status)
                    number += 1
                    time.sleep(0.005)
                    for act in (stranger.state, lambda: friend.control("release", 1, author="ann")):
                        with pytest.raises(Refused):
                            act()

        threads = [threading.Thread(target=flood, args=(number,)) for number in range(3)]
        for thread in threads:
            thread.start()
        wait_for(lambda: not run.is_alive, "the end of the run")
        over.set()
        for thread in threads:
            thread.join()
    assert answers.count(200) > 2  # the others hit the rate limit
    assert set(answers) <= {200, 429, 0}
    assert losses(run) == losses(alone)
    assert len(losses(run)) == ENOUGH


@pytest.mark.usefixtures("resting")
def test_a_run_that_is_over_is_served_for_reading(tmp_path: Path, digits: DataConfig) -> None:
    config, run = tiny(digits, steps=8), RunDir(tmp_path / "run")
    launch_in_process(config, run)
    assert not run.api.exists()
    assert not run.api_token.exists()
    with pytest.raises(RunError, match="is not running"):
        RunClient.attach(run)
    token = tmp_path / "token"
    backend = finished_backend(run)
    with serving(load_config(run.config), run, backend, token_path=token) as url:
        RunLog(run.log).close()  # its writer's lock is free: the run can be resumed meanwhile
        with RunClient(url, token.read_text()) as client:
            state = client.state()
            assert (state["read_only"], state["run"]["status"], state["progress"]["step"]) == (True, "over", 8)
            assert len(client.metrics(points=100)) == 8
            assert sum(client.get("distribution")["sampled_mass"]) == pytest.approx(1.0)
            assert client.get("samples/top", by="times_drawn", k=1)["samples"][0]["times_drawn"] > 0
            assert client.get("loaders")["members"] == []
            for act in ("pause", "stop", "export"):
                with pytest.raises(Refused, match="tempera resume"):
                    client.post(act, author="ann")
            with pytest.raises(Refused, match="tempera resume"):
                client.control("effective_size", 0.3, author="ann")
    assert not token.exists()


def test_a_taken_port_is_one_clear_line(tmp_path: Path, run: RunDir, client: RunClient) -> None:
    options = ApiOptions(port=int(client.url.rpartition(":")[2]))
    with (
        pytest.raises(RunError, match="TEMPERA_API_PORT"),
        serving(load_config(run.config), run, None, options=options, token_path=tmp_path / "t"),  # type: ignore[arg-type]
    ):
        pass
    assert client.state(), "and the run that has it goes on"


def test_ten_thousand_steps_are_chosen_from_within_a_fifth_of_a_second(tmp_path: Path) -> None:
    """Measured as this thread's time, the best of three: a machine may be busy with other things."""
    path = tmp_path / "metrics.jsonl"
    facts = {"loss": 1.0, "lr": 1e-3, "grad_norm": 1.0, "images_per_s": 1e3, "data_wait": 0.1, "version": 3}
    with path.open("w") as file:
        for step in range(10_000):
            file.write(json.dumps({"step": step, "time": 1.0, **facts}) + "\n")
            if step % 1000 == 500:
                file.write(json.dumps({"step": step, "time": 1.0, "nn_cls": 0.5}) + "\n")
    seconds = []
    for _ in range(3):
        index = LineIndex(path)
        started = time.thread_time()
        rows = index.choose(since=0, points=400)
        seconds.append(time.thread_time() - started)
    assert min(seconds) < 0.2
    assert len([row for row in rows if "loss" in row]) <= 400
    assert len([row for row in rows if "nn_cls" in row]) == 10
    assert rows[-1]["step"] == 9999
    assert [row["step"] for row in index.choose(since=9998, points=400)] == [9998, 9999]


def test_a_file_that_is_torn_or_rewound_is_followed(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    index = LineIndex(path)
    assert index.choose(since=0, points=5) == []
    path.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    assert [row["step"] for row in index.rows_from(0)] == [1]
    with path.open("a") as file:
        file.write('ss": 1.0}\n{"step": 2, "paused": true}\n')
    assert (index.update(), index.is_paused, index.last_with_loss()["step"]) == (3, True, 2)
    path.write_text('{"step": 1, "loss": 2.0}\n')
    assert (index.update(), index.is_paused) == (1, False)


def test_a_cached_answer_is_computed_once_in_its_time() -> None:
    now, made = [0.0], []
    cache = TtlCache(clock=lambda: now[0])
    for time_s in (0.0, 0.5, 1.0, 1.5):
        now[0] = time_s
        cache.get("a", 1.0, lambda: made.append(now[0]))
    assert made == [0.0, 1.0]
    cache.get("b", 9.0, lambda: cache.clear() or made.append(9.0))
    cache.get("b", 9.0, lambda: made.append(9.5))
    assert made[2:] == [9.0, 9.5], "what was made before a change is not kept after it"
