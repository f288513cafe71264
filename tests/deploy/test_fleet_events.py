"""The fleet's events reach the run log once each, in order, also when the log is away for a while."""

from __future__ import annotations

from deploy.launch.launch import fleet_events_logged
from loader.fleet.supervisor import FleetEvent
from scoring import Event
from tests.runs import wait_for


def event(sequence: int) -> FleetEvent:
    return FleetEvent(
        sequence=sequence, time=0.0, kind="scale", author="ann", message=f"event {sequence}", value=float(sequence)
    )


def test_every_event_is_copied_once_and_in_order_through_an_outage() -> None:
    happened = [event(1), event(2)]
    written: list[Event] = []
    outages = [2]

    def record(entry: Event) -> None:
        if outages and len(written) == 1:
            outages[0] -= 1
            if not outages[0]:
                outages.clear()
            raise ConnectionError("the service restarts")
        written.append(entry)

    with fleet_events_logged(lambda after: [one for one in happened if one.sequence > after], record, every_s=0.01):
        wait_for(lambda: len(written) == 2, "two entries")
        happened.append(event(3))
    assert [entry.message for entry in written] == ["event 1", "event 2", "event 3"]
    assert {(entry.kind, entry.author) for entry in written} == {("scale", "ann")}
