"""A fleet's desired size outlives its process."""

from loader.fleet.desired_size import DesiredSize, load_desired_size, save_desired_size
from loader.fleet.supervisor import Fleet

DESIRED = DesiredSize(size=3, author="mira", reason="a try", sequence=7)


def test_a_size_is_kept_and_nothing_else_is_left(tmp_path):
    file = tmp_path / "fleet.json"
    assert load_desired_size(file) is None
    save_desired_size(file, DESIRED)
    assert load_desired_size(file) == DESIRED
    assert list(tmp_path.iterdir()) == [file]


def test_a_file_that_cannot_be_read_or_written_costs_only_the_memory(tmp_path, caplog):
    (tmp_path / "fleet.json").write_text('{"size": 3')
    assert load_desired_size(tmp_path / "fleet.json") is None
    save_desired_size(tmp_path / "none" / "fleet.json", DESIRED)
    assert "cannot be read" in caplog.text
    assert "not remembered" in caplog.text


def test_a_fleet_that_is_restarted_keeps_its_size_and_counts_its_events_on(tmp_path):
    file = tmp_path / "fleet.json"
    first = Fleet(lambda name: None, size=2, clock=lambda: 0.0, memory=file)
    first.scale(5, author="mira", reason="a try")
    last = first.events()[-1].sequence
    again = Fleet(lambda name: None, size=2, clock=lambda: 0.0, memory=file)
    status = again.status()
    assert (status["size"], status["author"], status["reason"]) == (5, "mira", "a try")
    assert [(event.kind, event.sequence) for event in again.events(after=last)] == [("fleet_restarted", last + 1)]
