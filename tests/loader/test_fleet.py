from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from loader.errors import LoaderLost
from loader.fleet.scaling import ScalePolicy
from loader.fleet.supervisor import Fleet, wait_until_ready


@dataclass
class FakeProcess:
    name: str
    state: str = "starting"
    ended: list[str] = field(default_factory=list)
    worked_s: float = 0.0
    uptime_s: float = 0.0
    why: str = "killed by signal 9"

    @property
    def handle(self) -> str:
        return f"handle of {self.name}"

    def poll(self) -> str:
        return self.state

    @property
    def info(self) -> dict[str, object]:
        return {"pid": id(self), "decode_s": self.worked_s, "uptime_s": self.uptime_s}

    def drain(self) -> None:
        self.ended.append("drained")

    def kill(self) -> None:
        self.ended.append("killed")


class World:
    """A fleet with a clock that is turned by hand."""

    def __init__(self, size: int, policy: ScalePolicy | None = None) -> None:
        self.now, self.launched = 0.0, []
        self.fleet = Fleet(self._launch, size=size, clock=lambda: self.now, policy=policy)

    def _launch(self, name: str) -> FakeProcess:
        self.launched.append(FakeProcess(name))
        return self.launched[-1]

    def advance(self, seconds: float = 1.0) -> None:
        self.now += seconds
        self.fleet.tick()

    def alive(self) -> dict[str, FakeProcess]:
        return {p.name: p for p in self.launched if not p.ended}

    def all_ready(self) -> None:
        for process in self.launched:
            process.state = "ready" if process.state == "starting" else process.state
        self.fleet.tick()


@pytest.fixture
def world() -> World:
    world = World(2)
    world.fleet.tick()
    return world


def kinds(world: World) -> list[str]:
    return [event.kind for event in world.fleet.events()]


def test_members_are_the_loaders_that_are_ready(world):
    assert world.fleet.members() == {}
    world.launched[1].state = "ready"
    world.fleet.tick()
    assert world.fleet.members() == {"loader-1": "handle of loader-1"}


def test_a_lost_loader_is_replaced_under_its_name(world):
    world.all_ready()
    world.launched[0].state = "lost"
    world.advance()
    assert world.fleet.members() == {"loader-1": "handle of loader-1"}
    world.advance()
    assert [p.name for p in world.launched] == ["loader-0", "loader-1", "loader-0"]
    world.all_ready()
    assert sorted(world.fleet.members()) == ["loader-0", "loader-1"]
    status = {loader["name"]: loader for loader in world.fleet.status()["loaders"]}
    assert (status["loader-0"]["restarts"], status["loader-0"]["reason"]) == (1, "killed by signal 9")
    assert status["loader-1"]["restarts"] == 0
    assert kinds(world) == ["loader_started", "loader_started", "loader_lost", "loader_started"]


def test_a_loader_that_dies_at_its_start_is_relaunched_with_growing_pauses(world):
    for _ in range(200):
        for process in world.launched:
            process.state = "lost"
        world.advance(0.25)
    assert 2 * 5 < len(world.launched) < 2 * 16


def test_growing_launches_more_and_tells_who_asked(world):
    reply = world.fleet.scale(4, author="trainer", reason="waits 9 % of the step")
    assert (reply.previous, reply.size) == (2, 4)
    world.advance()
    assert len(world.alive()) == 4
    status = world.fleet.status()
    assert (status["size"], status["author"], status["reason"]) == (4, "trainer", "waits 9 % of the step")
    event = world.fleet.events()[-1]
    assert (event.kind, event.author, event.value) == ("scale", "trainer", 4.0)


def test_a_large_fleet_starts_in_parts_that_double():
    world, launched = World(60), []
    world.fleet.tick()
    while not launched or launched[-1] < 60:
        launched.append(len(world.alive()))
        world.advance()
        assert len(world.alive()) == launched[-1], "those that start are waited for"
        world.all_ready()
        world.fleet.tick()
    assert launched == [8, 16, 32, 60]
    assert len(world.fleet.members()) == 60


def test_a_part_that_never_starts_does_not_hold_up_those_that_were_lost():
    world = World(9)
    world.fleet.tick()
    for process in world.launched[1:]:
        process.state = "ready"
    world.advance()
    world.launched[3].state = "lost"
    world.advance(1.0)
    world.advance(1.0)
    assert [p.name for p in world.launched[8:]] == ["loader-8", "loader-3"]


def test_shrinking_drains_the_last_ones(world):
    world.all_ready()
    world.fleet.scale(1, author="person")
    world.advance()
    assert world.launched[1].ended == ["drained"]
    assert list(world.fleet.members()) == ["loader-0"]


def test_shrinking_keeps_a_working_loader_until_the_rest_can_take_over(world):
    world.launched[1].state = "ready"
    world.fleet.tick()
    world.fleet.scale(1, author="person")
    world.advance()
    assert list(world.fleet.members()) == ["loader-1"]
    world.launched[0].state = "ready"
    world.advance()
    assert list(world.fleet.members()) == ["loader-0"]


def test_events_are_polled_by_sequence_number(world):
    world.all_ready()
    first = world.fleet.events()
    assert [event.sequence for event in first] == [1, 2]
    world.fleet.scale(3, author="person")
    assert [event.kind for event in world.fleet.events(after=first[-1].sequence)] == ["scale"]


def test_a_fleet_with_a_policy_grows_and_shrinks_by_itself_and_says_why():
    world = World(2, ScalePolicy(max_size=4, patience=2, cooldown_s=5, period_s=0))
    world.fleet.tick()
    for _ in range(2):
        world.advance()
        reply = world.fleet.observe(0.2)
    assert (reply.previous, reply.size, reply.author) == (2, 3, "fleet")
    assert "wait for 20%" in world.fleet.status()["reason"]
    world.all_ready()
    for _ in range(10):
        for process in world.alive().values():
            process.uptime_s += 1
            process.worked_s += 0.1
        world.advance()
        world.fleet.observe(0.0)
    assert world.fleet.status()["size"] == 1
    assert "work for 10%" in world.fleet.status()["reason"]


def test_a_fleet_without_a_policy_keeps_its_size(world):
    for _ in range(20):
        assert world.fleet.observe(0.9) is None
    assert world.fleet.status()["size"] == 2


def test_closing_kills_everything(world):
    world.fleet.close()
    world.advance()
    assert [p.ended for p in world.launched] == [["killed"], ["killed"]]
    assert world.fleet.members() == {}


@pytest.mark.parametrize("size", [0, -1, 1025])
def test_sizes_out_of_range_are_refused(world, size):
    with pytest.raises(ValueError, match=r"must be in 1\.\.1024; got"):
        world.fleet.scale(size, author="person")


def test_a_fleet_that_does_not_answer_once_is_asked_again_until_it_is_ready():
    answers = iter([LoaderLost("busy"), {"loaders": [{"state": "starting", "restarts": 0, "reason": ""}]}])

    def status():
        answer = next(answers, {"loaders": [{"state": "ready", "restarts": 0, "reason": ""}]})
        if isinstance(answer, LoaderLost):
            raise answer
        return answer

    wait_until_ready(status, size=1, timeout_s=10.0)
    assert next(answers, None) is None


def test_a_fleet_that_never_answers_is_given_up_in_time():
    def status():
        raise LoaderLost("gone")

    with pytest.raises(LoaderLost, match="gone"):
        wait_until_ready(status, size=1, timeout_s=0.0)
