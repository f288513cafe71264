"""The cost of a training step beside the same model written plainly: `bench_trainer`.

Ours and the plain step take turns in one process, so that a busy machine slows both; figures are medians over the
turns. The plain step is `trainer.bench.plain` with eager blocks, torch's default AdamW, float images normalised on the
host and the loss read every step. The add-ons (MTO, PASS, CL-MAE's masking network) are measured in passes of MAE.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from trainer.bench.plain import PLAIN, plain_masker
from trainer.config import ConmimConfig, MtoConfig, PassConfig, TrainConfig, model_size, require
from trainer.loop import build_state
from trainer.masking import random_mask
from trainer.precision import autocast
from trainer.progress import cost_epochs, predictor_trains, selection_epochs
from trainer.randomness import StepRandomness
from trainer.ranks.context import pick_device
from trainer.record.profiling import image_flops, peak_flops
from trainer.step import TrainState, normalise, train_step
from trainer.sweep import score_batch

Progress = Callable[[int, int], None]
Step = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Case:
    """One row of the table: a method, a named size, and the images of a step."""

    method: str
    size: str
    batch: int


CPU_CASES = (
    Case("mae", "tiny", 32),
    Case("mae", "cifar", 16),
    *(Case(method, "tiny", 32) for method in ("simmim", "bootmae", "conmim", "clmae")),
)
CUDA_CASES = (
    Case("mae", "vit_b", 1024),
    Case("mae", "vit_l", 512),
    Case("mae", "vit_h", 256),
    Case("bootmae", "vit_b", 512),
    *(Case(method, "vit_b", 256) for method in ("simmim", "conmim", "clmae")),
)
PAPER_EPOCHS = 200  # length of the runs whose cost PASS reports (METHODS section 7)
_ADD_ON_TURNS = 4  # a turn of the add-ons at ViT-B takes a quarter of a minute on a CPU
# Targets: (name of the ratio, limit, whether the ratio must be at least or at most the limit).
CPU_TARGETS = (("mae_over_plain", 1.0, "least"), ("masker_step_over_mae_step", 2.6, "most"))
CUDA_TARGETS = (
    ("mae_vit_b_over_plain", 2.2, "least"),
    ("mae_vit_b_images_per_s", 6000.0, "least"),
    ("pass_round_over_mae_epoch", 0.8, "most"),
    ("pass_run_over_full_run", 0.47, "most"),
    ("mto_step_over_mae_step", 1.15, "most"),
)


def bench_trainer(
    *, device: str = "cpu", progress: Progress | None = None, cases: tuple[Case, ...] | None = None, turns: int = 11
) -> dict[str, Any]:
    """Time every method against its plain form and return plain values.

    `cases` are the rows to measure, the device's own by default; the add-ons are measured on the first, or on ViT-B.
    Ours and the plain step alternate `turns` times. `progress` is called with (cases done, all cases).

    Returns: `device`, `peak_flops` (FLOP/s; measured by a matrix product where it is not published), `methods` as
    methods[method][size] with batch, images_per_s, plain_images_per_s, ratio, mfu and peak_memory_bytes, the same as
    a list of `rows`, `ratios` by name, and `targets` with value, limit and met.

    Raises:
        ValueError: the device is not there, or turns is below 1.
    """
    require(turns >= 1, f"turns must be 1 or more; got {turns}.")
    place = pick_device(device, 0)
    cuda = place.type == "cuda"
    add_ons = cases[0] if cases else Case("mae", "vit_b", 256 if cuda else 2)
    cases = cases or (CUDA_CASES if cuda else CPU_CASES)
    peak = peak_flops(place)
    if peak is None:  # no published peak: the best of five large matrix products
        left, right = torch.rand(2, 1024, 1024, device=place)
        peak = 2 * 1024**3 / min(_seconds(lambda: left @ right, place) for _ in range(5))
    rows = []
    for number, case in enumerate(cases):
        rows.append(_row(case, place, peak, turns))
        if progress:
            progress(number + 1, len(cases) + 1)
    ratios = _ratios(add_ons, rows, place, min(turns, _ADD_ON_TURNS))
    if progress:
        progress(len(cases) + 1, len(cases) + 1)
    methods: dict[str, dict[str, dict[str, Any]]] = {}
    for row in rows:
        figures = {name: value for name, value in row.items() if name not in ("method", "size")}
        methods.setdefault(row["method"], {})[row["size"]] = figures
    targets = {
        name: {
            "value": ratios[name],
            "limit": limit,
            "met": ratios[name] >= limit if side == "least" else ratios[name] <= limit,
        }
        for name, limit, side in (CUDA_TARGETS if cuda else CPU_TARGETS)
        if name in ratios  # the cases may leave a method or a size out
    }
    return {
        "device": torch.cuda.get_device_name(place) if cuda else f"cpu, {torch.get_num_threads()} threads",
        "peak_flops": peak,
        "methods": methods,
        "rows": rows,
        "ratios": ratios,
        "targets": targets,
    }


def _row(case: Case, device: torch.device, peak: float, turns: int) -> dict[str, Any]:
    """Measure one case and return its row of the table."""
    state = build_state(_config(case, device))
    images = _images(case, state)
    ours, plain = _alternate([lambda: _ours(state, images), _plain_step(case, device, images)], device, turns)
    ours_s, plain_s = statistics.median(ours), statistics.median(plain)
    flops = image_flops(case.method, state.config.model)
    return {
        "method": case.method,
        "size": case.size,
        "batch": case.batch,
        "images_per_s": case.batch / ours_s,
        "plain_images_per_s": case.batch / plain_s,
        "ratio": _paired(plain, ours),
        "mfu": flops * case.batch / ours_s / peak,
        "peak_memory_bytes": _memory(state, images),
    }


def _ratios(case: Case, rows: list[dict[str, Any]], device: torch.device, turns: int) -> dict[str, float]:
    """Measure what the add-ons cost in passes of MAE at the same size, on which their share depends."""
    case = replace(case, method="mae")
    plain = _config(case, device)
    selecting = PassConfig(enabled=True)
    states = {
        "mae": build_state(plain),
        "mto": build_state(replace(plain, model=replace(plain.model, mto=MtoConfig(enabled=True)))),
        "pass": build_state(replace(plain, model=replace(plain.model, pass_=selecting))),
        "predictor": build_state(replace(plain, model=replace(plain.model, pass_=selecting))),
        "clmae": build_state(replace(plain, method="clmae")),
    }
    images = _images(case, states["mae"])
    states["pass"].method.eval()  # a sweep scores with stochastic depth off
    ids = torch.arange(case.batch).numpy()
    steps: list[Step] = [
        lambda: _passes(states["mae"], images),
        lambda: _passes(states["mto"], images),
        lambda: score_batch(states["pass"], images, ids),
        lambda: _passes(states["predictor"], images),
        lambda: _passes(states["clmae"], images, "masker"),
    ]
    mae, mto, scored, predictor, masker = _alternate(steps, device, turns)
    found = {
        "mto_step_over_mae_step": _paired(mto, mae),
        "pass_round_over_mae_epoch": _paired(scored, mae),
        "predictor_step_over_mae_step": _paired(predictor, mae),
        "pass_run_over_full_run": run_cost(selecting, _paired(scored, mae), _paired(predictor, mae)),
        "masker_step_over_mae_step": _paired(masker, mae),
    }
    for row in (row for row in rows if row["method"] == "mae"):
        found["mae_over_plain"] = min(row["ratio"], found.get("mae_over_plain", row["ratio"]))
        found[f"mae_{row['size']}_images_per_s"] = row["images_per_s"]
        found[f"mae_{row['size']}_over_plain"] = row["ratio"]
    return found


def run_cost(settings: PassConfig, selection_round: float, predictor_step: float, epochs: int = PAPER_EPOCHS) -> float:
    """Return the cost of a run with selection over that of a run on all data for as many epochs.

    `selection_round` is the cost of scoring all samples, in epochs of plain training; `predictor_step` that of a step
    that trains the predictor too, in plain steps. The steps alone of the paper's 200 epochs cost 0.37.
    """
    lengths = [1.0 if epoch < settings.full_epochs else settings.keep for epoch in range(epochs)]
    trained = sum(length for epoch, length in enumerate(lengths) if predictor_trains(epoch, settings))
    rounds = len(selection_epochs(epochs, settings))
    cost = cost_epochs(epochs, settings) + rounds * selection_round + trained * (predictor_step - 1)
    return cost / epochs


def _paired(seconds: list[float], base: list[float]) -> float:
    """Return the median of the ratios turn by turn: two steps of one turn share the machine's other load."""
    return statistics.median(a / b for a, b in zip(seconds, base, strict=True))


