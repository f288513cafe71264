"""SimMIM (Xie et al., arXiv:2111.09886; METHODS section 2).

1. Hide 32-pixel blocks; encode all tokens, the hidden ones as mask tokens.
2. One linear layer predicts the pixels of each hidden token.
3. The loss is the mean absolute error of the hidden pixels, as they come, without standardising patches.

Shapes: B batch, N tokens of the last stage, M masked, D width, P values of a predicted patch (stride^2 * 3).
"""

from functools import partial

from torch import Tensor, nn

from trainer.beit import RelativeEncoder, narrow_normal
from trainer.config import ModelConfig
from trainer.masking import Mask, split_tokens, take
from trainer.methods.base import Losses, Method, add_mto
from trainer.randomness import StepRandomness
from trainer.swin import SwinEncoder, require_whole_squares
from trainer.vit import patchify

COUNT_EPS = 1e-5  # official SimMIM adds it to the number of masked pixels


class Simmim(Method):
    """Encoder of all tokens and a linear head."""

    default_masking = "simmim"
    encoder: RelativeEncoder | SwinEncoder

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        if config.encoder == "swin":
            require_whole_squares(config)
        self.encoder = SwinEncoder(config) if config.encoder == "swin" else RelativeEncoder(config)
        self.stride = self.encoder.stride
        self.head = nn.Linear(self.encoder.out_width, self.stride**2 * 3)
        narrow_normal(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, images_BCHW: Tensor, randomness: StepRandomness, phase: str = "model") -> Losses:
        """Return the absolute error of the hidden pixels."""
        mask = self.draw_mask(len(images_BCHW), randomness, like=images_BCHW)
        return self.reconstruct(images_BCHW, mask)

    def reconstruct(self, images_BCHW: Tensor, mask: Mask) -> Losses:
        """Return the losses for a given mask of patches."""
        observe = self.observer(partial(split_tokens, mask=mask))
        tokens_BND = self.encoder.encode(patchify(images_BCHW, self.config.patch_size), mask.mask_BN, observe)[:, 1:]
        coarse = self.encoder.coarse_mask(mask)
        prediction_BMP = self.head(take(tokens_BND, coarse.masked_BM))
        target_BMP = take(patchify(images_BCHW, self.stride), coarse.masked_BM)
        loss_BM = (prediction_BMP.to(target_BMP.dtype) - target_BMP).abs().mean(dim=-1)
        pixels = loss_BM.numel() * self.stride**2
        detached = loss_BM.detach()
        losses = Losses(
            loss_BM.sum() * self.stride**2 / (pixels + COUNT_EPS),
            detached.mean(dim=1),
            coarse.spread(detached),
            coarse.mask_BN,
            {},
        )
        return add_mto(losses, observe)

    def predict(self, images_BCHW: Tensor, mask: Mask) -> Tensor:
        """Return predictions for all tokens in image order, [B, N, P], for pictures."""
        tokens_BND = self.encoder.encode(patchify(images_BCHW, self.config.patch_size), mask.mask_BN)[:, 1:]
        prediction_BNP: Tensor = self.head(tokens_BND)
        return prediction_BNP

    def no_decay(self, name: str, parameter: nn.Parameter) -> bool:
        """Free vectors, biases, the class token and Swin's mask token; the position table decays (official code)."""
        swin_mask = name == "encoder.mask_token" and self.config.encoder == "swin"
        return super().no_decay(name, parameter) or name == "encoder.cls_token" or swin_mask
