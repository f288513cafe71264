"""Bootstrapped MAE (Dong et al., arXiv:2207.07116; METHODS section 3).

1. Hide patches block-wise; encode the visible ones.
2. Two shallow decoders run on the class token, the latents and mask tokens, and attend to encoder features: the pixel
   regressor to those of the first block, the feature predictor to those of the last.
3. Pixels are compared with patches standardised by channel, features with those of a moving average of the encoder on
   the whole image. Hidden patches weigh up to twice as much where their neighbours are hidden too.

Shapes: B batch, N patches, V visible, M masked, T tokens (1 + N), S seen tokens (1 + V), K predicted tokens, D encoder
width, E decoder width, C channels, P values of a patch.
"""

import torch
import torch.nn.functional as F
from timm.layers.attention import Attention
from timm.layers.mlp import Mlp
from torch import Tensor, nn

from trainer.config import ModelConfig
from trainer.masking import Mask, split_order, take
from trainer.methods.base import PixelMethod
from trainer.methods.losses import Losses, add_mto, masked_losses, patch_errors
from trainer.models.vit import LAYER_NORM_EPS, Encoder, patchify, run_blocks, sincos_positions
from trainer.models.weights import freeze_copy, init_xavier, move_average
from trainer.mto import MtoObserver
from trainer.precision import wide, without_autocast
from trainer.progress import Progress
from trainer.randomness import StepRandomness

PIXEL_VARIANCE_EPS = 1e-5  # official BootMAE, added to the variance of a patch's channel
RAMP = 4  # the feature loss reaches its weight after a quarter of the epochs
ROLL = 4  # the official code rolls the order by 0 to 3 places


