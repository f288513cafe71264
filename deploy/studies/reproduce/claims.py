"""The papers' claims as data: the arms of each comparison, the papers' figures, and the directions they found.

An arm is one way to train; the arms of a claim have the same model, steps and seeds, unless the claim is about one of
these. `sweep` holds the papers' ablations. A new claim is one entry of CLAIMS.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

SIZE_OF_TEMPERATURE = {0.01: 0.004, 0.05: 0.122, 0.08: 0.236, 0.2: 0.495, 0.4: 0.592, 0.6: 0.614}
"""The paper's fixed temperatures -> their effective sizes on ImageNet-1K (Lin et al., CVPR 2025; METHODS section 8).
The arms hold the sizes: on other data the same temperature has another size.
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Arm:
    """One way to train."""

    name: str
    """Name in the table and of the run's folder."""
    policy: str = "uniform"
    """Policy of the draw: a name in scoring.POLICIES."""
    schedule: str = "cosine"
    """Effective size by progress: a name in scoring.SCHEDULES."""
    start: float = 0.20
    """Effective size at the start; `end` is the one at the end."""
    end: float = 0.614
    features: str = "hog"
    """Feature space of the prototypes."""
    num_clusters: int = 100
    clusters_from: Literal["kmeans", "labels"] = "kmeans"
    """labels: the classes are the clusters, the paper's oracle."""
    shuffled: bool = False
    """A control: the distances are dealt to the images at random, so that other images are drawn, equally often."""
    method: str = "mae"
    """A name in trainer.METHODS."""
    model: Mapping[str, Any] = field(default_factory=dict)
    """Fields of ModelConfig that this arm changes."""
    cost: float = 1.0
    """Time of a step of the tiny model relative to a MAE step, on a CPU; for planning."""
    paper: Mapping[str, float] = field(default_factory=dict)
    """Metric -> the paper's figure on ImageNet-1K, in per cent."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Expectation:
    """One direction that the paper found."""

    arm: str
    """The arm that should be better."""
    than: str | float
    """The arm that it should beat, or a number that it should exceed."""
    metric: str = "nn_cls"
    or_level: bool = False
    """Being level counts: the difference of the means is above minus one standard error of the difference."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Claim:
    """One comparison of a paper."""

    title: str
    """The claim in one sentence."""
    source: str
    """Paper and table."""
    arms: tuple[Arm, ...]
    expected: tuple[Expectation, ...]
    metrics: tuple[str, ...] = ("nn_cls", "nn_mean", "white_cls", "white_mean")
    """Columns of the table."""
    baseline: str | None = None
    """The arm that RAUC is taken against, where the claim is about the training curve."""
    sweep: tuple[Arm, ...] = ()
    """Further arms with --sweep: the paper's ablations."""


CURRICULUM_PAPER = "Lin et al., CVPR 2025"
SELECTION_PAPER = "PASS, patch-aware sample selection"
CLMAE_PAPER = "Madan et al., WACV 2024"
MTO_PAPER = "Masked Token Optimization"


def _prototypical(name: str = "prototypical", **fields: Any) -> Arm:
    return Arm(name=name, policy="prototypical", **fields)


def _fixed(temperature: float, nn: float) -> Arm:
    size = SIZE_OF_TEMPERATURE[temperature]
    return _prototypical(f"fixed-{temperature}", schedule="fixed", start=size, paper={"nn_cls": nn})


def _pass(name: str, *, paper: Mapping[str, float] | None = None, **settings: Any) -> Arm:
    score = settings.get("score", "pass")
    return Arm(
        name=name, policy=score, model={"pass_": {"enabled": True, **settings}}, cost=1.2, paper=dict(paper or {})
    )


UNIFORM = Arm(name="uniform", paper={"nn_cls": 30.25})
HARD = Arm(name="hard", policy="hard", paper={"nn_cls": 24.63})
ANNEALED = _prototypical(paper={"nn_cls": 47.40})
MAE = Arm(name="mae")
MTO = Arm(name="mto", model={"mto": {"enabled": True}}, cost=1.1, paper={"rauc": 1.32})

START = Arm(name="before-training")
"""The encoder that all arms of a seed start from: a row of every table, but no arm of a claim."""