def _alternate(steps: list[Step], device: torch.device, turns: int) -> list[list[float]]:
    """Return the seconds of each step in each turn; the first turn, which compiles and allocates, is dropped."""
    seconds = [[_seconds(step, device) for step in steps] for _ in range(turns + 1)][1:]
    return [list(column) for column in zip(*seconds, strict=True)]


def _seconds(step: Step, device: torch.device) -> float:
    """Return the seconds of one call, with the device idle before and after."""
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    step()
    if cuda:
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def _plain_step(case: Case, device: torch.device, images_u8: Tensor) -> Step:
    """Return the plain training step on its own copy of the method."""
    config = _config(case, device)
    method = build_state(replace(config, compile_blocks="off")).method
    losses = {"model": PLAIN[case.method], "masker": plain_masker}
    parameters = {phase: [p for _, p in method.phase_parameters(phase)] for phase in method.phases}
    optimizers = {phase: torch.optim.AdamW(found, lr=1e-4, weight_decay=0.05) for phase, found in parameters.items()}

    def step() -> None:
        images = normalise(images_u8, config).to(device)
        mask = random_mask(config.model, len(images), StepRandomness(seed=0, step=0), like=images)
        for phase in method.phases:
            with autocast(device, config.precision):
                loss = losses[phase](method, images, torch.cat([mask.visible_BV, mask.masked_BM], dim=1))
            loss.item()  # waits for the device in every step, as official loops do to log
            torch.autograd.backward(loss, inputs=parameters[phase])
            optimizers[phase].step()
            optimizers[phase].zero_grad()

    return step


