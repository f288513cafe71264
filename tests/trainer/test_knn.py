import multiprocessing
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier
from trainer_fakes import tiny

from trainer import build_method
from trainer.evaluate import knn
from trainer.evaluate.knn import PROTOCOLS, Protocol, embed_pools, memory_bytes, neighbour_figures


def clouds(seed, count, spread=1.0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(5, size=count)
    centres = np.random.default_rng(99).normal(size=(5, 8))
    return (centres[labels] + spread * rng.normal(size=(count, 8))).astype(np.float32), labels


@pytest.mark.parametrize("seed", range(3))
def test_one_neighbour_equals_sklearn(seed, monkeypatch):
    monkeypatch.setattr(knn, "_BLOCK_ROWS", 37)
    monkeypatch.setattr(knn, "_QUERY_ROWS", 11)
    (train, labels), (test, wanted) = clouds(seed, 150), clouds(seed + 10, 60)
    reference = KNeighborsClassifier(1, metric="cosine").fit(train, labels).score(test, wanted)
    assert neighbour_figures("nn", (train, labels), (test, wanted))["acc1"] == pytest.approx(reference)


def test_votes_win_over_similarity_and_ties_go_to_the_nearer():
    train = np.array([[1, 0], [0.9, 0.1], [0, 1], [0.1, 0.9]], np.float32)
    labels = np.array([0, 1, 1, 1])
    query = np.array([[1, 0.02]], np.float32)
    for k, wanted in ((2, 0), (3, 1)):
        found = neighbour_figures(Protocol(k=k), (train, labels), (query, np.array([wanted])))
        assert found["acc1"] == 1.0


def test_weighted_votes_equal_sklearn_with_the_same_weights():
    (train, labels), (test, wanted) = clouds(0, 150), clouds(10, 60)
    reference = KNeighborsClassifier(20, metric="cosine", weights=lambda distance: np.exp(-distance / 0.07))
    score = neighbour_figures("weighted", (train, labels), (test, wanted))
    assert score["acc1"] == pytest.approx(reference.fit(train, labels).score(test, wanted))


def test_a_sample_is_not_its_own_neighbour():
    known = clouds(0, 80, spread=3.0)
    assert neighbour_figures("nn", known, known)["acc1"] == 1.0
    assert neighbour_figures("nn", known, known, exclude_self=True)["acc1"] < 0.9


def test_labels_are_needed():
    features, labels = clouds(0, 10)
    with pytest.raises(ValueError, match="need a label for every train sample"):
        neighbour_figures("nn", (features, np.full(10, -1)), (features, labels))
    with pytest.raises(ValueError, match=r"k must be in 1\.\.10; got 11"):
        neighbour_figures(Protocol(k=11), (features, labels), (features, labels))


def test_embedding_takes_uint8_batches_and_leaves_the_mode_alone():
    method = build_method("mae", tiny())
    images = np.random.default_rng(0).integers(256, size=(5, 3, 16, 16), dtype=np.uint8)
    features = embed_pools(method, [images[:3], torch.from_numpy(images[3:])])["cls"]
    assert features.shape == (5, 32)
    assert features.dtype == np.float32
    assert np.allclose(features, embed_pools(method.encoder, [images])["cls"], atol=1e-5)
    assert not np.allclose(features, embed_pools(method, [images])["mean"])
    assert method.training
    with pytest.raises(ValueError, match="at least one batch"):
        embed_pools(method, [])


@pytest.mark.parametrize("name", PROTOCOLS)
def test_faiss_and_torch_agree_under_every_protocol(name, monkeypatch):
    monkeypatch.setattr(knn, "_BLOCK_ROWS", 37)
    monkeypatch.setattr(knn, "_QUERY_ROWS", 11)
    train, test = clouds(0, 150, spread=2.0), clouds(10, 60, spread=2.0)
    for exclude, queries in ((False, test), (True, train)):
        figures = [
            neighbour_figures(name, train, queries, exclude_self=exclude, backend=backend)
            for backend in ("torch", "faiss")
        ]
        assert figures[0] == figures[1]
        assert figures[0]["any_k"] >= figures[0]["acc1"] > 0.2


def test_clmaes_protocol_equals_sklearn_on_normed_features():
    (train, labels), (test, wanted) = clouds(0, 150, spread=2.0), clouds(10, 60, spread=2.0)
    normed = [
        (part - part.mean(1, keepdims=True)) / np.sqrt(part.var(1, keepdims=True) + 1e-5) for part in (train, test)
    ]
    reference = KNeighborsClassifier(5).fit(normed[0], labels)
    figures = neighbour_figures("clmae", (train, labels), (test, wanted))
    assert figures["acc1"] == pytest.approx(reference.score(normed[1], wanted))
    rows = reference.kneighbors(normed[1], return_distance=False)
    assert figures["any_k"] == pytest.approx((labels[rows] == wanted[:, None]).any(axis=1).mean())


def peak_bytes():
    """The most that this program has held; getrusage's ru_maxrss counts what the process held before its exec, too."""
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) * 1024


def memory_share(answers):
    """Run in a process of its own: the memory that a search takes, as a share of what is computed for it."""
    queries, stored, width = 200, 100_000, 96
    small = (np.ones((50, width), np.float32), np.zeros(50, np.int64))
    neighbour_figures("weighted", small, small)
    before = peak_bytes()
    rng = np.random.default_rng(0)
    features = [(rng.standard_normal((n, width), np.float32), np.arange(n) % 10) for n in (stored, queries)]
    neighbour_figures("weighted", *features)
    answers.put((peak_bytes() - before) / memory_bytes(queries, stored, width))


def test_all_of_imagenet_fits_as_computed_and_a_smaller_search_takes_no_more_than_computed():
    assert memory_bytes(50_000, 1_281_167, 768) < 4.6 * 2**30
    assert memory_bytes(50_000, 1_281_167, 768) > (50_000 + 1_281_167) * 768 * 4
    # A new process: one that is forked here has what earlier tests took and freed, and grows by less.
    processes = multiprocessing.get_context("spawn")
    answers = processes.Queue()
    measured = processes.Process(target=memory_share, args=(answers,))
    measured.start()
    assert 0.3 < answers.get(timeout=240) < 1.4  # what a process takes besides differs by some 20 MB
    measured.join()
