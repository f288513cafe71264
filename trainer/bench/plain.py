"""The methods written plainly, as the official code does: sort, gather, un-shuffle, predict everything, mask the loss.

Each function takes one of our methods, normalised images and an order of the patches, visible ones first, and computes
the loss with the method's own weights. It is the reference of the tests and the baseline of the benchmark; training
does not call it.

Shapes: B batch, N patches, V visible, D width, T tokens, E decoder width.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.methods.base import Method
from trainer.methods.bootmae import Bootmae, CrossDecoder
from trainer.methods.clmae import Clmae, masker_losses
from trainer.methods.conmim import Conmim
from trainer.methods.mae import VARIANCE_EPS, Mae
from trainer.methods.simmim import COUNT_EPS, Simmim
from trainer.models.vit import patchify, unpatchify

PlainLoss = Callable[[Method, Tensor, Tensor], Tensor]


def gather(tokens_BND: Tensor, index_BK: Tensor) -> Tensor:
    """Return tokens by an index repeated over the width, as the official code gathers."""
    return torch.gather(tokens_BND, 1, index_BK[:, :, None].repeat(1, 1, tokens_BND.shape[2]))


def plain_mae(method: Method, images_BCHW: Tensor, order_BN: Tensor) -> Tensor:
    """MAE and CL-MAE's model step: embed all, gather the visible, un-shuffle mask tokens, predict and compare all."""
    assert isinstance(method, Mae)
    encoder, num_visible = method.encoder, method.config.num_visible
    tokens_BND = encoder.patch_embed(images_BCHW) + encoder.pos_embed[:, 1:]
    if isinstance(method, Clmae):  # the order is by keep-probability
        order_BN = method.masker(tokens_BND).argsort(dim=1, descending=True)
    latent_BTD = encoder.encode(gather(tokens_BND, order_BN[:, :num_visible]))
    errors_BN = _patch_errors(method, images_BCHW, _unshuffled_prediction(method, latent_BTD, order_BN))
    mask_BN = _mask(order_BN, num_visible)
    return (errors_BN * mask_BN).sum() / mask_BN.sum()


def plain_masker(method: Method, images_BCHW: Tensor, order_BN: Tensor) -> Tensor:
    """CL-MAE, the masking network's step: tokens are sorted by keep-probability and sorted back."""
    assert isinstance(method, Clmae)
    encoder = method.encoder
    tokens_BND = encoder.patch_embed(images_BCHW) + encoder.pos_embed[:, 1:]
    keep_BN = method.masker(tokens_BND)
    order_BN = keep_BN.argsort(dim=1, descending=True)
    latent_BTD = encoder.encode(gather(tokens_BND * keep_BN[:, :, None], order_BN))
    prediction_BNP = _unshuffled_prediction(method, latent_BTD, order_BN)
    parts = masker_losses(keep_BN, _patch_errors(method, images_BCHW, prediction_BNP), method.config)
    return method.curriculum * parts["recon"] + parts["gauss"] + parts["kl"] + parts["diversity"]


def plain_simmim(method: Method, images_BCHW: Tensor, order_BN: Tensor) -> Tensor:
    """SimMIM: predict every pixel by a convolution and a pixel shuffle, mask the absolute error."""
    assert isinstance(method, Simmim)
    mask_BN = _mask(order_BN, method.config.num_visible)
    encoder, patch, grid = method.encoder, method.stride, method.config.grid
    tokens_BTD = encoder.encode(patchify(images_BCHW, method.config.patch_size), mask_BN)
    latent_BDHW = tokens_BTD[:, 1:].transpose(1, 2).reshape(len(tokens_BTD), -1, grid, grid)
    rows = method.head.weight.view(patch**2, 3, -1).transpose(0, 1).flatten(0, 1)
    bias = method.head.bias.view(patch**2, 3).T.flatten()
    image_BCHW = F.pixel_shuffle(F.conv2d(latent_BDHW, rows[:, :, None, None], bias), patch)
    pixels = mask_BN.view(-1, 1, grid, grid).repeat_interleave(patch, 2).repeat_interleave(patch, 3)
    return ((images_BCHW - image_BCHW).abs() * pixels).sum() / (pixels.sum() + COUNT_EPS) / 3


def plain_conmim(method: Method, images_BCHW: Tensor, order_BN: Tensor) -> Tensor:
    """ConMIM with one view for both networks: all logits, then the masked rows."""
    assert isinstance(method, Conmim)
    mask_BN, patches_BNP = _mask(order_BN, method.config.num_visible), patchify(images_BCHW, method.config.patch_size)
    query = method._project(method.projector, method.encoder.encode(patches_BNP, mask_BN))
    with torch.no_grad():
        none_BN = torch.zeros_like(mask_BN)
        key = method._project(method.teacher_projector, method.teacher_encoder.encode(patches_BNP, none_BN))
    logits = (query @ key.mT / method.config.conmim.temperature)[mask_BN.bool()]
    labels = torch.arange(patches_BNP.shape[1], device=mask_BN.device).expand(len(mask_BN), -1)[mask_BN.bool()]
    return F.cross_entropy(logits, labels)


