"""Masked autoencoder (He et al., arXiv:2111.06377; METHODS section 1).

1. Hide patches at random; encode the visible ones only.
2. Decode the class token, the visible latents and one mask token for each hidden patch, all with decoder positions.
3. Predict the pixels of the hidden patches; the loss is their mean squared error, by default on patches standardised
   by their own mean and variance.

The decoder runs on [class | visible | masked] tokens, not in image order: attention does not see the order, positions
are added by index, and the masked tokens end up in one slice.

Shapes: B batch, N patches, V visible, M masked, D encoder width, E decoder width, P values of a patch.
"""

import torch
from torch import Tensor

from trainer.config import ModelConfig
from trainer.masking import Mask, split_order, take, whole_image
from trainer.methods.base import SelectingMethod
from trainer.methods.losses import Losses, add_mto, add_predictor, masked_losses, patch_errors
from trainer.models.decoder import TokenDecoder
from trainer.models.vit import Encoder, patchify

VARIANCE_EPS = 1e-6  # official MAE, norm_pix_loss


class Mae(SelectingMethod):
    """Encoder of visible patches, decoder of all."""

    encoder: Encoder
    predictor: TokenDecoder | None

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.encoder = Encoder(config)
        self.decoder = TokenDecoder(config, depth=config.decoder_depth, values=config.patch_size**2 * 3)
        self.predictor = None
        if config.pass_.enabled and config.pass_.score == "pass":
            self.predictor = TokenDecoder(config, depth=config.pass_.predictor_depth, values=1)
        self.sometimes_unused = self.predictor is not None
        self.predictor_trains = self.sometimes_unused

    def reconstruct(self, images_BCHW: Tensor, mask: Mask) -> Losses:
        """Return the losses of the hidden patches; only the visible ones are encoded."""
        patches_BNP = patchify(images_BCHW, self.config.patch_size)
        latent_BTD = self.encoder.encode_visible(patches_BNP, mask.visible_BV)
        return self.decode(latent_BTD, patches_BNP, mask)

    def decode(self, latent_BTD: Tensor, patches_BNP: Tensor, mask: Mask) -> Losses:
        """Return the losses of the hidden patches from latents of the visible ones in the mask's order.

        L = 1/(B M) sum over hidden patches of mean_P((x^ - t)^2), t the target of `targets` (METHODS section 1).
        """
        first_masked = 1 + mask.visible_BV.shape[1]
        # MTO's layers are those of the decoder: the encoder sees no mask token.
        observer = self.observer(lambda tokens: (tokens[:, first_masked:], tokens[:, 1:first_masked]))
        prediction_BMP = self.decoder(latent_BTD, mask, observer, first=first_masked)
        loss_BM = patch_errors(prediction_BMP, self.targets(take(patches_BNP, mask.masked_BM)))
        losses = add_mto(masked_losses(loss_BM, mask), observer)
        if self.predictor is None or not (self.training and self.predictor_trains):
            return losses
        # In training the predictor reads what the decoder reads; `difficulty` gives it the whole image.
        seen_BTD = latent_BTD.detach() if self.config.pass_.detach_encoder else latent_BTD
        predicted_BM1 = self.predictor(seen_BTD, mask, first=first_masked)
        return add_predictor(losses, predicted_BM1.squeeze(-1), loss_BM, patches_BNP.shape[1])

    def difficulty(self, images_BCHW: Tensor) -> Tensor:
        assert self.predictor is not None, "the config has no mask predictor"
        everything = whole_image(len(images_BCHW), self.config, images_BCHW.device)
        latent_BTD = self.encoder.features(images_BCHW)
        predicted_BN1: Tensor = self.predictor(latent_BTD, everything)
        return predicted_BN1.squeeze(-1)

    def difficulty_mask(self, predicted_BN: Tensor) -> Mask:
        """Return the mask of the N - V patches with the largest predicted loss; ties go to the lower number."""
        order_BN = predicted_BN.argsort(dim=1, descending=True, stable=True)
        # The hardest come first in the order; a mask wants its visible patches there.
        num_visible = self.config.num_visible
        return split_order(order_BN.roll(num_visible - self.config.num_patches, dims=1), num_visible)

    def targets(self, patches_BMP: Tensor) -> Tensor:
        """Return the decoder's targets, [B, M, P]: the pixels, standardised patch by patch when `norm_pix` is on."""
        return standardise(patches_BMP) if self.config.norm_pix else patches_BMP

    def to_pixels(self, prediction_BNP: Tensor, patches_BNP: Tensor) -> Tensor:
        """Undo `standardise` by the mean and variance of the true patches."""
        if not self.config.norm_pix:
            return prediction_BNP
        variance, mean = torch.var_mean(patches_BNP, dim=-1, keepdim=True)
        return prediction_BNP * (variance + VARIANCE_EPS).sqrt() + mean

    def predict(self, images_BCHW: Tensor, mask: Mask) -> Tensor:
        patches_BNP = patchify(images_BCHW, self.config.patch_size)
        latent_BTD = self.encoder.encode_visible(patches_BNP, mask.visible_BV)
        shuffled_BNP = self.decoder(latent_BTD, mask)
        return take(shuffled_BNP, torch.cat([mask.visible_BV, mask.masked_BM], dim=1).argsort(dim=1))


def standardise(patches_BMP: Tensor) -> Tensor:
    """Return (x - mean) / sqrt(var + 1e-6) over the P values of each patch (official MAE, `norm_pix_loss`).

    The variance is unbiased: torch's `.var`, which the official code calls, divides by P - 1.
    """
    variance, mean = torch.var_mean(patches_BMP, dim=-1, keepdim=True)
    return (patches_BMP - mean) / (variance + VARIANCE_EPS).sqrt()
