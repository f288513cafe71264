"""ConMIM: masked image modeling with a denoising contrast (Yi et al., arXiv:2205.09616; METHODS section 4).

1. The student encodes the image with hidden patches as mask tokens; the teacher, a moving average of it, encodes the
   whole image under colour changes.
2. Both project every token to a unit vector.
3. Each hidden token of the student must match the teacher's token of the same place among all places of its image.

Shapes: B batch, N patches, M masked, T tokens (1 + N), D width, K projected width.
"""

import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.config import ModelConfig
from trainer.masking import Mask, split_tokens, take
from trainer.methods.base import Method
from trainer.methods.colour_jitter import change_colours
from trainer.methods.losses import Losses, add_mto, masked_losses
from trainer.models.beit import RelativeEncoder
from trainer.models.vit import patchify
from trainer.models.weights import freeze_copy, move_average, narrow_normal
from trainer.precision import wide, without_autocast
from trainer.progress import Progress
from trainer.randomness import StepRandomness
from trainer.ranks.collectives import GlobalBatchNorm


class Conmim(Method):
    """Student and teacher encoders, each with a projector."""

    default_masking = "simmim"
    no_decay_names = ("encoder.cls_token",)
    encoder: RelativeEncoder
    teacher_encoder: RelativeEncoder

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.encoder, self.projector = RelativeEncoder(config), make_projector(config)
        self.teacher_encoder = freeze_copy(RelativeEncoder(config), self.encoder)
        self.teacher_projector = freeze_copy(make_projector(config), self.projector)

    def end_step(self, progress: Progress) -> None:
        momentum = cosine_momentum(progress, self.config.conmim.momentum)
        move_average(self.teacher_encoder, self.encoder, momentum)
        move_average(self.teacher_projector, self.projector, momentum)

    def forward(self, images_BCHW: Tensor, randomness: StepRandomness, phase: str = "model") -> Losses:
        # The teacher sees the same crop in other colours: another crop would misalign the places that must match.
        mask = self.draw_mask(len(images_BCHW), randomness, like=images_BCHW)
        changed = change_colours(images_BCHW, randomness, mean=self.pixel_mean, std=self.pixel_std)
        return self.contrast(images_BCHW, changed, mask)

    def contrast(self, student_BCHW: Tensor, teacher_BCHW: Tensor, mask: Mask) -> Losses:
        """Return the losses for a given mask and the two views of one crop.

        L = -1/(B M) sum over hidden i of log(exp(q_i k_i / tau) / sum_j exp(q_i k_j / tau)), j over the N places of
        the same image; q and k are unit vectors [B, N, K] of student and teacher (METHODS section 4; official code).
        """
        observe = self.observer(partial(split_tokens, mask=mask))
        patch = self.config.patch_size
        tokens_BTD = self.encoder.encode(patchify(student_BCHW, patch), mask.mask_BN, observe)
        query_BNK = self._project(self.projector, tokens_BTD)
        with torch.no_grad():
            key_BNK = self._project(self.teacher_projector, self.teacher_encoder.features(teacher_BCHW))
        # Negatives are the other places of the same image alone: the batch adds none (official code).
        logits_BMN = take(query_BNK, mask.masked_BM) @ key_BNK.mT / self.config.conmim.temperature
        loss_BM = F.cross_entropy(logits_BMN.flatten(0, 1), mask.masked_BM.flatten(), reduction="none")
        return add_mto(masked_losses(loss_BM.view_as(mask.masked_BM), mask), observe)

    def _project(self, projector: nn.Module, tokens_BTD: Tensor) -> Tensor:
        """Return unit vectors of the patch tokens, [B, N, K], in float32 or better."""
        batch, count = tokens_BTD.shape[:2]
        # The class token is dropped last: it counts in the batch statistics (official code).
        with without_autocast(tokens_BTD):
            return F.normalize(projector(wide(tokens_BTD).flatten(0, 1)).view(batch, count, -1), dim=-1)[:, 1:]


def make_projector(config: ModelConfig) -> nn.Sequential:
    """Return the projector of [n, D] rows to [n, K]: three linear layers, each with a norm over the global batch.

    The last norm has no weights (official code). A norm by rank would make the loss depend on the number of ranks.
    """
    hidden, out = config.conmim.hidden, config.conmim.projection
    layers = nn.Sequential(
        nn.Linear(config.width, hidden, bias=False),
        GlobalBatchNorm(hidden),
        nn.ReLU(inplace=True),
        nn.Linear(hidden, hidden, bias=False),
        GlobalBatchNorm(hidden),
        nn.ReLU(inplace=True),
        nn.Linear(hidden, out, bias=False),
        GlobalBatchNorm(out, affine=False),
    )
    for layer in layers:
        if isinstance(layer, nn.Linear):
            narrow_normal(layer.weight)
    return layers


def cosine_momentum(progress: Progress, start: float) -> float:
    """Return the teacher's momentum, 1 - (1 - start) (1 + cos(pi t)) / 2 at share t of the run: `start` to 1."""
    return 1 - (1 - start) * 0.5 * (1 + math.cos(math.pi * progress.fraction))
