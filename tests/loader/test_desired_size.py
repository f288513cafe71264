"""A fleet's desired size outlives its process."""

from loader.fleet.desired_size import DesiredSize, DesiredSizeFile
from loader.fleet.supervisor import Fleet

DESIRED = DesiredSize(size=3, author="mira", reason="a try", sequence=7)


def test_a_size_is_kept_until_it_is_forgotten(tmp_path):
    file = DesiredSizeFile(tmp_path / "fleet.json")
    assert file.load() is None
    file.save(DESIRED)
    assert DesiredSizeFile(tmp_path / "fleet.json").load() == DESIRED
    file.forget()
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_read_or_written_costs_only_the_memory(tmp_path, caplog):
    (tmp_path / "fleet.json").write_text('{"size": 3')
    assert DesiredSizeFile(tmp_path / "fleet.json").load() is None
    DesiredSizeFile(tmp_path / "none" / "fleet.json").save(DESIRED)
    assert "cannot be read" in caplog.text
    assert "not remembered" in caplog.text


def test_a_fleet_that_is_restarted_keeps_its_size_and_counts_its_events_on(tmp_path):
    file = DesiredSizeFile(tmp_path / "fleet.json")
    first = Fleet(lambda name: None, size=2, clock=lambda: 0.0, memory=file)
    first.scale(5, author="mira", reason="a try")
    last = first.events()[-1].sequence
    again = Fleet(lambda name: None, size=2, clock=lambda: 0.0, memory=file)
    status = again.status()
    assert (status["size"], status["author"], status["reason"]) == (5, "mira", "a try")
    assert [(event.kind, event.sequence) for event in again.events(after=last)] == [("fleet_restarted", last + 1)]
