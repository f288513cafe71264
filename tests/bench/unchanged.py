"""Shows that a refactor changed no behaviour: `python -m tests.bench.unchanged OUT.json [--compare BEFORE.json]`.

Prints one digest for each thing that must stay equal bit for bit on one machine: the pixels of a stream in process, the
draws of every policy through changes and reports, prototypes of real features, the losses of 20 steps of every method
with its add-ons, and the goldens. Run it before a move, and after it with --compare: it names what differs and exits 1.
Only public names are used, so that the script of today runs on the tree of yesterday.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from loader import BatchStream, LoaderConfig, LoaderWorker, LocalLoaders, StreamConfig, Transform, build_index
from loader.batches.windows import WeightedWindows
from scoring import POLICIES, Control, Selection, prototype_distances
from scoring.log.runlog import RunLog
from tests.scoring.configs import selection_config
from trainer import METHODS, TrainConfig, model_size, read_metrics, train

IMAGENET = Path(__file__).parents[3] / "shared" / "data" / "imagenet-200.tar"
STEPS = 20
SAMPLES = 1797


def digest(*arrays: Any) -> str:
    """Return the BLAKE2b digest of arrays' bytes, hex."""
    total = hashlib.blake2b(digest_size=16)
    for array in arrays:
        total.update(np.ascontiguousarray(array).tobytes())
    return total.hexdigest()