def _ours(state: TrainState, images_u8: Tensor) -> None:
    """Do one training step as a run does, at the first step of its schedules."""
    state.step = 0  # the schedule of a long measurement would end
    train_step(state, images_u8)


def _passes(state: TrainState, images_u8: Tensor, phase: str = "model") -> None:
    """Do the forward and backward passes of one phase.

    Without the update, whose cost does not depend on the batch and would hide the add-ons' share in small ones.
    """
    images = normalise(images_u8.to(state.device), state.config)
    with autocast(state.device, state.config.precision):
        loss = state.method(images, StepRandomness(seed=0, step=0), phase)
    loss.total.backward()
    state.method.zero_grad(set_to_none=True)


def _config(case: Case, device: torch.device) -> TrainConfig:
    """Return the run of a case; on a CPU with a small ConMIM projector: the usual one would be most of a tiny step."""
    model = model_size(case.size, masking="random")
    if device.type == "cpu":
        model = replace(model, conmim=ConmimConfig(hidden=256, projection=64))
    return TrainConfig(method=case.method, model=model, total_steps=1000, global_batch=case.batch, device=str(device))


def _images(case: Case, state: TrainState) -> Tensor:
    """Return uint8[batch, 3, H, W] random images, the same in every call."""
    size = state.config.model.image_size
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (case.batch, 3, size, size), dtype=torch.uint8, generator=generator)


def _memory(state: TrainState, images_u8: Tensor) -> int:
    """Return the peak bytes of a step; on a CPU those of weights, optimizer and tensors kept for backward."""
    if state.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(state.device)
        _ours(state, images_u8)
        return torch.cuda.max_memory_allocated(state.device)
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        _ours(state, images_u8)
    trained = sum(p.numel() * p.element_size() for p in state.method.parameters() if p.requires_grad)
    # The kept tensors include the weights; gradients and AdamW's two moments come on top.
    return sum(kept.values()) + 3 * trained
