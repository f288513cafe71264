import dataclasses
import multiprocessing
import os
import threading
import time

import numpy as np
import pytest

from scoring import Selection, SelectionConfig
from scoring.node_windows import NodeWindows, read_window, window_bytes

WINDOW = Selection(np.linspace(0, 1, 50), SelectionConfig(seed=1, global_batch=7, window_steps=3)).window(0)


def same(one, other):
    for field in dataclasses.fields(one):
        np.testing.assert_array_equal(getattr(one, field.name), getattr(other, field.name))


def test_a_copy_is_the_window(tmp_path):
    windows = NodeWindows("run", root=tmp_path / "node")
    same(windows.get(0, lambda: WINDOW), WINDOW)
    copy = windows.get(0, lambda: pytest.fail("there is a copy"))
    same(copy, WINDOW)
    assert copy.sample_ids.dtype == np.int64
    with pytest.raises(ValueError, match="read-only"):
        copy.sample_ids[0] = 1


def test_many_at_once_ask_once(tmp_path, monkeypatch):
    monkeypatch.setattr("scoring.node_windows.WAIT_S", 120.0)
    asked, start = [], threading.Barrier(32)

    def ask():
        asked.append(1)
        return WINDOW

    def trainer():
        start.wait()
        same(NodeWindows("run", root=tmp_path / "node").get(3, ask), WINDOW)

    threads = [threading.Thread(target=trainer) for _ in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(asked) == 1


def test_old_copies_go_and_the_run_leaves_nothing(tmp_path):
    windows = NodeWindows("run", root=tmp_path / "node")
    for index in range(9):
        windows.get(index, lambda: WINDOW)
    assert sorted(path.name for path in (tmp_path / "node" / "run").glob("*.window")) == [
        f"{index:012d}.window" for index in range(5, 9)
    ]
    windows.remove()
    assert list((tmp_path / "node").iterdir()) == []


@pytest.mark.parametrize("cut", [0, 5, 40, -1])
def test_a_damaged_copy_is_none(tmp_path, cut):
    whole = window_bytes(WINDOW)
    (tmp_path / "w").write_bytes(whole[:cut])
    assert read_window(tmp_path / "w") is None
    (tmp_path / "w").write_bytes(b"x" + whole[1:])
    assert read_window(tmp_path / "w") is None


def test_a_folder_that_others_can_enter_is_not_used(tmp_path):
    (tmp_path / "node").mkdir(mode=0o777)
    (tmp_path / "node").chmod(0o777)
    same(NodeWindows("run", root=tmp_path / "node").get(0, lambda: WINDOW), WINDOW)
    assert list((tmp_path / "node").iterdir()) == []


def _ask_and_die(root):
    NodeWindows("run", root=root).get(0, lambda: os._exit(9))


def test_a_process_that_dies_while_it_asks_leaves_the_window_to_others(tmp_path):
    process = multiprocessing.get_context("fork").Process(target=_ask_and_die, args=(tmp_path / "node",))
    process.start()
    process.join()
    assert process.exitcode == 9
    same(NodeWindows("run", root=tmp_path / "node").get(0, lambda: WINDOW), WINDOW)


def test_an_asker_that_hangs_is_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr("scoring.node_windows.WAIT_S", 0.05)
    release = threading.Event()

    def hang():
        release.wait()
        return WINDOW

    windows = NodeWindows("run", root=tmp_path / "node")
    asker = threading.Thread(target=windows.get, args=(0, hang))
    asker.start()
    while not list(tmp_path.glob("node/run/*.lock")):
        time.sleep(0.01)
    same(windows.get(0, lambda: WINDOW), WINDOW)
    release.set()
    asker.join()