def pixels() -> dict[str, str]:
    """Digest the draws, samples and pixels of ImageNet JPEGs, for both kinds of crop."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        index = build_index([str(IMAGENET)], Path(folder) / "index.parquet")
        for kind in ("random_resized_crop", "center_crop"):
            config = StreamConfig(
                seed=0, global_batch=32, total_steps=8, window_steps=2, transform=Transform(kind=kind)
            )
            weights = np.random.default_rng(0).random(len(index))
            pool = LocalLoaders([LoaderWorker(index.path, LoaderConfig(threads=2))])
            stream = BatchStream(WeightedWindows(weights, config), pool, config)
            found[f"pixels {kind}"] = digest(
                *(part for batch in stream for part in (batch.draws, batch.sample_ids, batch.images.numpy()))
            )
            pool.close()
    return found


def draws() -> dict[str, str]:
    """Digest 12 windows of each policy, with a report, a manual value, another policy and a release on the way."""
    found = {}
    policies = {4: "prototypical", 7: "hard", 10: "uniform"}
    changes = {index: Control(kind="policy", value=value, author="me") for index, value in policies.items()}
    changes[5] = Control(kind="effective_size", value=0.45, author="me")
    changes[9] = Control(kind="release", author="me")
    distance = np.random.default_rng(0).beta(3.4, 2.38, SAMPLES).astype(np.float32)
    for policy in sorted({*POLICIES} - {"fixed_temperature"} | {"pass*prototypical"}):
        with tempfile.TemporaryDirectory() as folder:
            config = selection_config(seed=1, global_batch=64, window_steps=4, start=0.3, policy=policy)
            log = RunLog(Path(folder) / "run.sqlite")
            selection = Selection(distance, config, runlog=log)
            parts: list[Any] = []
            for kind in ("pass", "bss", "loss"):
                scores = np.random.default_rng(len(kind)).random(SAMPLES).astype(np.float32)
                selection.report_scores(
                    np.arange(SAMPLES), scores, kind=kind, step=0, producer=f"rank-{kind}", sequence=1
                )
            for kind in ("pass", "bss"):
                selection.control(Control(kind="round", value=kind, author="sweep"))
            for index in range(12):
                if index in changes:
                    selection.control(changes[index])
                window = selection.window(index, effective_size=0.2 + 0.02 * index)
                parts += [window.sample_ids, window.probability, window.spare_ids, window.digest.encode()]
            found[f"draws {policy}"] = digest(*(np.frombuffer(p, "u1") if isinstance(p, bytes) else p for p in parts))
            log.close()
    return found


def clusters() -> dict[str, str]:
    """Digest the prototypes of seeded features."""
    features = np.random.default_rng(0).normal(size=(2000, 24)).astype(np.float32)
    made = prototype_distances(features, num_clusters=20, seed=0)
    return {"prototypes": digest(made.distance, made.cluster)}


@dataclass
class SeededBatch:
    """A batch that is a pure function of its step."""

    images: torch.Tensor
    sample_ids: np.ndarray
    step: int
    version: int = 0
    wait_s: float = 0.0


class SeededStream:
    """Images of seeded noise over smooth ramps."""

    def __init__(self, config: TrainConfig) -> None:
        self._config, self._next = config, 0

    def __iter__(self):
        for step in range(self._next, self._config.total_steps):
            self._next = step + 1
            generator = np.random.default_rng([7, step])
            size = self._config.model.image_size
            ids = generator.integers(64, size=self._config.global_batch)
            ramps = np.linspace(0, 200, size)[None, None, None] * (ids[:, None, None, None] % 5 + 1) / 5
            noise = generator.integers(0, 55, (len(ids), 3, size, size))
            yield SeededBatch(torch.from_numpy((ramps + noise).astype(np.uint8)), ids, step)

    def state_dict(self) -> dict[str, int]:
        return {"step": self._next}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._next = state["step"]

    def stats(self) -> dict[str, float | int]:
        return {}


def losses() -> dict[str, str]:
    """Return the losses of 20 steps of every method, alone and with MTO; every number of a line of metrics counts."""
    torch.set_num_threads(1)
    small = {"width": 32, "depth": 2, "heads": 2, "decoder_width": 16, "decoder_depth": 1, "decoder_heads": 2}
    found = {}
    for method in sorted(METHODS):
        for mto in (False, True):
            model = model_size("tiny", image_size=16, patch_size=4, **small, mto={"enabled": mto})
            config = TrainConfig(
                method=method, model=model, total_steps=STEPS, global_batch=16, warmup_steps=2, window_steps=4,
                log_every=1, base_lr=1e-2, device="cpu", ema_decay=0.9, clip_norm=1.0, deterministic=True,
            )  # fmt: skip
            with tempfile.TemporaryDirectory() as folder:
                train(config, SeededStream(config), run_dir=Path(folder) / "run")
                lines = read_metrics(Path(folder) / "run" / "metrics.jsonl")
            kept = [{k: v for k, v in sorted(line.items()) if "loss" in k} for line in lines]
            name = f"losses {method}{' mto' if mto else ''}"
            found[name] = hashlib.blake2b(json.dumps(kept).encode(), digest_size=16).hexdigest()
            found[f"last loss {name}"] = repr(lines[-1]["loss"])
    torch.use_deterministic_algorithms(False)
    return found


def goldens() -> dict[str, str]:
    """Return our value for every number of the official implementations."""
    try:
        from tests.bench.goldens import golden_errors
    except ImportError:
        from trainer.bench.goldens import golden_errors
    return {f"golden {row['method']} {row['what']}": repr(row["ours"]) for row in golden_errors()}


def main() -> int:
    """Measure, write, and compare when asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="where the digests are written")
    parser.add_argument("--compare", type=Path, help="digests of the tree before the change")
    options = parser.parse_args()
    found: dict[str, str] = {}
    for part in (pixels, draws, clusters, losses, goldens):
        found |= part()
    options.out.write_text(json.dumps(found, indent=1))
    print(f"{len(found)} digests in {options.out}")
    if options.compare is None:
        return 0
    before = json.loads(options.compare.read_text())
    differ = sorted(name for name in before.keys() & found.keys() if before[name] != found[name])
    missing = sorted(before.keys() ^ found.keys())
    for name in differ:
        print(f"differs: {name}: {before[name]} -> {found[name]}")
    for name in missing:
        print(f"only on one side: {name}")
    print("all equal" if not differ and not missing else f"{len(differ)} differ, {len(missing)} on one side only")
    return 1 if differ or missing else 0


if __name__ == "__main__":
    sys.exit(main())
