"""SimMIM (Xie et al., arXiv:2111.09886; METHODS section 2).

1. Hide 32-pixel blocks; encode all tokens, the hidden ones as mask tokens.
2. One linear layer predicts the pixels of each hidden token.
3. The loss is the mean absolute error of the hidden pixels; patches are not standardised.

Shapes: B batch, N tokens of the last stage, M masked, D width, P values of a predicted patch (stride^2 * 3).
"""

from functools import partial

from torch import Tensor, nn

from trainer.config import ModelConfig, require
from trainer.masking import Mask, take
from trainer.methods.base import SelectingMethod
from trainer.methods.losses import Losses, add_mto, add_predictor
from trainer.models.beit import RelativeEncoder
from trainer.models.mask_predictor import TokenPredictor, hardest_blocks
from trainer.models.swin import SwinEncoder, require_whole_squares
from trainer.models.vit import patchify
from trainer.models.weights import narrow_normal
from trainer.randomness import StepRandomness

COUNT_EPS = 1e-5  # official SimMIM adds it to the number of masked pixels


class Simmim(SelectingMethod):
    """Encoder of all tokens and a linear head."""

    default_masking = "simmim"
    encoder: RelativeEncoder | SwinEncoder

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        if config.encoder == "swin":
            require_whole_squares(config)
            require(
                not config.pass_.enabled,
                "pass needs a token for each patch; a swin encoder has none. Use encoder='vit'.",
            )
        self.encoder = SwinEncoder(config) if config.encoder == "swin" else RelativeEncoder(config)
        self.stride = self.encoder.stride
        self.head = nn.Linear(self.encoder.out_width, self.stride**2 * 3)
        self.predictor = TokenPredictor(config) if config.pass_.enabled and config.pass_.score == "pass" else None
        self.sometimes_unused = self.predictor is not None
        self.predictor_trains = self.sometimes_unused
        narrow_normal(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, images_BCHW: Tensor, randomness: StepRandomness, phase: str = "model") -> Losses:
        """Return the absolute error of the hidden pixels."""
        mask = self.draw_mask(len(images_BCHW), randomness, like=images_BCHW)
        return self.reconstruct(images_BCHW, mask)

    def reconstruct(self, images_BCHW: Tensor, mask: Mask) -> Losses:
        observe = self.observer(partial(self.encoder.split, mask=mask))
        tokens_BTD = self.encoder.encode(patchify(images_BCHW, self.config.patch_size), mask.mask_BN, observe)
        coarse = self.encoder.coarse_mask(mask)
        prediction_BMP = self.head(take(tokens_BTD[:, 1:], coarse.masked_BM))
        target_BMP = take(patchify(images_BCHW, self.stride), coarse.masked_BM)
        loss_BM = (prediction_BMP.to(target_BMP.dtype) - target_BMP).abs().mean(dim=-1)
        pixels = loss_BM.numel() * self.stride**2  # (|x - x^| m).sum() / (m.sum() + eps) / 3, m per pixel
        detached = loss_BM.detach()
        losses = Losses(
            loss_BM.sum() * self.stride**2 / (pixels + COUNT_EPS),
            detached.mean(dim=1),
            coarse.spread(detached),
            coarse.mask_BN,
            {},
        )
        losses = add_mto(losses, observe)
        if self.predictor is None or not (self.training and self.predictor_trains):
            return losses
        seen_BTD = tokens_BTD.detach() if self.config.pass_.detach_encoder else tokens_BTD
        predicted_BM = self.predictor(seen_BTD).gather(1, coarse.masked_BM)
        return add_predictor(losses, predicted_BM, loss_BM, tokens_BTD.shape[1] - 1)

    def difficulty(self, images_BCHW: Tensor) -> Tensor:
        """Return the predicted loss of every patch of whole images, [B, N]."""
        assert self.predictor is not None, "the config has no mask predictor"
        predicted_BN: Tensor = self.predictor(self.encoder.features(images_BCHW))
        return predicted_BN

    def difficulty_mask(self, predicted_BN: Tensor) -> Mask:
        return hardest_blocks(predicted_BN, self.config)

    def to_pixels(self, prediction_BNP: Tensor, patches_BNP: Tensor) -> Tensor:
        """Return the predictions: they are normalised pixels."""
        return prediction_BNP

    def predict(self, images_BCHW: Tensor, mask: Mask) -> Tensor:
        tokens_BND = self.encoder.encode(patchify(images_BCHW, self.config.patch_size), mask.mask_BN)[:, 1:]
        prediction_BNP: Tensor = self.head(tokens_BND)
        return prediction_BNP

    def no_decay(self, name: str, parameter: nn.Parameter) -> bool:
        """Free vectors, biases, the class token and Swin's mask token; the position table decays (official code)."""
        swin_mask = name == "encoder.mask_token" and self.config.encoder == "swin"
        return super().no_decay(name, parameter) or name == "encoder.cls_token" or swin_mask
