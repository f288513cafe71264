"""Nearest-neighbour accuracy of frozen features, by cosine similarity (METHODS section 9).

The similarity matrix is made one block of test rows by one block of training rows at a time, and the best k are
merged, so that 50,000 x 1.28 million fits in memory.

Shapes: B batch, D width, Q queries, S stored rows, K neighbours.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from trainer.config import IMAGENET_MEAN, IMAGENET_STD, require

_BLOCK_ROWS = 16384  # stored rows of one product: 64 MB of similarities for 1024 queries
_QUERY_ROWS = 1024


Pool = Literal["cls", "mean"]
"""How an image's tokens become one vector: the class token, or the mean of the patch tokens."""


def embed(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    pool: Pool = "cls",
    mean: tuple[float, ...] = IMAGENET_MEAN,
    std: tuple[float, ...] = IMAGENET_STD,
) -> NDArray[np.float32]:
    """Return features of images, float32[N, D], in the order of the batches; as `embed_pools`, for one pool."""
    return embed_pools(model, batches, pools=(pool,), mean=mean, std=std)[pool]


def embed_pools(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    pools: Sequence[Pool] = ("cls", "mean"),
    mean: tuple[float, ...] = IMAGENET_MEAN,
    std: tuple[float, ...] = IMAGENET_STD,
) -> dict[Pool, NDArray[np.float32]]:
    """Return features of images by pool, float32[N, D] each, from one pass over the batches, in their order.

    Args:
        model: an encoder with `features(images)`, or a method, whose encoder is taken. It is put in eval mode and back.
        batches: uint8[B, 3, H, W] arrays or tensors.
        pools: the class token, the mean of the patch tokens, or both.
        mean: pixel mean by channel in [0, 1], as in training.
        std: pixel standard deviation by channel, as in training.

    Raises:
        ValueError: there are no batches.
    """
    encoder: Any = getattr(model, "encoder", model)
    reference = next(encoder.parameters())
    shift, scale = (
        torch.tensor(values, dtype=reference.dtype, device=reference.device).view(3, 1, 1) * 255
        for values in (mean, std)
    )
    was_training = encoder.training
    encoder.eval()
    parts: dict[Pool, list[NDArray[np.float32]]] = {pool: [] for pool in pools}
    with torch.no_grad():
        for batch in batches:
            images = torch.as_tensor(np.asarray(batch)).to(reference.device).to(reference.dtype)
            tokens_BTD: Tensor = encoder.features((images - shift) / scale)
            for pool in pools:
                pooled = tokens_BTD[:, 0] if pool == "cls" else tokens_BTD[:, 1:].mean(dim=1)
                parts[pool].append(pooled.float().cpu().numpy())
    encoder.train(was_training)
    require(all(parts.values()), "embed needs at least one batch of images; got none. Check the index and the split.")
    return {pool: np.concatenate(pieces) for pool, pieces in parts.items()}


def nearest_neighbour_accuracy(
    train_features: NDArray[np.float32],
    train_labels: NDArray[np.integer[Any]],
    test_features: NDArray[np.float32],
    test_labels: NDArray[np.integer[Any]],
    *,
    k: int = 1,
    temperature: float | None = None,
    exclude_self: bool = False,
    device: str = "cpu",
) -> float:
    """Return the share of test rows whose k nearest training rows by cosine vote for the right label, in [0, 1].

    Args:
        train_features: float32[S, D].
        train_labels: int[S], 0 or more.
        test_features: float32[Q, D].
        test_labels: int[Q], 0 or more.
        k: neighbours that vote.
        temperature: weigh a vote by exp(similarity / temperature), as DINO does with k=20 and .07; without it votes
            count the same, and a tie goes to the label whose neighbours are nearer in sum.
        exclude_self: the test set is the training set; a row is not its own neighbour.
        device: where to compute.

    Raises:
        ValueError: labels are missing (negative), sizes do not fit, or k is out of range.
    """
    for name, features, labels in (("train", train_features, train_labels), ("test", test_features, test_labels)):
        require(
            len(features) == len(labels) > 0,
            f"{name} features and labels must be of one length above 0; got {len(features)} and {len(labels)}.",
        )
        require(
            int(np.min(labels)) >= 0,
            f"nearest neighbours need a label for every {name} sample; some are -1. Use a labelled data set.",
        )
    require(1 <= k <= len(train_labels) - exclude_self, f"k must be in 1..{len(train_labels) - exclude_self}; got {k}.")
    stored_SD, stored_labels = (
        _unit(train_features, device),
        torch.as_tensor(np.asarray(train_labels, np.int64), device=device),
    )
    correct = 0
    for start in range(0, len(test_features), _QUERY_ROWS):
        queries_QD = _unit(test_features[start : start + _QUERY_ROWS], device)
        similarity_QK, index_QK = _nearest(queries_QD, stored_SD, k, own=start if exclude_self else None)
        votes = torch.zeros(len(queries_QD), int(stored_labels.max()) + 1, dtype=torch.float64, device=device)
        weight_QK = _vote(similarity_QK.double(), k, temperature)
        votes.scatter_add_(1, stored_labels[index_QK], weight_QK)
        wanted = torch.as_tensor(np.asarray(test_labels[start : start + _QUERY_ROWS], np.int64), device=device)
        correct += int((votes.argmax(dim=1) == wanted).sum())
    return correct / len(test_labels)


def _vote(similarity_QK: Tensor, k: int, temperature: float | None) -> Tensor:
    """Return the weight of each neighbour's vote."""
    if temperature is not None:
        return ((similarity_QK - 1) / temperature).exp()
    return 1.0 + (similarity_QK + 1.0) / (4.0 * k)  # the addition stays below one vote in sum: it only breaks ties


def _nearest(queries_QD: Tensor, stored_SD: Tensor, k: int, *, own: int | None) -> tuple[Tensor, Tensor]:
    """Return similarities and rows of the k nearest stored rows; `own`, the stored row of query 0, is left out."""
    best = queries_QD.new_empty(len(queries_QD), 0)
    rows = torch.empty(len(queries_QD), 0, dtype=torch.int64, device=queries_QD.device)
    for start in range(0, len(stored_SD), _BLOCK_ROWS):
        similarity = queries_QD @ stored_SD[start : start + _BLOCK_ROWS].T
        columns = torch.arange(start, start + similarity.shape[1], device=queries_QD.device)
        if own is not None:
            similarity[
                columns[None] == torch.arange(own, own + len(queries_QD), device=columns.device)[:, None]
            ] = -torch.inf
        best = torch.cat([best, similarity], dim=1)
        rows = torch.cat([rows, columns.expand(len(queries_QD), -1)], dim=1)
        best, chosen = best.topk(min(k, best.shape[1]), dim=1)
        rows = rows.gather(1, chosen)
    return best, rows


def _unit(features: NDArray[np.float32], device: str) -> Tensor:
    return torch.nn.functional.normalize(torch.as_tensor(np.asarray(features, np.float32), device=device), dim=1)
