"""Nearest-neighbour accuracy of frozen features (METHODS section 9).

The similarity matrix is computed one block of test rows by one block of training rows at a time, and the best k are
merged, so that 50,000 x 1.28 million fits in memory; `memory_bytes` predicts how much. Search is exact, with torch or
with faiss.

Shapes: B batch, D width, Q queries, S stored rows, K neighbours.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from trainer.config import IMAGENET_MEAN, IMAGENET_STD, choose, require

_BLOCK_ROWS = 16384  # stored rows of one product: 64 MB of similarities for 1024 queries
_QUERY_ROWS = 1024

Pool = Literal["cls", "mean"]
"""How an image's tokens become one vector: the class token, or the mean of the patch tokens."""

Backend = Literal["torch", "faiss"]
Metric = Literal["cosine", "euclidean"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Protocol:
    """How neighbours are found and vote."""

    pool: Pool = "cls"
    k: int = 1
    metric: Metric = "cosine"
    temperature: float | None = None
    """Weigh a vote by exp(similarity / temperature); None gives every neighbour one vote."""
    normalise: bool = False
    """Layer norm without weights before anything else, as CL-MAE's untrained norm does."""


PROTOCOLS: dict[str, Protocol] = {
    "nn": Protocol(),
    "nn_mean": Protocol(pool="mean"),
    "weighted": Protocol(k=20, temperature=0.07),  # DINO, arXiv:2104.14294
    "clmae": Protocol(pool="mean", k=5, metric="euclidean", normalise=True),
}
"""1-NN by cosine on the class token is the prototype paper's; CL-MAE also counts a hit when any of the 5 is right."""


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
        model: an encoder with `features(images)`, or a method with such an encoder; its mode is restored.
        batches: uint8[B, 3, H, W] arrays or tensors.
        pools: one or both.
        mean: pixel mean by channel in [0, 1], as in training.
        std: pixel standard deviation by channel, as in training.

    Raises:
        ValueError: there are no batches.
    """
    encoder: Any = getattr(model, "encoder", model)
    # Computed in the encoder's own precision, float64 included; the features leave it as float32.
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
                parts[pool].append(pooled(tokens_BTD, pool).float().cpu().numpy())
    encoder.train(was_training)
    require(all(parts.values()), "embed needs at least one batch of images; got none. Check the index and the split.")
    return {pool: np.concatenate(pieces) for pool, pieces in parts.items()}


def pooled(tokens_BTD: Tensor, pool: Pool) -> Tensor:
    """Return the class token, or the mean of the patch tokens, [B, D], of tokens with the class token first."""
    return tokens_BTD[:, 0] if pool == "cls" else tokens_BTD[:, 1:].mean(dim=1)


def neighbour_figures(
    protocol: Protocol | str,
    train: tuple[NDArray[np.float32], NDArray[np.integer[Any]]],
    test: tuple[NDArray[np.float32], NDArray[np.integer[Any]]],
    *,
    exclude_self: bool = False,
    device: str = "cpu",
    backend: Backend = "torch",
    progress: Any = None,
) -> dict[str, float]:
    """Return acc1, the share of queries whose neighbours vote for the right label, and any_k: where any of them has it.

    `train` and `test` are (features float32[n, D], labels int[n], 0 or more); `protocol` may be a name in PROTOCOLS.
    With `exclude_self` the test set is the training set, and a row is not its own neighbour. `device` is where torch
    computes; faiss searches a flat index, on a GPU where its GPU build is installed. `progress` is called with
    (queries done, all queries).

    Raises:
        ValueError: labels are missing (negative), sizes do not fit, or k is out of range.
    """
    rule = choose(protocol, PROTOCOLS, "protocol") if isinstance(protocol, str) else protocol
    for name, (features, labels) in (("train", train), ("test", test)):
        require(
            len(features) == len(labels) > 0,
            f"{name} features and labels must be of one length above 0; got {len(features)} and {len(labels)}.",
        )
        require(
            int(np.min(labels)) >= 0,
            f"nearest neighbours need a label for every {name} sample; some are -1. Use a labelled data set.",
        )
    most = len(train[1]) - exclude_self
    require(1 <= rule.k <= most, f"k must be in 1..{most}; got {rule.k}.")
    stored_labels = torch.as_tensor(np.asarray(train[1], np.int64), device=device)
    wanted = torch.as_tensor(np.asarray(test[1], np.int64), device=device)
    right = among = done = 0
    # Votes are summed in float64: ties must be ties, not what is left of rounding.
    for similarity_QK, index_QK in _neighbours(
        rule, train[0], test[0], exclude_self=exclude_self, device=device, backend=backend
    ):
        found_QK = stored_labels[index_QK]
        votes = torch.zeros(len(index_QK), int(stored_labels.max()) + 1, dtype=torch.float64, device=device)
        if rule.temperature is not None:
            vote_QK = ((similarity_QK.double() - 1) / rule.temperature).exp()
        elif rule.metric == "euclidean":
            vote_QK = torch.ones_like(similarity_QK, dtype=torch.float64)  # a tie goes to the smallest label (mode)
        else:  # the addition stays below one vote in sum, so that it breaks ties only
            vote_QK = 1.0 + (similarity_QK.double() + 1.0) / (4.0 * rule.k)
        votes.scatter_add_(1, found_QK, vote_QK)
        here = wanted[done : done + len(index_QK)]
        right += int((votes.argmax(dim=1) == here).sum())
        among += int((found_QK == here[:, None]).any(dim=1).sum())
        done += len(index_QK)
        if progress:
            progress(done, len(wanted))
    return {"acc1": right / done, "any_k": among / done}


def memory_bytes(queries: int, stored: int, width: int, k: int = 20) -> int:
    """Return the peak memory of the search and its features, in bytes, with torch; faiss keeps the features twice.

    It is the sum of both sets of float32 features, one normalised block of each, and their product with its merge.
    """
    rows, columns = min(_QUERY_ROWS, queries), min(_BLOCK_ROWS, stored)
    features = (queries + stored) * width * 4
    blocks = (rows + 2 * columns) * width * 4
    merged = 2 * rows * (columns + 2 * k) * (4 + 8)
    return features + blocks + merged


def _neighbours(
    rule: Protocol,
    stored: NDArray[np.float32],
    queries: NDArray[np.float32],
    *,
    exclude_self: bool,
    device: str,
    backend: Backend,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (similarity, row) of the k nearest stored rows of each block of queries, nearest first."""
    search = _flat_index(rule, stored) if backend == "faiss" else None
    for start in range(0, len(queries), _QUERY_ROWS):
        block_QD = _prepared(queries[start : start + _QUERY_ROWS], rule, device)
        own = start if exclude_self else None
        if search is None:
            yield _nearest(block_QD, stored, rule, device, own=own)
            continue
        scores, found = search.search(block_QD.cpu().numpy(), rule.k + exclude_self)
        similarity, rows = torch.from_numpy(scores if rule.metric == "cosine" else -scores), torch.from_numpy(found)
        if exclude_self:
            # faiss cannot leave a row out: of k + 1 neighbours drop the own row, or the last if it is not among them.
            mine = rows == torch.arange(start, start + len(rows))[:, None]
            order = mine.int().argsort(dim=1, stable=True)[:, : rule.k]
            similarity, rows = similarity.gather(1, order), rows.gather(1, order)
        yield similarity.to(device), rows.to(device)


def _nearest(
    queries_QD: Tensor, stored: NDArray[np.float32], rule: Protocol, device: str, *, own: int | None
) -> tuple[Tensor, Tensor]:
    """Return similarities and rows of the k nearest stored rows; `own`, the stored row of query 0, is left out."""
    best = queries_QD.new_empty(len(queries_QD), 0)
    rows = torch.empty(len(queries_QD), 0, dtype=torch.int64, device=queries_QD.device)
    for start in range(0, len(stored), _BLOCK_ROWS):
        block_SD = _prepared(stored[start : start + _BLOCK_ROWS], rule, device)
        similarity = queries_QD @ block_SD.T
        if rule.metric == "euclidean":
            squares = block_SD.square().sum(dim=1) - 2 * similarity + queries_QD.square().sum(dim=1, keepdim=True)
            similarity = -squares.clamp(min=0)
        columns = torch.arange(start, start + len(block_SD), device=queries_QD.device)
        if own is not None:
            mine = torch.arange(own, own + len(queries_QD), device=columns.device)
            similarity[columns[None] == mine[:, None]] = -torch.inf
        # The best of the blocks so far compete with this block: memory does not grow with the stored rows.
        best = torch.cat([best, similarity], dim=1)
        rows = torch.cat([rows, columns.expand(len(queries_QD), -1)], dim=1)
        best, chosen = best.topk(min(rule.k, best.shape[1]), dim=1)
        rows = rows.gather(1, chosen)
    return best, rows


def _prepared(features: NDArray[np.float32], rule: Protocol, device: str) -> Tensor:
    """Return one block of features as the metric compares them: float32, of unit length for the cosine.

    Block by block, so that a normalised copy of all stored features is never held.
    """
    block = torch.as_tensor(np.asarray(features, np.float32), device=device)
    if rule.normalise:
        block = torch.nn.functional.layer_norm(block, block.shape[1:])
    return torch.nn.functional.normalize(block, dim=1) if rule.metric == "cosine" else block


def _flat_index(rule: Protocol, stored: NDArray[np.float32]) -> Any:
    """Return faiss's exact index of all stored rows, on the GPUs that its GPU build sees."""
    import faiss  # noqa: PLC0415  # optional, and slow to import

    width = stored.shape[1]
    index: Any = faiss.IndexFlatIP(width) if rule.metric == "cosine" else faiss.IndexFlatL2(width)
    if hasattr(faiss, "StandardGpuResources") and faiss.get_num_gpus():
        index = faiss.index_cpu_to_all_gpus(index)
    for start in range(0, len(stored), _BLOCK_ROWS):
        index.add(_prepared(stored[start : start + _BLOCK_ROWS], rule, "cpu").numpy())
    return index
