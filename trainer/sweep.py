"""Scoring the whole data set for a selection: every sample once, evaluation crops, all ranks (METHODS section 7).

1. Each rank takes the sample ids r, r + R, r + 2R, ... and reads them through the loader with the evaluation crop.
2. PASS: the predictor scores the patches of the whole image, those it predicts to be hardest are hidden, and their
   losses are weighted by the prediction. No randomness.
   BSS: random patches are hidden, by the sample's own random numbers; the score is their mean loss.
3. Scores go to the selection before training continues, so that the next window not yet drawn uses them.

Shapes: B batch, N patches.
"""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scoring import SelectionPort, masked_mean_score, patch_weighted_score
from trainer.methods.base import SelectingMethod
from trainer.precision import autocast
from trainer.randomness import StepRandomness
from trainer.sharding import unsharded
from trainer.step import TrainState, normalise

log = logging.getLogger(__name__)

_REPORT_SAMPLES = 65536  # scores of one report: half a megabyte on the way to the selection

SweepBatches = Callable[[NDArray[np.int64]], Iterable[tuple[NDArray[np.int64], Any]]]


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepResult:
    """Counts of one sweep on one rank."""

    step: int
    scored: int
    missing: int
    """Samples that the loader could not give."""
    non_finite: int
    """Samples whose score was NaN or infinite; they were not reported."""


class Sweep:
    """Scores all samples, whose ids are 0 .. num_samples - 1, when the training loop calls it.

    `batches` gives (sample ids, uint8[B, 3, H, W]) for the ids it is called with, each once, with the evaluation crop.
    `after` is called on rank 0 when all ranks have reported, e.g. to set the policy that keeps the top share.
    """

    def __init__(
        self,
        batches: SweepBatches,
        selection: SelectionPort,
        *,
        num_samples: int,
        after: Callable[[SweepResult], None] | None = None,
    ) -> None:
        self._batches, self._selection, self._after = batches, selection, after
        self._num_samples = num_samples

    def __call__(self, state: TrainState) -> SweepResult:
        """Score this rank's samples with the present model, and report them. All ranks call this."""
        context = state.context
        wanted = np.arange(context.rank, self._num_samples, context.world_size)
        seen = np.zeros(self._num_samples, bool)
        # Whole weights: a sharded forward pass is collective, and ranks need not have equally many batches.
        method = unsharded(state.method, state.config, state.device)
        state = replace(state, method=method)
        method.eval()
        # An empty part first, so that a rank without samples has arrays to join.
        ids_parts, score_parts = [np.zeros(0, np.int64)], [np.zeros(0, np.float32)]
        for batch_ids, images in self._batches(wanted):
            ids = np.asarray(batch_ids, np.int64)
            _, first = np.unique(ids, return_index=True)
            fresh = np.sort(first[~seen[ids[first]]])  # a repeated sample counts once
            seen[ids] = True
            ids_parts.append(ids[fresh])
            score_parts.append(score_batch(state, torch.as_tensor(np.asarray(images))[fresh], ids[fresh]))
        method.train()
        ids, scores = np.concatenate(ids_parts), np.concatenate(score_parts)
        finite = np.isfinite(scores)
        reported, values = ids[finite], scores[finite]
        for number, start in enumerate(range(0, len(reported), _REPORT_SAMPLES)):
            part = slice(start, start + _REPORT_SAMPLES)
            # A sweep repeated after a restart has the same producer and sequence: its reports are merged once.
            self._selection.report_scores(
                reported[part],
                values[part],
                kind=state.config.model.pass_.score,
                step=state.step,
                producer=f"sweep-{context.rank}-{number}",
                sequence=state.step,
            )
        result = SweepResult(
            step=state.step,
            scored=len(ids),
            missing=len(wanted) - len(ids),
            non_finite=int((~finite).sum()),
        )
        context.barrier()  # the policy may rank by scores: all must be reported before it is set
        if self._after and context.rank == 0:
            self._after(result)
        context.barrier()  # no rank asks for a window before rank 0 has set the policy
        log.info("scored %d samples at step %d; %d missing", result.scored, result.step, result.missing)
        return result


@torch.no_grad()
def score_batch(state: TrainState, images_u8: Tensor, sample_ids: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return the scores of uint8[B, 3, H, W] images, float32[B], larger for harder ones.

    `pass_.score` of the run's model config is the rule. With "bss" the sample ids, int64[B], seed each image's mask, so
    that a repeated sweep gives equal scores.
    """
    method, settings = state.method, state.config.model.pass_
    assert isinstance(method, SelectingMethod), "methods that cannot select are refused when they are built"
    images = normalise(images_u8.to(state.device, non_blocking=True), state.config)
    with autocast(state.device, state.config.precision):
        if settings.score == "pass":
            predicted_BN = method.difficulty(images)
            losses = method.reconstruct(images, method.difficulty_mask(predicted_BN))
            score_B = patch_weighted_score(losses.patch_loss_BN, predicted_BN, losses.mask_BN, settings.temperature)
        else:
            # By sample id at step 0: each sweep hides the same patches of a sample.
            randomness = StepRandomness(seed=state.config.seed, step=0, row_ids=sample_ids)
            losses = method.reconstruct(images, method.draw_mask(len(images), randomness, like=images))
            score_B = masked_mean_score(losses.patch_loss_BN, losses.mask_BN)
    return score_B.float().cpu().numpy()