class Bootmae(PixelMethod):
    """Encoder, its moving average, and two decoders with cross-attention."""

    default_masking = "block"
    no_decay_names = ("encoder.cls_token",)
    encoder: Encoder
    teacher: Encoder

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.encoder = Encoder(config, row_first=True)
        pixels = config.patch_size**2 * 3
        self.pixel_decoder = CrossDecoder(config, width=config.decoder_width, values=pixels)
        self.feature_decoder = CrossDecoder(config, width=config.width, values=config.width)
        self.teacher = freeze_copy(Encoder(config, row_first=True), self.encoder)
        self.feature_weight = config.bootmae.feature_weight

    def begin_step(self, progress: Progress) -> None:
        """Set the feature loss's weight, feature_weight * min(4 (1 + epoch) / epochs, 1): full after a quarter."""
        full = self.config.bootmae.feature_weight
        self.feature_weight = full * min(RAMP * (1 + progress.epoch) / progress.num_epochs, 1.0)

    def end_step(self, progress: Progress) -> None:
        momentum = bootmae_momentum(progress, dynamic=self.config.bootmae.dynamic_momentum)
        move_average(self.teacher, self.encoder, momentum)

    def draw_mask(self, batch: int, randomness: StepRandomness, *, like: Tensor) -> Mask:
        """Return the mask of a batch; a block-wise order is rolled by 0 to 3 places, once for the whole batch.

        So up to three hidden patches change places with visible ones, as in the official code.
        """
        mask = super().draw_mask(batch, randomness, like=like)
        if self.config.masking not in ("auto", "block"):
            return mask
        order_BN = torch.cat([mask.visible_BV, mask.masked_BM], dim=1).roll(randomness.key("roll") % ROLL, dims=1)
        return split_order(order_BN, mask.visible_BV.shape[1])

    def reconstruct(self, images_BCHW: Tensor, mask: Mask) -> Losses:
        """Return the losses of the hidden patches, L = R + alpha P (METHODS section 3).

        R = mean(w mean_P((x^ - x_norm)^2)) on pixels standardised by channel, P = mean(w d(F^, F)) on the teacher's
        features, both over the B M hidden patches, w in [1, 2] by `neighbour_weight`, d by `feature_distance`.
        """
        patches_BNP = patchify(images_BCHW, self.config.patch_size)
        latent_BTD, shallow_BTD, deep_BTD = self._encode(patches_BNP, mask)
        first_masked = 1 + mask.visible_BV.shape[1]

        def split(tokens: Tensor) -> tuple[Tensor, Tensor]:
            return tokens[:, first_masked:], tokens[:, 1:first_masked]

        pixel_mto, feature_mto = self.observer(split), self.observer(split)  # the losses of both decoders are added
        pixels_BMP = self.pixel_decoder(latent_BTD, shallow_BTD, mask, pixel_mto, first=first_masked)
        features_BMD = self.feature_decoder(latent_BTD, deep_BTD, mask, feature_mto, first=first_masked)
        # The teacher sees the whole image; its features are taken after the last block and before the norm.
        with torch.no_grad():
            tokens_BTD = self.teacher.prepend_cls(self.teacher.embed_patches(patches_BNP))
            target_BMD = take(run_blocks(self.teacher.blocks, tokens_BTD)[:, 1:], mask.masked_BM)
        weight_BM = neighbour_weight(mask, self.config.grid).gather(1, mask.masked_BM)
        error_BM = patch_errors(pixels_BMP, standardise_channels(take(patches_BNP, mask.masked_BM)))
        feature_BM = feature_distance(features_BMD, target_BMD)
        pixel, feature = (weight_BM * error_BM).mean(), (weight_BM * feature_BM).mean()
        # A sample's score is its pixel error alone, each hidden patch counted once.
        losses = masked_losses(error_BM, mask)._replace(
            total=pixel + self.feature_weight * feature,
            parts={"pixel": pixel.detach(), "feature": feature.detach()},
        )
        return add_mto(losses, pixel_mto, feature_mto)

    def to_pixels(self, prediction_BNP: Tensor, patches_BNP: Tensor) -> Tensor:
        """Undo `standardise_channels` by the mean and variance of the true patches."""
        values = patches_BNP.view(*patches_BNP.shape[:-1], -1, 3)
        variance, mean = torch.var_mean(values, dim=-2, keepdim=True, correction=0)
        pixels: Tensor = prediction_BNP.view_as(values) * (variance + PIXEL_VARIANCE_EPS).sqrt() + mean
        return pixels.view_as(prediction_BNP)

    def predict(self, images_BCHW: Tensor, mask: Mask) -> Tensor:
        patches_BNP = patchify(images_BCHW, self.config.patch_size)
        latent_BTD, shallow_BTD, _ = self._encode(patches_BNP, mask)
        shuffled_BNP = self.pixel_decoder(latent_BTD, shallow_BTD, mask)
        return take(shuffled_BNP, torch.cat([mask.visible_BV, mask.masked_BM], dim=1).argsort(dim=1))

    def _encode(self, patches_BNP: Tensor, mask: Mask) -> tuple[Tensor, Tensor, Tensor]:
        """Return the normalised latents, and the tokens after the first and the last block, [B, 1 + V, D] each."""
        visible = self.encoder.embed_patches(take(patches_BNP, mask.visible_BV), mask.visible_BV)
        layers: list[Tensor] = []  # the first block's input, then every block's output
        deep_BTD = run_blocks(self.encoder.blocks, self.encoder.prepend_cls(visible), layers.append)
        return self.encoder.norm(deep_BTD), layers[1], deep_BTD


