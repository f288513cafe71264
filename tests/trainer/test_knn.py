import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier
from trainer_fakes import tiny

from trainer import build_method
from trainer.evaluate import embed, knn, nearest_neighbour_accuracy


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
    assert nearest_neighbour_accuracy(train, labels, test, wanted) == pytest.approx(reference)


def test_votes_win_over_similarity_and_ties_go_to_the_nearer():
    train = np.array([[1, 0], [0.9, 0.1], [0, 1], [0.1, 0.9]], np.float32)
    labels = np.array([0, 1, 1, 1])
    query = np.array([[1, 0.02]], np.float32)
    assert nearest_neighbour_accuracy(train, labels, query, np.array([0]), k=2) == 1.0
    assert nearest_neighbour_accuracy(train, labels, query, np.array([1]), k=3) == 1.0


def test_weighted_votes_equal_sklearn_with_the_same_weights():
    (train, labels), (test, wanted) = clouds(0, 150), clouds(10, 60)
    reference = KNeighborsClassifier(20, metric="cosine", weights=lambda distance: np.exp(-distance / 0.07))
    score = nearest_neighbour_accuracy(train, labels, test, wanted, k=20, temperature=0.07)
    assert score == pytest.approx(reference.fit(train, labels).score(test, wanted))


def test_a_sample_is_not_its_own_neighbour():
    features, labels = clouds(0, 80, spread=3.0)
    assert nearest_neighbour_accuracy(features, labels, features, labels) == 1.0
    assert nearest_neighbour_accuracy(features, labels, features, labels, exclude_self=True) < 0.9


def test_labels_are_needed():
    features, labels = clouds(0, 10)
    with pytest.raises(ValueError, match="need a label for every train sample"):
        nearest_neighbour_accuracy(features, np.full(10, -1), features, labels)
    with pytest.raises(ValueError, match=r"k must be in 1\.\.10; got 11"):
        nearest_neighbour_accuracy(features, labels, features, labels, k=11)


def test_embedding_takes_uint8_batches_and_leaves_the_mode_alone():
    method = build_method("mae", tiny())
    images = np.random.default_rng(0).integers(256, size=(5, 3, 16, 16), dtype=np.uint8)
    features = embed(method, [images[:3], torch.from_numpy(images[3:])])
    assert features.shape == (5, 32)
    assert features.dtype == np.float32
    assert np.allclose(features, embed(method.encoder, [images]), atol=1e-5)
    assert not np.allclose(features, embed(method, [images], pool="mean"))
    assert method.training
    with pytest.raises(ValueError, match="at least one batch"):
        embed(method, [])
