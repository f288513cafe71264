"""Masked autoencoder (He et al., arXiv:2111.06377; METHODS section 1).

1. Hide patches at random; encode the visible ones only.
2. Decode the class token, the visible latents and one mask token for each hidden patch, all with decoder positions.
3. Predict the pixels of the hidden patches; the loss is their mean squared error, by default on patches standardised
   by their own mean and variance.

The decoder runs on [class | visible | masked] tokens, not in image order: attention does not see the order, positions
are added by index, and the masked tokens end up in one slice.

Shapes: B batch, N patches, V visible, M masked, D encoder width, E decoder width, P values of a patch.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from trainer.config import ModelConfig
from trainer.masking import Mask, take
from trainer.methods.base import Losses, Method, add_mto
from trainer.randomness import StepRandomness
from trainer.vit import LAYER_NORM_EPS, Encoder, init_xavier, make_blocks, patchify, sincos_positions

VARIANCE_EPS = 1e-6  # official MAE, norm_pix_loss


class Mae(Method):
    """Encoder of visible patches, decoder of all."""

    encoder: Encoder

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.encoder = Encoder(config)
        self.decoder = MaeDecoder(config, depth=config.decoder_depth, values=config.patch_size**2 * 3)

    def forward(self, images_BCHW: Tensor, randomness: StepRandomness, phase: str = "model") -> Losses:
        """Return the reconstruction loss of randomly hidden patches."""
        return self.reconstruct(images_BCHW, self.draw_mask(len(images_BCHW), randomness, like=images_BCHW))

    def reconstruct(self, images_BCHW: Tensor, mask: Mask) -> Losses:
        """Return the losses for a given mask."""
        patches_BNP = patchify(images_BCHW, self.config.patch_size)
        latent_BTD = self.encoder.encode_visible(patches_BNP, mask.visible_BV)
        return self.decode(latent_BTD, patches_BNP, mask)

    def decode(self, latent_BTD: Tensor, patches_BNP: Tensor, mask: Mask) -> Losses:
        """Return the losses of the hidden patches from the latents of the visible ones."""
        first_masked = 1 + mask.visible_BV.shape[1]
        observer = self.observer(lambda tokens: (tokens[:, first_masked:], tokens[:, 1:first_masked]))
        tokens_BTE = self.decoder.run(latent_BTD, mask, observer)
        prediction_BMP = self.decoder.predict(tokens_BTE[:, first_masked:])
        loss_BM = patch_errors(prediction_BMP, self.targets(take(patches_BNP, mask.masked_BM)))
        return add_mto(masked_losses(loss_BM, mask), observer)

    def targets(self, patches_BMP: Tensor) -> Tensor:
        """Return what the decoder should predict: the pixels, standardised patch by patch when `norm_pix` is on."""
        return standardise(patches_BMP) if self.config.norm_pix else patches_BMP

    def predict(self, images_BCHW: Tensor, mask: Mask) -> Tensor:
        """Return predictions for all patches in image order, [B, N, P], for pictures."""
        patches_BNP = patchify(images_BCHW, self.config.patch_size)
        latent_BTD = self.encoder.encode_visible(patches_BNP, mask.visible_BV)
        shuffled_BNP = self.decoder.predict(self.decoder.run(latent_BTD, mask)[:, 1:])
        order_BN = torch.cat([mask.visible_BV, mask.masked_BM], dim=1)
        return take(shuffled_BNP, order_BN.argsort(dim=1))


class MaeDecoder(nn.Module):
    """Narrow transformer from latents and mask tokens to values for each patch: its pixels, or a score."""

    def __init__(self, config: ModelConfig, *, depth: int, values: int) -> None:
        super().__init__()
        width = config.decoder_width
        self.embed = nn.Linear(config.width, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(sincos_positions(width, config.grid), requires_grad=False)
        self.blocks = make_blocks(width, depth, config.decoder_heads)
        self.norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.pred = nn.Linear(width, values)
        nn.init.normal_(self.mask_token, std=0.02)
        self.apply(init_xavier)

    def run(self, latent_BTD: Tensor, mask: Mask, observe: Callable[[Tensor], None] | None = None) -> Tensor:
        """Return decoded tokens in [class | visible | masked] order, [B, 1 + N, E]; `observe` sees every layer."""
        tokens_BTE = self.tokens(latent_BTD, mask)
        if observe:
            observe(tokens_BTE)
        for block in self.blocks:
            tokens_BTE = block(tokens_BTE)
            if observe:
                observe(tokens_BTE)
        return tokens_BTE

    def tokens(self, latent_BTD: Tensor, mask: Mask) -> Tensor:
        """Return the decoder's input, [B, 1 + N, E]: latents, then mask tokens, with positions."""
        seen_BTE = self.embed(latent_BTD)
        positions = self.pos_embed[0, 1:]
        cls = seen_BTE[:, :1] + self.pos_embed[:, :1]
        visible = seen_BTE[:, 1:] + positions[mask.visible_BV]
        masked = self.mask_token + positions[mask.masked_BM]
        return torch.cat([cls, visible, masked.to(cls.dtype)], dim=1)

    def predict(self, tokens_BKE: Tensor) -> Tensor:
        """Return pixels for decoded tokens."""
        pixels_BKP: Tensor = self.pred(self.norm(tokens_BKE))
        return pixels_BKP


def standardise(patches_BMP: Tensor) -> Tensor:
    """Return patches with mean 0 and (unbiased) variance 1 over all their values, as the official code does."""
    variance, mean = torch.var_mean(patches_BMP, dim=-1, keepdim=True)
    return (patches_BMP - mean) / (variance + VARIANCE_EPS).sqrt()


def patch_errors(prediction_BMP: Tensor, target_BMP: Tensor) -> Tensor:
    """Return the mean squared error of each patch, [B, M], in the target's precision."""
    return (prediction_BMP.to(target_BMP.dtype) - target_BMP).square().mean(dim=-1)


def masked_losses(loss_BM: Tensor, mask: Mask) -> Losses:
    """Return the losses of patches that all count the same: every row hides equally many."""
    detached = loss_BM.detach()
    return Losses(loss_BM.mean(), detached.mean(dim=1), mask.spread(detached), mask.mask_BN, {})
