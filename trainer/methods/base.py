"""What a method is to the training loop: a module whose forward returns `Losses`, and four hooks with defaults.

A new method is one file: subclass `Method`, give it an `encoder`, write `forward`, and add one line to
`trainer.methods.METHODS`.

Shapes: B batch, N patches, C channels, H W image.
"""

from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor, nn

from trainer.config import IMAGENET_MEAN, IMAGENET_STD, ModelConfig
from trainer.masking import MASKINGS, Mask
from trainer.mto import MtoObserver, Split
from trainer.progress import Progress
from trainer.randomness import Randomness, StepRandomness


class Losses(NamedTuple):
    """What one forward pass returns."""

    total: Tensor
    """Scalar that is minimised."""
    per_sample_B: Tensor
    """[B], the loss of each sample: its mean over masked patches. Reported as the sample's score; carries no
    gradient.
    """
    patch_loss_BN: Tensor
    """[B, N], the loss of each masked patch, 0 on visible ones. Carries no gradient."""
    mask_BN: Tensor
    """[B, N], 1 = masked."""
    parts: dict[str, Tensor]
    """Detached scalars for the log, by name."""


def add_mto(losses: Losses, *observers: MtoObserver | None) -> Losses:
    """Add the MTO losses of the observers, and what they saw to the log."""
    for number, observer in enumerate(observers):
        if observer is None:
            continue
        terms = observer.losses()
        suffix = f"_{number}" if number else ""
        log = {**{name: value.detach() for name, value in terms.items()}, **observer.report()}
        parts = {
            "method": losses.total.detach(),
            **losses.parts,
            **{name + suffix: value for name, value in log.items()},
        }
        losses = losses._replace(total=losses.total + sum(terms.values()), parts=parts)
    return losses


class Method(nn.Module):
    """Base of the methods."""

    default_masking: str = "random"
    """Masking of the official implementation, used when the config says auto."""
    sometimes_unused: bool = False
    """Some trained parameters take no part in some steps."""
    pixel_mean: tuple[float, float, float] = IMAGENET_MEAN
    """Mean by channel that was subtracted from the images; the loop sets it from the run's config."""
    pixel_std: tuple[float, float, float] = IMAGENET_STD
    """Standard deviation by channel that the images were divided by."""
    encoder: nn.Module
    """The network that is kept: `encoder.features(images_BCHW)` returns tokens [B, 1 + N, D]."""
    phases: tuple[str, ...] = ("model",)
    """Names of the alternating updates of a step, each with its own parameters and optimizer; one for most methods."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config

    def reconstruct(self, images_BCHW: Tensor, mask: Mask) -> Losses:
        """Return the losses for a given mask; methods that reconstruct pixels have it."""
        raise NotImplementedError

    def difficulty(self, images_BCHW: Tensor) -> Tensor:
        """Return the predicted loss of every patch of whole images, [B, N]; methods with a mask predictor have it."""
        raise NotImplementedError

    def difficulty_mask(self, predicted_BN: Tensor) -> Mask:
        """Return the mask that hides what is predicted to be hard."""
        raise NotImplementedError

    def draw_mask(self, batch: int, randomness: Randomness, *, like: Tensor) -> Mask:
        """Return the mask of a batch by the configured masking."""
        name = self.default_masking if self.config.masking == "auto" else self.config.masking
        return MASKINGS[name](self.config, batch, randomness, like=like)

    def forward(self, images_BCHW: Tensor, randomness: StepRandomness, phase: str = "model") -> Losses:
        """Return the losses of normalised images for one phase."""
        raise NotImplementedError

    def phase_parameters(self, phase: str) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the (name, parameter) pairs that a phase trains: by default all that require a gradient."""
        return ((name, parameter) for name, parameter in self.named_parameters() if parameter.requires_grad)

    def active_phases(self, progress: Progress) -> tuple[str, ...]:
        """Return the phases that run in this step: by default all."""
        return self.phases

    def no_decay(self, name: str, parameter: nn.Parameter) -> bool:
        """Tell whether a parameter is free of weight decay: vectors and biases (timm's rule, used by MAE)."""
        return parameter.ndim <= 1 or name.endswith(".bias")

    def observer(self, split: Split) -> MtoObserver | None:
        """Return what watches the tokens of each layer for the MTO losses, None when they are off."""
        return MtoObserver(self.config.mto, split) if self.config.mto.enabled else None

    def begin_step(self, progress: Progress) -> None:
        """Set what depends on the progress of the run, before a step."""

    def end_step(self, progress: Progress) -> None:
        """Update what is not trained by gradient (a teacher), after a step."""
