"""Few-shot classification on frozen features: 1 to 16 labelled images a class, several draws (METHODS section 9).

Each draw picks its images by a generator seeded for it, trains a classifier on them and classifies the whole test set.
The classifier is logistic regression, with its strength chosen by cross-validation inside the draw, or CL-MAE's: the
linear probe with LARS and an unscaled rate.

Shapes: B images, D width, C classes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from trainer.config import choose, require
from trainer.evaluate.features import Features
from trainer.evaluate.fit import Figures, Progress
from trainer.evaluate.linear import probe_features
from trainer.evaluate.metrics import top_k
from trainer.evaluate.recipes import LinearConfig

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Inverse regularisations that cross-validation chooses from."""
FOLDS = 5
LARS_BATCH = 16  # small, so that a few shots give some steps an epoch
_ITERATIONS = 200
_CLOSE, _ROUGH = 1e-7, 1e-4  # largest gradient of the mean loss, for the result and while choosing


@dataclass(frozen=True, kw_only=True, slots=True)
class FewShotConfig:
    """The draws and the classifier."""

    shots: tuple[int, ...] = (1, 2, 4, 5, 8, 16)
    """Labelled images a class."""
    draws: int = 3
    """Draws for each number of shots; mean and standard deviation are over them."""
    classifier: Literal["logistic", "lars"] = "logistic"
    seed: int = 0

    def __post_init__(self) -> None:
        require(bool(self.shots) and min(self.shots) >= 1, f"shots must be 1 or more; got {self.shots}.")
        require(self.draws >= 1, f"draws must be 1 or more; got {self.draws}.")
        choose(self.classifier, CLASSIFIERS, "classifier")


def few_shot(
    train: Features, test: Features, config: FewShotConfig, *, progress: Progress | None = None
) -> list[Figures]:
    """Return one row a number of shots: mean and standard deviation over draws of acc1 and acc5, in [0, 1].

    Raises:
        ValueError: a class has fewer images than the most shots.
    """
    fewest = np.unique(train.labels, return_counts=True)[1].min()
    require(
        max(config.shots) <= fewest,
        f"shots must be at most the images of the smallest class ({fewest}); got {max(config.shots)}. Leave out the "
        "larger numbers of shots.",
    )
    classify = CLASSIFIERS[config.classifier]
    rows, done = [], 0
    for shots in config.shots:
        found = []
        for draw in range(config.draws):
            picked = draw_shots(train.labels, shots, seed=[config.seed, shots, draw])
            found.append(classify(Features(train.values[picked], train.labels[picked]), test))
            done += 1
            if progress:
                progress(done, len(config.shots) * config.draws)
        row: Figures = {"shots": shots}
        for name in ("acc1", "acc5"):
            values = np.array([figures[name] for figures in found])
            row |= {name: float(values.mean()), f"{name}_std": float(values.std(ddof=1)) if len(values) > 1 else 0.0}
        rows.append(row)
    return rows


def draw_shots(labels: NDArray[np.int64], shots: int, *, seed: Sequence[int]) -> NDArray[np.int64]:
    """Return the rows of `shots` images of every class that occurs, int64[classes * shots], class by class.

    Each draw has a seed of its own: it does not depend on the draws before it.
    """
    generator = np.random.default_rng(seed)
    classes = np.unique(labels)
    return np.concatenate([generator.choice(np.flatnonzero(labels == c), shots, replace=False) for c in classes])


def logistic(train: Features, test: Features) -> Figures:
    """Return acc1, acc5 and the strength, chosen by folds, of logistic regression on features of unit variance."""
    # Float64: the gradient's tolerance is at float32's rounding.
    values, labels = torch.from_numpy(train.values).double(), torch.from_numpy(train.labels)
    mean, std = values.mean(dim=0), values.std(dim=0, correction=0).clamp(min=1e-6)
    values, held_out = (values - mean) / std, (torch.from_numpy(test.values).double() - mean) / std
    strength = choose_strength(values, labels)
    weight_CD, bias_C = logistic_regression(values, labels, strength)
    scores = held_out @ weight_CD.T + bias_C
    return {**top_k(scores, torch.from_numpy(test.labels)), "strength": strength}


def choose_strength(values_BD: Tensor, labels_B: Tensor) -> float:
    """Return the inverse regularisation that classifies held-out folds best, the strongest of equals; 1 for one shot.

    Folds are stratified: image i of a class is in fold i mod F, with F at most the images of the smallest class.
    """
    folds = min(FOLDS, int(torch.unique(labels_B, return_counts=True)[1].min()))
    if folds < 2:
        return 1.0
    # Stratified, so that every fold trains on every class even with two images of each.
    place = torch.zeros_like(labels_B)
    for label in torch.unique(labels_B):
        mine = labels_B == label
        place[mine] = torch.arange(int(mine.sum())) % folds
    hits = []
    for strength in STRENGTHS:
        right = 0
        for fold in range(folds):
            inside, outside = place != fold, place == fold
            weight, bias = logistic_regression(values_BD[inside], labels_B[inside], strength, tolerance=_ROUGH)
            scores = values_BD[outside] @ weight.T + bias
            right += int((scores.argmax(dim=1) == labels_B[outside]).sum())
        hits.append(right)
    return STRENGTHS[int(np.argmax(hits))]


def logistic_regression(
    values_BD: Tensor, labels_B: Tensor, strength: float, *, tolerance: float = _CLOSE
) -> tuple[Tensor, Tensor]:
    """Return (weights [C, D], biases [C]) that minimise strength * sum of cross-entropies + |weights|^2 / 2.

    The objective is divided by strength * B, so that one tolerance serves all, and solved by L-BFGS. C is one above the
    largest label; the weights of labels that do not occur mean nothing.
    """
    classes = int(labels_B.max()) + 1
    weight = torch.zeros(classes, values_BD.shape[1], dtype=values_BD.dtype, requires_grad=True)
    bias = torch.zeros(classes, dtype=values_BD.dtype, requires_grad=True)
    solver = torch.optim.LBFGS(
        [weight, bias],
        max_iter=_ITERATIONS,
        tolerance_grad=tolerance,
        tolerance_change=1e-12,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        solver.zero_grad()
        errors = F.cross_entropy(values_BD @ weight.T + bias, labels_B)
        loss = errors + weight.square().sum() / (2 * strength * len(labels_B))
        torch.autograd.backward(loss)
        return loss

    with torch.enable_grad():  # the caller may be inside no_grad
        solver.step(closure)  # type: ignore[no-untyped-call]
    return weight.detach(), bias.detach()


def lars(train: Features, test: Features) -> Figures:
    """Return acc1 and acc5 of CL-MAE's probe: LARS, batch norm without weights, a rate not scaled by the batch."""
    config = LinearConfig(lr_batch=0, batch=LARS_BATCH, augment=False)
    found = probe_features(train, test, config, device=torch.device("cpu"))
    return {"acc1": found["acc1"], "acc5": found["acc5"]}


CLASSIFIERS: dict[str, Callable[[Features, Features], Figures]] = {"logistic": logistic, "lars": lars}