def plain_bootmae(method: Method, images_BCHW: Tensor, order_BN: Tensor) -> Tensor:
    """BootMAE: un-shuffled decoders that predict everything, losses weighted by a mask over the whole image."""
    assert isinstance(method, Bootmae)
    encoder, grid, patch = method.encoder, method.config.grid, method.config.patch_size
    tokens = encoder.prepend_cls(
        gather(encoder.patch_embed(images_BCHW) + encoder.pos_embed[:, 1:], order_BN[:, : method.config.num_visible])
    )
    layers = []
    for block in encoder.blocks:
        tokens = block(tokens)
        layers.append(tokens)
    latent = encoder.norm(tokens)
    image_BCHW = unpatchify(_cross_decode(method.pixel_decoder, latent, layers[0], order_BN), patch)
    features = _cross_decode(method.feature_decoder, latent, layers[-1], order_BN)
    with torch.no_grad():
        wanted = method.teacher.prepend_cls(method.teacher.patch_embed(images_BCHW) + method.teacher.pos_embed[:, 1:])
        for block in method.teacher.blocks:
            wanted = block(wanted)
    mask = _mask(order_BN, method.config.num_visible).view(-1, 1, grid, grid)
    weight = mask * F.avg_pool2d(mask, 3, 1, 1) + mask
    pixel_weight = F.interpolate(weight, images_BCHW.shape[-2:], mode="nearest")
    patches = patchify(images_BCHW, patch).view(len(images_BCHW), grid**2, -1, 3)
    standard = (patches - patches.mean(2, keepdim=True)) / (patches.var(2, keepdim=True, unbiased=False) + 1e-5).sqrt()
    pixel = (pixel_weight * (image_BCHW - unpatchify(standard.flatten(2), patch)) ** 2).mean() / mask.mean()
    width = (features.shape[-1],)
    error = (F.layer_norm(wanted[:, 1:], width, eps=1e-6) - F.layer_norm(features, width, eps=1e-6)) ** 2
    return pixel + method.feature_weight * (weight.flatten(1)[:, :, None] * error).mean() / mask.mean()


def _unshuffled_prediction(method: Mae, latent_BTD: Tensor, order_BN: Tensor) -> Tensor:
    """Return predictions of all patches by MAE's decoder on tokens in image order."""
    decoder, restore = method.decoder, order_BN.argsort(dim=1)
    seen = decoder.embed(latent_BTD)
    tokens = torch.cat(
        [seen[:, 1:], decoder.mask_token.repeat(len(seen), restore.shape[1] + 1 - seen.shape[1], 1)], dim=1
    )
    tokens = torch.cat([seen[:, :1], gather(tokens, restore)], dim=1) + decoder.pos_embed
    for block in decoder.blocks:
        tokens = block(tokens)
    prediction: Tensor = decoder.pred(decoder.norm(tokens))
    return prediction[:, 1:]


def _cross_decode(decoder: CrossDecoder, latent: Tensor, context: Tensor, order_BN: Tensor) -> Tensor:
    """Return predictions of all patches by one of BootMAE's decoders on tokens in image order."""
    masked = order_BN[:, latent.shape[1] - 1 :]
    positions = gather(decoder.pos_embed[:, 1:].repeat(len(latent), 1, 1), masked)
    tokens = torch.cat([decoder.embed(latent), decoder.mask_token + positions], dim=1)
    tokens = torch.cat([tokens[:, :1], gather(tokens[:, 1:], order_BN.argsort(dim=1))], dim=1)
    for block in decoder.blocks:
        tokens = block(tokens, context)
    prediction: Tensor = decoder.pred(decoder.norm(tokens))
    return prediction[:, 1:]


def _patch_errors(method: Mae, images_BCHW: Tensor, prediction_BNP: Tensor) -> Tensor:
    """Return the mean squared error of every patch, hidden or not, [B, N]."""
    target = patchify(images_BCHW, method.config.patch_size)
    if method.config.norm_pix:
        target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + VARIANCE_EPS) ** 0.5
    return ((prediction_BNP - target) ** 2).mean(dim=-1)


def _mask(order_BN: Tensor, num_visible: int) -> Tensor:
    """Return the mask of an order, float32[B, N], 1 for hidden patches, put back into image order by a gather."""
    mask = torch.ones(order_BN.shape, device=order_BN.device)
    mask[:, :num_visible] = 0
    return torch.gather(mask, 1, order_BN.argsort(dim=1))


PLAIN: dict[str, PlainLoss] = {
    "mae": plain_mae,
    "simmim": plain_simmim,
    "bootmae": plain_bootmae,
    "conmim": plain_conmim,
    "clmae": plain_mae,
}
