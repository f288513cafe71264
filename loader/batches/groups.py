"""A group of consecutive steps of one window, for one rank: rows that are requested together, and their buffer.

Several steps form a group so that each loader gets a request worth sending. The buffer is allocated once (pinned when
there is a GPU) and replies are copied into their rows; the group is done when every row has its pixels.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from loader.batch import BadSample, Batch, BatchSpec, Pixels
from loader.batches.substitution import substitute
from loader.batches.windows import Window
from loader.config import StreamConfig
from loader.decode.buffers import ImageBuffers


class Group:
    """The rows of some steps: what to request, which pixels have come, which draws were substituted."""

    def __init__(
        self,
        window: Window,
        steps: range,
        config: StreamConfig,
        *,
        hints: NDArray[np.float64],
        buffers: ImageBuffers,
    ) -> None:
        self.steps = steps
        self._window, self._config = window, config
        # Rank r takes rows [r*L, (r+1)*L) of each step's global batch.
        first_in_window = (steps.start - window.index * config.window_steps) * config.global_batch
        step_starts = first_in_window + config.rank * config.local_batch + np.arange(len(steps)) * config.global_batch
        self._position = (step_starts[:, None] + np.arange(config.local_batch)).ravel()
        self._sample_ids = np.asarray(window.sample_ids, np.int64)[self._position]
        self._draws = window.first_draw + self._position
        self._probability = np.asarray(window.probability, np.float64)[self._position]
        self._hints = hints[self._position]
        self._attempt = np.zeros(len(self._position), np.int64)
        self._missing = np.ones(len(self._position), np.bool_)
        self._bad: list[BadSample] = []
        size = config.transform.size
        if torch.cuda.is_available():
            # Pinned, so that copies to the GPU run beside the training; torch reuses pinned memory by itself.
            rows = torch.empty(len(self), size, size, 3, dtype=torch.uint8, pin_memory=True)
            self._images = rows.permute(0, 3, 1, 2)
        else:
            self._images = torch.from_numpy(buffers.take(len(self), size))
        self._rows_of_rgb: NDArray[np.uint8] = self._images.permute(0, 2, 3, 1).numpy()

    def __len__(self) -> int:
        return len(self._position)

    @property
    def done(self) -> bool:
        return not self._missing.any()

    def missing(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return those of `rows` that have no pixels yet."""
        return rows[self._missing[rows]]

    def spec(self, rows: NDArray[np.int64]) -> BatchSpec:
        """Return the spec of some rows as they stand now, substitutes included."""
        return BatchSpec(
            sample_ids=self._sample_ids[rows],
            draws=self._draws[rows],
            seed=self._config.seed,
            transform=self._config.transform,
            probability=self._hints[rows],
        )

    def fill(self, rows: NDArray[np.int64], spec: BatchSpec, pixels: Pixels) -> list[BadSample]:
        """Copy a reply into its rows and give bad rows their substitutes.

        Rows that came before, or that need another sample by now, are left alone: a reply may be late or come twice.
        Return the bad samples, with `row` counted in their step. Rows that got a substitute are still missing.
        """
        # The id tells a late reply for a bad sample from the one for its spare: both are for the same row.
        wanted = self._missing[rows] & (self._sample_ids[rows] == spec.sample_ids)
        bad = [sample for sample in pixels.bad if wanted[sample.row]]
        wanted[[sample.row for sample in bad]] = False
        received = pixels.images.transpose(0, 2, 3, 1)
        for row, place in zip(rows[wanted], np.flatnonzero(wanted), strict=True):
            self._rows_of_rgb[row] = received[place]  # one by one: all at once would copy them twice
        self._missing[rows[wanted]] = False
        return [self._substitute(int(rows[sample.row]), sample) for sample in bad]

    def batches(self) -> list[Batch]:
        """Return the batches of a group that is done, in step order."""
        local, batches = self._config.local_batch, []
        for number, step in enumerate(self.steps):
            rows = slice(number * local, (number + 1) * local)
            draws = self._draws[rows]
            batches.append(
                Batch(
                    images=self._images[rows],
                    sample_ids=self._sample_ids[rows],
                    draws=draws,
                    probability=self._probability[rows],
                    version=self._window.version,
                    step=step,
                    substituted=tuple(bad for bad in self._bad if draws[0] <= bad.draw <= draws[-1]),
                    wait_s=0.0,
                )
            )
        return batches

    def _substitute(self, row: int, sample: BadSample) -> BadSample:
        """Give a row its next spare; with none left it stays black."""
        found = replace(sample, row=row % self._config.local_batch)
        self._bad.append(found)
        spare = substitute(
            int(self._position[row]),
            int(self._attempt[row]),
            num_draws=len(self._window.sample_ids),
            num_spares=len(self._window.spare_ids),
        )
        if spare is None:
            self._rows_of_rgb[row] = 0
            self._missing[row] = False
            return found
        # The draw number stays, and with it the random numbers of the crop: only the sample changes.
        self._attempt[row] += 1
        self._sample_ids[row] = self._window.spare_ids[spare]
        self._probability[row] = self._hints[row] = self._window.spare_probability[spare]
        return found
