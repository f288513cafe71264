import threading
from typing import ClassVar

import numpy as np
import torch
from trainer_fakes import FakeSelection

from trainer import ScheduledWindows
from trainer.windows import ScoreReporter


def test_the_request_carries_the_size_at_the_windows_first_step():
    selection = FakeSelection()
    windows = ScheduledWindows(selection, lambda progress: 0.2 + 0.4 * progress, 16, 64)
    assert [windows.window(i) for i in (0, 1, 3, 5)] == [0, 1, 3, 5]
    assert selection.asked == [(0, 0.2), (1, 0.30000000000000004), (3, 0.5), (5, 0.6000000000000001)]


def test_without_a_schedule_the_selection_decides():
    selection = FakeSelection()
    ScheduledWindows(selection, None, 16, 64).window(2)
    assert selection.asked == [(2, None)]


def test_a_stuck_selection_costs_its_scores_not_the_training(caplog):
    selection = FakeSelection(gate=threading.Event())
    reporter = ScoreReporter(selection, producer="trainer-0")
    with reporter:
        for step in range(1, 8):
            reporter.add(np.arange(2), torch.ones(2))
            reporter.flush(step)
        assert selection.reports == []
        selection.gate.set()
    assert reporter.failed in (2, 3)
    assert len(selection.reports) == 7 - reporter.failed
    assert "windows of scores are still waiting" in caplog.text


def test_an_empty_window_reports_nothing():
    selection = FakeSelection()
    with ScoreReporter(selection, producer="trainer-0") as reporter:
        reporter.flush(4)
    assert selection.reports == []


def test_windows_that_a_service_forgot_are_asked_for_again_in_order():
    class Forgetful:
        asked: ClassVar[list] = []
        next_window = 3

        def window(self, index, *, effective_size=None):
            if index > self.next_window:
                raise ValueError("window must be one already drawn or the next (3)")
            self.next_window = max(self.next_window, index + 1)
            self.asked.append((index, effective_size))
            return index

    service = Forgetful()
    windows = ScheduledWindows(service, lambda progress: progress, 10, 100)
    assert windows.window(5) == 5
    assert service.asked == [(index, index / 10) for index in range(6)]
