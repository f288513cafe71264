"""Bootstrapped MAE (Dong et al., arXiv:2207.07116; METHODS section 3).

1. Hide patches block-wise; encode the visible ones.
2. Two shallow decoders run on the class token, the latents and mask tokens, and attend to encoder features: the pixel
   regressor to those of the first block, the feature predictor to those of the last.
3. Pixels are compared with patches standardised by channel, features with those of a moving average of the encoder on
   the whole image. Hidden patches weigh up to twice as much where their neighbours are hidden too.

Shapes: B batch, N patches, V visible, M masked, T tokens (1 + N), D encoder width, E decoder width, C channels, P
values of a patch.
"""

import torch
import torch.nn.functional as F
from timm.layers.attention import Attention
from timm.layers.mlp import Mlp
from torch import Tensor, nn

from trainer.config import ModelConfig
from trainer.masking import Mask, take
from trainer.methods.base import PixelMethod
from trainer.methods.losses import Losses, add_mto, patch_errors
from trainer.models.vit import LAYER_NORM_EPS, Encoder, patchify, sincos_positions
from trainer.models.weights import freeze_copy, init_xavier, move_average
from trainer.mto import MtoObserver
from trainer.precision import wide, without_autocast
from trainer.progress import Progress
from trainer.randomness import Randomness, StepRandomness

PIXEL_VARIANCE_EPS = 1e-5  # official BootMAE, added to the variance of a patch's channel
RAMP = 4  # the feature loss reaches its weight after a quarter of the epochs
ROLL = 4  # the official code rolls the order by 0 to 3 places


class Bootmae(PixelMethod):
    """Encoder, its moving average, and two decoders with cross-attention."""

    default_masking = "block"
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
        """Set the weight of the feature loss: it grows over the first quarter of the run."""
        full = self.config.bootmae.feature_weight
        self.feature_weight = full * min(RAMP * (1 + progress.epoch) / progress.num_epochs, 1.0)

    def end_step(self, progress: Progress) -> None:
        """Move the teacher towards the encoder."""
        momentum = bootmae_momentum(progress, dynamic=self.config.bootmae.dynamic_momentum)
        move_average(self.teacher, self.encoder, momentum)

    def forward(self, images_BCHW: Tensor, randomness: StepRandomness, phase: str = "model") -> Losses:
        """Return the two losses of block-wise hidden patches."""
        mask = self.draw_mask(len(images_BCHW), randomness, like=images_BCHW)
        return self.reconstruct(images_BCHW, mask)

    def draw_mask(self, batch: int, randomness: Randomness, *, like: Tensor) -> Mask:
        """Return the mask of a batch; block-wise orders are rolled a little, once for the whole batch."""
        mask = super().draw_mask(batch, randomness, like=like)
        if self.config.masking not in ("auto", "block"):
            return mask
        order_BN = torch.cat([mask.visible_BV, mask.masked_BM], dim=1).roll(randomness.integer("roll", ROLL), dims=1)
        visible = mask.visible_BV.shape[1]
        return Mask(order_BN[:, :visible], order_BN[:, visible:])

    def reconstruct(self, images_BCHW: Tensor, mask: Mask) -> Losses:
        patches_BNP = patchify(images_BCHW, self.config.patch_size)
        latent_BTD, shallow_BTD, deep_BTD = self._encode(patches_BNP, mask)
        first_masked = 1 + mask.visible_BV.shape[1]

        def split(tokens: Tensor) -> tuple[Tensor, Tensor]:
            return tokens[:, first_masked:], tokens[:, 1:first_masked]

        pixel_mto, feature_mto = self.observer(split), self.observer(split)  # the losses of both decoders are added
        pixels_BMP = self.pixel_decoder(latent_BTD, shallow_BTD, mask, pixel_mto)
        features_BMD = self.feature_decoder(latent_BTD, deep_BTD, mask, feature_mto)
        weight_BM = neighbour_weight(mask, self.config.grid).gather(1, mask.masked_BM)
        target_BMP = standardise_channels(take(patches_BNP, mask.masked_BM))
        error_BM = patch_errors(pixels_BMP, target_BMP)
        feature_BM = feature_distance(features_BMD, self._targets(patches_BNP, mask))
        pixel, feature = (weight_BM * error_BM).mean(), (weight_BM * feature_BM).mean()
        parts = {"pixel": pixel.detach(), "feature": feature.detach()}
        detached = error_BM.detach()
        total = pixel + self.feature_weight * feature
        losses = Losses(total, detached.mean(dim=1), mask.spread(detached), mask.mask_BN, parts)
        return add_mto(losses, pixel_mto, feature_mto)

    def to_pixels(self, prediction_BNP: Tensor, patches_BNP: Tensor) -> Tensor:
        """Return predictions as normalised pixels: each channel gets its mean and scale back."""
        values = patches_BNP.view(*patches_BNP.shape[:-1], -1, 3)
        variance, mean = torch.var_mean(values, dim=-2, keepdim=True, correction=0)
        pixels: Tensor = prediction_BNP.view_as(values) * (variance + PIXEL_VARIANCE_EPS).sqrt() + mean
        return pixels.view_as(prediction_BNP)

    def predict(self, images_BCHW: Tensor, mask: Mask) -> Tensor:
        patches_BNP = patchify(images_BCHW, self.config.patch_size)
        latent_BTD, shallow_BTD, _ = self._encode(patches_BNP, mask)
        shuffled_BNP = self.pixel_decoder.predict(self.pixel_decoder.run(latent_BTD, shallow_BTD, mask)[:, 1:])
        return take(shuffled_BNP, torch.cat([mask.visible_BV, mask.masked_BM], dim=1).argsort(dim=1))

    def no_decay(self, name: str, parameter: nn.Parameter) -> bool:
        """Free vectors, biases and the class token; the mask tokens decay (official code)."""
        return super().no_decay(name, parameter) or name == "encoder.cls_token"

    def _encode(self, patches_BNP: Tensor, mask: Mask) -> tuple[Tensor, Tensor, Tensor]:
        """Return the normalised latents, and the tokens after the first and the last block."""
        visible = self.encoder.embed_patches(take(patches_BNP, mask.visible_BV), mask.visible_BV)
        tokens_BTD = self.encoder.prepend_cls(visible)
        layers = []
        for block in self.encoder.blocks:
            tokens_BTD = block(tokens_BTD)
            layers.append(tokens_BTD)
        return self.encoder.norm(tokens_BTD), layers[0], layers[-1]

    @torch.no_grad()
    def _targets(self, patches_BNP: Tensor, mask: Mask) -> Tensor:
        """Return the teacher's features of the hidden patches, [B, M, D], after its last block and before its norm."""
        tokens_BTD = self.teacher.prepend_cls(self.teacher.embed_patches(patches_BNP))
        for block in self.teacher.blocks:
            tokens_BTD = block(tokens_BTD)
        return take(tokens_BTD[:, 1:], mask.masked_BM)


