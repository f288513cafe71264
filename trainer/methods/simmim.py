"""SimMIM (Xie et al., arXiv:2111.09886; METHODS section 2).

1. Hide 32-pixel blocks; encode all tokens, the hidden ones as mask tokens.
2. One linear layer predicts the pixels of each hidden token.
3. The loss is the mean absolute error of the hidden pixels; patches are not standardised.

Shapes: B batch, N tokens of the last stage, M masked, T tokens (1 + N), D width, P values of a predicted patch
(stride^2 * 3).
"""

from functools import partial

from torch import Tensor, nn

from trainer.config import ModelConfig, require
from trainer.masking import Mask, hide_blocks, shrink_mask, simmim_blocks, split_tokens, take
from trainer.methods.base import SelectingMethod
from trainer.methods.losses import Losses, add_mto, add_predictor, masked_losses
from trainer.models.beit import RelativeEncoder
from trainer.models.swin import SwinEncoder
from trainer.models.vit import LAYER_NORM_EPS, make_blocks, patchify, run_blocks
from trainer.models.weights import init_xavier, narrow_normal

COUNT_EPS = 1e-5  # official SimMIM adds it to the number of masked pixels


class Simmim(SelectingMethod):
    """Encoder of all tokens and a linear head."""

    default_masking = "simmim"
    encoder: RelativeEncoder | SwinEncoder

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        require(
            config.encoder != "swin" or not config.pass_.enabled,
            "pass needs a token for each patch; a swin encoder has none. Use encoder='vit'.",
        )
        self.encoder = SwinEncoder(config) if config.encoder == "swin" else RelativeEncoder(config)
        self.stride = self.encoder.stride
        self.head = nn.Linear(self.encoder.out_width, self.stride**2 * 3)
        self.predictor = TokenPredictor(config) if config.pass_.enabled and config.pass_.score == "pass" else None
        self.sometimes_unused = self.predictor is not None
        self.predictor_trains = self.sometimes_unused
        # As in the official code, where Swin frees its mask token and ViT does not; both decay the position table.
        self.no_decay_names = ("encoder.cls_token", *(["encoder.mask_token"] if config.encoder == "swin" else []))
        narrow_normal(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def reconstruct(self, images_BCHW: Tensor, mask: Mask) -> Losses:
        """Return the losses of the hidden pixels.

        L = sum(|x - x^| m) / (sum(m) + 1e-5) / 3, m float[B, 1, H, W] the mask by pixel (official SimMIM, L1).
        """
        observe = self.observer(partial(split_tokens, mask=mask))
        tokens_BTD = self.encoder.encode(patchify(images_BCHW, self.config.patch_size), mask.mask_BN, observe)
        coarse = shrink_mask(mask, self.stride // self.config.patch_size)
        prediction_BMP = self.head(take(tokens_BTD[:, 1:], coarse.masked_BM))
        target_BMP = take(patchify(images_BCHW, self.stride), coarse.masked_BM)
        loss_BM = (prediction_BMP.to(target_BMP.dtype) - target_BMP).abs().mean(dim=-1)
        # Only hidden tokens go through the head: the sums over pixels are then means times counts.
        pixels = loss_BM.numel() * self.stride**2
        total = loss_BM.sum() * self.stride**2 / (pixels + COUNT_EPS)
        losses = add_mto(masked_losses(loss_BM, coarse)._replace(total=total), observe)
        if self.predictor is None or not (self.training and self.predictor_trains):
            return losses
        seen_BTD = tokens_BTD.detach() if self.config.pass_.detach_encoder else tokens_BTD
        predicted_BM = self.predictor(seen_BTD).gather(1, coarse.masked_BM)
        return add_predictor(losses, predicted_BM, loss_BM, tokens_BTD.shape[1] - 1)

    def difficulty(self, images_BCHW: Tensor) -> Tensor:
        assert self.predictor is not None, "the config has no mask predictor"
        predicted_BN: Tensor = self.predictor(self.encoder.features(images_BCHW))
        return predicted_BN

    def difficulty_mask(self, predicted_BN: Tensor) -> Mask:
        """Return the mask of the 32-pixel blocks with the largest mean predicted loss, as many as training hides."""
        blocks, scale = simmim_blocks(self.config)
        mean_BK = predicted_BN.view(-1, blocks, scale, blocks, scale).mean(dim=(2, 4)).flatten(1)
        return hide_blocks(mean_BK.argsort(dim=1, descending=True, stable=True), self.config)

    def predict(self, images_BCHW: Tensor, mask: Mask) -> Tensor:
        """Return the head's output for all tokens of the last stage, [B, N, P]."""
        tokens_BND = self.encoder.encode(patchify(images_BCHW, self.config.patch_size), mask.mask_BN)[:, 1:]
        prediction_BNP: Tensor = self.head(tokens_BND)
        return prediction_BNP


class TokenPredictor(nn.Module):
    """Predictor of each patch's loss for patch-aware selection (PASS): blocks of the encoder's width on its tokens."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.blocks = make_blocks(config.width, config.pass_.predictor_depth, config.heads)
        self.norm = nn.LayerNorm(config.width, eps=LAYER_NORM_EPS)
        self.pred = nn.Linear(config.width, 1)
        self.apply(init_xavier)

    def forward(self, tokens_BTD: Tensor) -> Tensor:
        """Return the predicted loss of each patch, [B, N], from encoder tokens behind a class token."""
        patches_BND = run_blocks(self.blocks, tokens_BTD)[:, 1:]
        predicted_BN: Tensor = self.pred(self.norm(patches_BND)).squeeze(-1)
        return predicted_BN
