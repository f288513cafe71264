"""The base of the methods: a module whose forward returns `Losses`, and hooks with defaults.

A new method is one file: subclass `Method`, give it an `encoder`, write `forward`, and add one line to
`trainer.methods.METHODS`. A method whose prediction can be shown as pixels is a `PixelMethod`; one that patch-aware
selection can score samples with is a `SelectingMethod`, and is named in `trainer.methods.SELECTING`.

Shapes: B batch, N patches, D width, P values of a patch, C channels, H W image.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator

from torch import Tensor, nn

from trainer.config import IMAGENET_MEAN, IMAGENET_STD, ModelConfig
from trainer.masking import MASKINGS, Mask
from trainer.methods.losses import Losses
from trainer.mto import MtoObserver, Split
from trainer.progress import Progress, predictor_trains
from trainer.randomness import StepRandomness


class Method(nn.Module, ABC):
    """A method, its networks and its losses."""

    default_masking: str = "random"
    """Masking of the official implementation, used when the config says auto."""
    sometimes_unused: bool = False
    """Some trained parameters take no part in some steps; DDP must then look for them."""
    pixel_mean: tuple[float, float, float] = IMAGENET_MEAN
    """Mean by channel that was subtracted from the images; the loop sets it from the run's config."""
    pixel_std: tuple[float, float, float] = IMAGENET_STD
    """Standard deviation by channel that the images were divided by."""
    encoder: nn.Module
    """The network that is kept after training: `encoder.features(images_BCHW)` returns tokens [B, 1 + N, D]."""
    no_decay_names: tuple[str, ...] = ()
    """Parameters without weight decay, besides vectors and biases, which never have it (timm's rule)."""
    phases: tuple[str, ...] = ("model",)
    """Names of the alternating updates of a step, each with its own parameters and optimizer; one for most methods."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config

    @abstractmethod
    def forward(self, images_BCHW: Tensor, randomness: StepRandomness, phase: str = "model") -> Losses:
        """Return the losses of normalised images for one phase.

        Every random number must come from `randomness`: a run then draws the same ones on any number of ranks, and
        after a restart.
        """

    def draw_mask(self, batch: int, randomness: StepRandomness, *, like: Tensor) -> Mask:
        """Return the mask of `batch` images on the device of `like`, by the configured masking.

        Row i depends on the step and on its place in the global batch alone, not on `batch`.
        """
        name = self.default_masking if self.config.masking == "auto" else self.config.masking
        return MASKINGS[name](self.config, batch, randomness, like=like)

    def phase_parameters(self, phase: str) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the (name, parameter) pairs that a phase trains: by default all that require a gradient.

        A parameter belongs to one phase: only that phase's backward pass and optimizer touch it.
        """
        return ((name, parameter) for name, parameter in self.named_parameters() if parameter.requires_grad)

    def active_phases(self, progress: Progress) -> tuple[str, ...]:
        """Return the phases that run in this step, in order: by default all. The first one gives the step's loss."""
        return self.phases

    def observer(self, split: Split) -> MtoObserver | None:
        """Return an observer of one forward pass for the MTO losses (METHODS section 6), None when they are off.

        `split` returns the (masked, visible) patch tokens, [B, M, D] and [B, V, D], of a layer's tokens.
        """
        return MtoObserver(self.config.mto, split) if self.config.mto.enabled else None

    def begin_step(self, progress: Progress) -> None:
        """Set the values that depend on the progress of the run: called before each step."""

    def end_step(self, progress: Progress) -> None:
        """Update the weights that no gradient trains (a teacher): called after each step's update."""


class PixelMethod(Method):
    """A method that predicts hidden pixels for a given mask."""

    def forward(self, images_BCHW: Tensor, randomness: StepRandomness, phase: str = "model") -> Losses:
        return self.reconstruct(images_BCHW, self.draw_mask(len(images_BCHW), randomness, like=images_BCHW))

    @abstractmethod
    def reconstruct(self, images_BCHW: Tensor, mask: Mask) -> Losses:
        """Return the losses of normalised images for a given mask: a step draws it, a sweep chooses it."""

    @abstractmethod
    def predict(self, images_BCHW: Tensor, mask: Mask) -> Tensor:
        """Return predictions for all patches in image order, [B, N, P], hidden or not: pictures show both."""

    def to_pixels(self, prediction_BNP: Tensor, patches_BNP: Tensor) -> Tensor:
        """Return predictions in the scale of normalised images, by default as they are.

        A method that standardises its targets gives each patch the mean and scale of the true patch back.
        """
        return prediction_BNP


class SelectingMethod(PixelMethod):
    """A method that may have a predictor of patch difficulty, for patch-aware selection (PASS; METHODS section 7).

    A subclass builds its predictor, and calls `add_predictor` on its losses while `predictor_trains`. A sweep hides the
    patches of `difficulty_mask`, and scores the sample by the losses of these patches.
    """

    predictor: nn.Module | None
    """Predicts the loss of each patch; None without the score `pass`."""
    predictor_trains: bool
    """The predictor's loss counts in this step."""

    @abstractmethod
    def difficulty(self, images_BCHW: Tensor) -> Tensor:
        """Return the predicted loss of every patch, [B, N], from the whole image (PASS, Eq. 4); needs the predictor."""

    @abstractmethod
    def difficulty_mask(self, predicted_BN: Tensor) -> Mask:
        """Return the mask M^p that hides the patches of largest predicted loss, as many as training hides."""

    def begin_step(self, progress: Progress) -> None:
        """Turn the mask predictor's loss on in the epochs before a selection."""
        self.predictor_trains = self.predictor is not None and predictor_trains(progress.epoch, self.config.pass_)