class CrossDecoder(nn.Module):
    """Decoder whose blocks attend to features of the encoder; tokens are in [class | visible | masked] order."""

    def __init__(self, config: ModelConfig, *, width: int, values: int) -> None:
        super().__init__()
        self.embed = nn.Linear(config.width, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(sincos_positions(width, config.grid, row_first=True), requires_grad=False)
        # With the encoder's number of heads, whatever the width (official code).
        depth = config.bootmae.decoder_depth
        make = [CrossBlock(width, config.width, config.heads, config.mlp_ratio) for _ in range(depth)]
        self.blocks = nn.ModuleList(make)
        self.norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.pred = nn.Linear(width, values)
        nn.init.normal_(self.mask_token, std=0.02)
        self.apply(init_xavier)

    def forward(
        self, latent_BSD: Tensor, context_BSD: Tensor, mask: Mask, observe: MtoObserver | None = None, *, first: int = 1
    ) -> Tensor:
        """Return the values predicted for the tokens from number `first` on, as `TokenDecoder` does.

        Every block attends to `context_BSD`, features of the tokens of `latent_BSD`.
        """
        # Positions are added to the mask tokens only: the latents carry theirs (official code).
        masked = self.mask_token + self.pos_embed[0, 1:][mask.masked_BM]
        seen = self.embed(latent_BSD)
        tokens_BTE = torch.cat([seen, masked.to(seen.dtype)], dim=1)
        tokens_BTE = run_blocks(self.blocks, tokens_BTE, observe, context_BSD=context_BSD)
        values_BKP: Tensor = self.pred(self.norm(tokens_BTE[:, first:]))
        return values_BKP


class CrossBlock(nn.Module):
    """Self-attention, cross-attention to encoder features, MLP; pre-norm, each with a residual."""

    def __init__(self, width: int, context_width: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        head_width = width // heads  # 42 of 512 / 12 in the Base pixel decoder: attention is 504 wide there
        self.norm1 = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.attn = Attention(width, heads, attn_head_dim=head_width, qkv_bias=True)
        self.norm3 = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.norm4 = nn.LayerNorm(context_width, eps=LAYER_NORM_EPS)
        self.cross = CrossAttention(width, context_width, heads, head_width)
        self.norm2 = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.mlp = Mlp(width, int(width * mlp_ratio))

    def forward(self, tokens_BTE: Tensor, context_BSD: Tensor) -> Tensor:
        tokens_BTE = tokens_BTE + self.attn(self.norm1(tokens_BTE))
        tokens_BTE = tokens_BTE + self.cross(self.norm3(tokens_BTE), self.norm4(context_BSD))
        output_BTE: Tensor = tokens_BTE + self.mlp(self.norm2(tokens_BTE))
        return output_BTE


class CrossAttention(nn.Module):
    """Queries from decoder tokens, keys and values from encoder features."""

    def __init__(self, width: int, context_width: int, heads: int, head_width: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, heads * head_width)
        self.kv = nn.Linear(context_width, 2 * heads * head_width)
        self.proj = nn.Linear(heads * head_width, width)

    def forward(self, tokens_BTE: Tensor, context_BSD: Tensor) -> Tensor:
        """Return the mixed values for each decoder token, [B, T, E]; it attends to all S features."""
        batch, count = tokens_BTE.shape[:2]
        query = self.q(tokens_BTE).view(batch, count, self.heads, -1).transpose(1, 2)
        key, value = self.kv(context_BSD).view(batch, context_BSD.shape[1], 2, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value)
        output_BTE: Tensor = self.proj(mixed.transpose(1, 2).flatten(2))
        return output_BTE


def neighbour_weight(mask: Mask, grid: int) -> Tensor:
    """Return w = m pool(m) + m, [B, N], of the mask m on its grid, pool the mean of 3 x 3 patches.

    It is 0 on visible patches, and 1 to 2 on hidden ones: more where the neighbours are hidden too (METHODS section 3).
    """
    # The border is padded with zeros, which count in the mean: a patch at the edge weighs less (official code).
    mask_BCHW = mask.mask_BN.view(-1, 1, grid, grid)
    return (mask_BCHW * F.avg_pool2d(mask_BCHW, 3, stride=1, padding=1) + mask_BCHW).flatten(1)


def standardise_channels(patches_BMP: Tensor) -> Tensor:
    """Return (x - mean) / sqrt(var + 1e-5) over the pixels of each channel of each patch, [B, M, P].

    The variance is biased, unlike in MAE's standardisation (official BootMAE).
    """
    values = patches_BMP.view(*patches_BMP.shape[:-1], -1, 3)
    variance, mean = torch.var_mean(values, dim=-2, keepdim=True, correction=0)
    standard: Tensor = (values - mean) / (variance + PIXEL_VARIANCE_EPS).sqrt()
    return standard.flatten(-2)


def feature_distance(predicted_BMD: Tensor, target_BMD: Tensor) -> Tensor:
    """Return mean_D((LN(F^) - LN(F))^2), [B, M], with LN the layer norm without weights, in float32 or better.

    So the scale and the offset of a patch's features do not count (METHODS section 3; official code).
    """
    with without_autocast(predicted_BMD):
        shape = predicted_BMD.shape[-1:]
        predicted = F.layer_norm(wide(predicted_BMD), shape, eps=LAYER_NORM_EPS)
        return (predicted - F.layer_norm(wide(target_BMD), shape, eps=LAYER_NORM_EPS)).square().mean(dim=-1)


def bootmae_momentum(progress: Progress, *, dynamic: bool) -> float:
    """Return the teacher's momentum in an epoch, by two lines (official code, `adjust_ema_momentum`).

    From .999 to .9999 over the first 100 epochs; then, if dynamic (the Base model), to .99999 over the next 300.
    """
    epoch = progress.epoch
    if epoch < 100:
        return 0.999 + epoch / 100 * (0.9999 - 0.999)
    return 0.9999 + (min(300, epoch - 100) / 300 * (0.99999 - 0.9999) if dynamic else 0.0)