CLAIMS: dict[str, Claim] = {
    "prototypes": Claim(
        title="A curriculum from prototypical to general images beats uniform draws at equal steps",
        source=f"{CURRICULUM_PAPER}, 800 epochs",
        arms=(ANNEALED, UNIFORM, HARD),
        expected=(Expectation(arm="prototypical", than="uniform"), Expectation(arm="prototypical", than="hard")),
        sweep=(
            _prototypical("shuffled", shuffled=True),
            Arm(name="replacement", policy="uniform_replacement"),  # a control: the curriculum draws so, uniform not
        ),
    ),
    "temperature": Claim(
        title="An annealed temperature beats every fixed one",
        source=f"{CURRICULUM_PAPER}, fixed temperatures",
        arms=(
            _prototypical(paper={"nn_cls": 41.05}),
            _fixed(0.05, 29.51),
            _fixed(0.2, 41.57),
            _fixed(0.6, 35.17),
            Arm(name="fixed-infinite", policy="uniform_replacement", paper={"nn_cls": 31.70}),
        ),
        expected=tuple(
            Expectation(arm="prototypical", than=name)
            for name in ("fixed-0.05", "fixed-0.2", "fixed-0.6", "fixed-infinite")
        ),
        sweep=(_fixed(0.01, 5.69), _fixed(0.08, 39.67), _fixed(0.4, 36.86)),
    ),
    "hard": Claim(
        title="Hard images first is worse than uniform draws",
        source=f"{CURRICULUM_PAPER}, against Sorscher et al., NeurIPS 2022",
        arms=(HARD, UNIFORM, ANNEALED),
        expected=(Expectation(arm="uniform", than="hard"), Expectation(arm="prototypical", than="hard")),
    ),
    "features": Claim(
        title="The curriculum helps in every feature space, more in a better one",
        source=f"{CURRICULUM_PAPER}, feature spaces",
        arms=(
            Arm(name="uniform", paper={"nn_cls": 31.70}),
            _prototypical("hog"),
            _prototypical("sift", features="sift", paper={"nn_cls": 36.85}),
            _prototypical("untrained", features="untrained", paper={"nn_cls": 32.63}),
            _prototypical("oracle", clusters_from="labels", paper={"nn_cls": 37.83}),
        ),
        expected=tuple(Expectation(arm=name, than="uniform") for name in ("hog", "sift", "untrained", "oracle")),
        sweep=(_prototypical("pixels", features="pixels"),),
    ),
    "clusters": Claim(
        title="The number of clusters matters little around the one that Davies-Bouldin chooses",
        source=f"{CURRICULUM_PAPER}, number of clusters",
        arms=(UNIFORM, *(_prototypical(f"clusters-{k}", num_clusters=k) for k in (20, 100, 400))),
        expected=tuple(Expectation(arm=f"clusters-{k}", than="uniform") for k in (20, 100, 400)),
        sweep=tuple(_prototypical(f"clusters-{k}", num_clusters=k) for k in (10, 50, 200, 1000)),
    ),
    "pass": Claim(
        title="Training on the worst-reconstructed 30 % costs 37 % of the budget and loses nothing",
        source=f"{SELECTION_PAPER}, 200 epochs",
        arms=(MAE, _pass("pass", paper={"linear": 52.5}), _pass("bss", score="bss", paper={"linear": 48.1})),
        expected=(Expectation(arm="pass", than="mae", or_level=True), Expectation(arm="pass", than="bss")),
        sweep=(
            *(_pass(f"pass-keep-{keep}", keep=keep) for keep in (0.2, 0.4, 0.5)),
            *(_pass(f"pass-tau-{tau}", temperature=tau) for tau in (0.05, 0.5, 1.0)),
            *(
                replace(_pass(f"pass-mask-{ratio}"), model={"pass_": {"enabled": True}, "mask_ratio": ratio})
                for ratio in (0.4, 0.6, 0.9)
            ),
        ),
    ),
    "fewshot": Claim(
        title="The curriculum's encoder learns more from five labelled images a class",
        source=f"{CURRICULUM_PAPER}, 5-shot linear probe, mean over eight data sets",
        arms=(_prototypical(paper={"shot5_cls": 47.23}), Arm(name="uniform", paper={"shot5_cls": 41.77})),
        expected=(Expectation(arm="prototypical", than="uniform", metric="shot5_cls"),),
        metrics=("shot5_cls", "shot5_mean", "nn_cls"),
    ),
    "clmae": Claim(
        title="Masks learned from easy to hard beat random masks",
        source=f"{CLMAE_PAPER}, nearest neighbours on ImageNet-1K (+3.9)",
        arms=(MAE, Arm(name="clmae", method="clmae", model={"norm_pix": False}, cost=6.5)),
        expected=(Expectation(arm="clmae", than="mae"), Expectation(arm="clmae", than="mae", metric="nn_mean")),
        sweep=(
            Arm(
                name="clmae-every-4", method="clmae", model={"norm_pix": False, "clmae": {"masker_every": 4}}, cost=2.0
            ),
            Arm(name="mae-raw-pixels", model={"norm_pix": False}),  # a control: CL-MAE's target with random masks
        ),
    ),
    "mto": Claim(
        title="Optimising the masked token makes training converge faster",
        source=f"{MTO_PAPER}, RAUC of MAE from epoch 100 to 400",
        arms=(MAE, MTO),
        expected=(Expectation(arm="mto", than=1.0, metric="rauc"),),
        metrics=("nn_cls", "nn_mean", "rauc"),
        baseline="mae",
        sweep=tuple(
            Arm(name=f"mto-{name}", cost=1.1, model={"mto": {"enabled": True, **weights}})
            for name, weights in {
                "spa": {"weight_entropy": 0.0, "weight_rank": 0.0},
                "entropy": {"weight_spa": 0.0, "weight_rank": 0.0},
                "rank": {"weight_spa": 0.0, "weight_entropy": 0.0},
                "tenth": {"weight_spa": 0.1, "weight_entropy": 0.1, "weight_rank": 0.1},
            }.items()
        )
        + tuple(
            Arm(name=f"mto-decoder-{depth}", cost=cost, model={"decoder_depth": depth, "mto": {"enabled": True}})
            for depth, cost in ((1, 0.8), (4, 1.6))
        ),
    ),
}