class CrossDecoder(nn.Module):
    """Decoder whose blocks attend to features of the encoder; tokens are in [class | visible | masked] order."""

    def __init__(self, config: ModelConfig, *, width: int, values: int) -> None:
        super().__init__()
        self.embed = nn.Linear(config.width, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(sincos_positions(width, config.grid, row_first=True), requires_grad=False)
        make = [
            CrossBlock(width, config.width, config.heads, config.mlp_ratio) for _ in range(config.bootmae.decoder_depth)
        ]
        self.blocks = nn.ModuleList(make)
        self.norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.pred = nn.Linear(width, values)
        nn.init.normal_(self.mask_token, std=0.02)
        self.apply(init_xavier)

    def forward(self, latent_BTD: Tensor, context_BTD: Tensor, mask: Mask, observe: MtoObserver | None) -> Tensor:
        """Return predictions for the hidden patches, [B, M, values]."""
        return self.predict(self.run(latent_BTD, context_BTD, mask, observe)[:, 1 + mask.visible_BV.shape[1] :])

    def run(self, latent_BTD: Tensor, context_BTD: Tensor, mask: Mask, observe: MtoObserver | None = None) -> Tensor:
        """Return decoded tokens, [B, T, E]; positions are added to the mask tokens only (official code)."""
        masked = self.mask_token + self.pos_embed[0, 1:][mask.masked_BM]
        seen = self.embed(latent_BTD)
        tokens_BTE = torch.cat([seen, masked.to(seen.dtype)], dim=1)
        if observe:
            observe(tokens_BTE)
        for block in self.blocks:
            tokens_BTE = block(tokens_BTE, context_BTD)
            if observe:
                observe(tokens_BTE)
        return tokens_BTE

    def predict(self, tokens_BKE: Tensor) -> Tensor:
        values_BKP: Tensor = self.pred(self.norm(tokens_BKE))
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
        batch, count = tokens_BTE.shape[:2]
        query = self.q(tokens_BTE).view(batch, count, self.heads, -1).transpose(1, 2)
        key, value = self.kv(context_BSD).view(batch, context_BSD.shape[1], 2, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value)
        output_BTE: Tensor = self.proj(mixed.transpose(1, 2).flatten(2))
        return output_BTE


def neighbour_weight(mask: Mask, grid: int) -> Tensor:
    """Return m * pool(m) + m of the mask m, [B, N]: 0 on visible patches, on masked ones 1 to 2 by their neighbours."""
    mask_BCHW = mask.mask_BN.view(-1, 1, grid, grid)
    return (mask_BCHW * F.avg_pool2d(mask_BCHW, 3, stride=1, padding=1) + mask_BCHW).flatten(1)


def standardise_channels(patches_BMP: Tensor) -> Tensor:
    """Return patches with mean 0 and (biased) variance 1 in each channel."""
    values = patches_BMP.view(*patches_BMP.shape[:-1], -1, 3)
    variance, mean = torch.var_mean(values, dim=-2, keepdim=True, correction=0)
    standard: Tensor = (values - mean) / (variance + PIXEL_VARIANCE_EPS).sqrt()
    return standard.flatten(-2)


def feature_distance(predicted_BMD: Tensor, target_BMD: Tensor) -> Tensor:
    """Return the mean squared error between normalised features, [B, M]: their scale and offset do not count."""
    with without_autocast(predicted_BMD):
        shape = predicted_BMD.shape[-1:]
        predicted = F.layer_norm(wide(predicted_BMD), shape, eps=LAYER_NORM_EPS)
        return (predicted - F.layer_norm(wide(target_BMD), shape, eps=LAYER_NORM_EPS)).square().mean(dim=-1)


def bootmae_momentum(progress: Progress, *, dynamic: bool) -> float:
    """Return the teacher's momentum of an epoch: .999 to .9999 over 100 epochs, then (dynamic) to .99999 over 300."""
    epoch = progress.epoch
    if epoch < 100:
        return 0.999 + epoch / 100 * (0.9999 - 0.999)
    return 0.9999 + (min(300, epoch - 100) / 300 * (0.99999 - 0.9999) if dynamic else 0.0)
