"""Two processes over gloo against one."""

import json
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from trainer_fakes import FakeSelection, FakeStream, tiny, tiny_run

from tests.integration import doors
from trainer import RunHooks, current_context, load_checkpoint, load_method, read_metrics, train
from trainer.config import ConmimConfig, PassConfig
from trainer.loop import build_state
from trainer.ranks.rendezvous import LOOPBACK, join_group, open_store
from trainer.sweep import Sweep

SELECTING = PassConfig(enabled=True, predictor_depth=1, full_epochs=2, period=2, predictor_epochs=1, keep=1.0)
SMALL_PROJECTOR = ConmimConfig(hidden=16, projection=8)
RUNS = {
    "mae": tiny_run(total_steps=4, accumulation_steps=2, clip_norm=1.0),
    "bootmae": tiny_run(total_steps=4, method="bootmae"),
    "simmim": tiny_run(total_steps=4, method="simmim"),
    "conmim": tiny_run(total_steps=4, method="conmim", model=tiny(conmim=SMALL_PROJECTOR)),
    "clmae": tiny_run(total_steps=4, method="clmae"),
    "fsdp": tiny_run(total_steps=12, sharding="fsdp", ema_decay=0.9),
    "fsdp_pass": tiny_run(total_steps=4, epoch_steps=1, sharding="fsdp", model=tiny(pass_=SELECTING)),
    "fsdp_conmim": tiny_run(total_steps=4, method="conmim", sharding="fsdp", model=tiny(conmim=SMALL_PROJECTOR)),
    "fsdp_bootmae": tiny_run(total_steps=4, method="bootmae", sharding="fsdp"),
}


def sweep_of(config, selection):
    """A sweep over nine samples in batches of two, so that the ranks have unequally many; None without a selection."""
    images = FakeStream(config).images(range(9)).numpy()
    batches = lambda ids: ((ids[i : i + 2], images[ids[i : i + 2]]) for i in range(0, len(ids), 2))  # noqa: E731
    return Sweep(batches, selection, num_samples=9) if config.model.pass_.enabled else None


def port_of(rank: int, file: Path) -> int:
    """Where the ranks meet: the first opens the store, the others wait to hear of it."""
    if rank == 0:
        whole = file.with_suffix(".part")
        whole.write_text(str(open_store(LOOPBACK)))
        whole.rename(file)
    while not file.exists():
        time.sleep(0.01)
    return int(file.read_text())


def rank_main(rank: int, directory: str) -> None:
    torch.set_num_threads(1)
    os.environ["LOCAL_RANK"] = str(rank)
    port = port_of(rank, Path(directory, "port"))
    join_group(backend="gloo", host=LOOPBACK, port=port, number=rank, world_size=2)
    context = current_context()
    Path(directory, f"doors-{rank}.json").write_text(json.dumps(list(doors.listeners([os.getpid()]))))
    for name, config in RUNS.items():
        selection, evaluated = FakeSelection(), []
        stream = FakeStream(config, rank=rank, world_size=2)
        if name == "fsdp":
            pauses: list[int] = []
            train(
                config,
                stream,
                run_dir=Path(directory) / name,
                hooks=RunHooks(
                    should_pause=lambda at=stream, seen=pauses: (
                        rank == 1 and at.next_step == 10 and not seen.append(10)
                    ),
                    should_stop=lambda seen=pauses: len(seen) > 2,  # the second rank alone asks for both
                ),
            )
        train(
            config,
            FakeStream(config, rank=rank, world_size=2),
            run_dir=Path(directory) / name,
            selection=selection,
            context=context,
            hooks=RunHooks(
                sweep=sweep_of(config, selection),
                evaluate_every=2,
                on_evaluate=lambda step, method, seen=evaluated: seen.append(method.encoder.norm.weight.sum().item()),
            ),
        )
        reports = [[report[4], report[0].tolist()] for report in selection.reports]
        (Path(directory) / f"{name}-{rank}.json").write_text(json.dumps({"reports": reports, "evaluated": evaluated}))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    directory = tmp_path_factory.mktemp("ranks")
    mp.spawn(rank_main, (str(directory),), nprocs=2)
    return directory


def test_ranks_of_one_machine_listen_at_the_loopback_only(two_ranks):
    open_at = [json.loads((two_ranks / f"doors-{rank}.json").read_text()) for rank in (0, 1)]
    assert all(open_at), "gloo listens in each rank, and the store in the first"
    assert [address for one in open_at for address in one if not doors.is_loopback(address)] == []


@pytest.mark.parametrize("name", RUNS)
def test_two_ranks_agree_with_one(two_ranks, tmp_path, name):
    config = replace(RUNS[name], sharding="ddp")
    train(config, FakeStream(config), run_dir=tmp_path, hooks=RunHooks(sweep=sweep_of(config, FakeSelection())))
    one, two = (read_metrics(path / "metrics.jsonl") for path in (tmp_path, two_ranks / name))
    one, two = ([line for line in lines if "loss" in line] for lines in (one, two))
    assert [line["loss"] for line in two] == pytest.approx([line["loss"] for line in one], rel=2e-4)
    assert [line["grad_norm"] for line in two] == pytest.approx([line["grad_norm"] for line in one], rel=2e-3)
    weights = [load_checkpoint(path).tensors["model"] for path in (tmp_path, two_ranks / name)]
    assert weights[0].keys() == weights[1].keys()
    for key, value in weights[0].items():
        assert torch.allclose(weights[1][key], value, atol=2e-3), key


@pytest.mark.parametrize("name", RUNS)
def test_each_rank_reports_its_own_rows_and_only_the_first_evaluates(two_ranks, name):
    first, second = (json.loads((two_ranks / f"{name}-{rank}.json").read_text()) for rank in (0, 1))
    stream = FakeStream(RUNS[name])
    for rank, found in enumerate((first, second)):
        begin = 10 if name == "fsdp" else 0  # it was stopped and resumed there
        wanted = [
            i
            for step in range(begin, RUNS[name].total_steps)
            for i in stream.batch(step).sample_ids[4 * rank : 4 * rank + 4].tolist()
        ]
        assert [i for producer, ids in found["reports"] for i in ids if producer == f"trainer-{rank}"] == wanted
        swept = [i for producer, ids in found["reports"] for i in ids if producer == f"sweep-{rank}-0"]
        assert swept == (list(range(rank, 9, 2)) if name == "fsdp_pass" else [])
    assert len(first["evaluated"]) == (1 if name == "fsdp" else 2)
    assert second["evaluated"] == []


def test_both_ranks_rest_and_stop_where_one_is_asked_to(two_ranks):
    lines = read_metrics(two_ranks / "fsdp" / "metrics.jsonl")
    assert [(line["step"], line["paused"]) for line in lines if "paused" in line] == [(10, True), (10, False)]


def test_the_checkpoint_of_a_sharded_run_loads_on_one_process(two_ranks, tmp_path):
    path = two_ranks / "fsdp" / "checkpoints" / "step-00000012"
    target = tmp_path / "checkpoints" / path.name
    target.mkdir(parents=True)
    for file in path.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    config = replace(RUNS["fsdp"], sharding="ddp")
    assert train(config, FakeStream(config), run_dir=tmp_path).step == 12
    _, method = load_method(tmp_path, averaged=True)
    assert method.encoder.features(torch.rand(1, 3, 16, 16)).isfinite().all()


def test_a_method_that_alternates_between_networks_is_not_sharded_and_the_line_says_why():
    with pytest.raises(ValueError, match=r"clmae alternates between model and masker.*Use sharding='ddp'"):
        build_state(tiny_run(method="clmae", sharding="fsdp"))
