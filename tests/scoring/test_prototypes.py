import numpy as np
import pytest
from sklearn.metrics import davies_bouldin_score

from scoring.clusters import cluster, davies_bouldin
from scoring.features.images import FEATURES, fit_bag_of_words, hog_features, pixel_features
from scoring.prototypes import Prototypes, prototype_distances
from tests.scoring.configs import blobs

FEATURES_OF_SIX = blobs(6, 80, 8, scale=10)


def test_davies_bouldin_equals_scikit_learn():
    features = FEATURES_OF_SIX
    clusters = cluster(features, 9, seed=3)
    means = np.stack([features[clusters.assignment == k].mean(0) for k in range(9)])
    np.testing.assert_allclose(clusters.centroids, means, atol=1e-3)
    assert davies_bouldin(clusters) == pytest.approx(davies_bouldin_score(features, clusters.assignment), rel=1e-4)


def test_number_of_clusters_is_found():
    prototypes = prototype_distances(FEATURES_OF_SIX)
    assert prototypes.num_clusters == 6
    assert min(prototypes.davies_bouldin, key=prototypes.davies_bouldin.get) == 6


def test_distances_span_zero_to_one_in_every_cluster():
    prototypes = prototype_distances(FEATURES_OF_SIX, 6)
    for k in range(6):
        members = prototypes.distance[prototypes.cluster == k]
        assert (members.min(), members.max()) == (0.0, 1.0)


def test_lone_and_equal_members_are_prototypes():
    features = np.zeros((5, 2), np.float32)
    features[4] = 100
    assert prototype_distances(features, 2).distance.tolist() == [0, 0, 0, 0, 0]
    assert prototype_distances(features[:1]).distance.tolist() == [0]


def test_same_seed_gives_the_same_distances():
    first, second = (prototype_distances(FEATURES_OF_SIX, 5, seed=4) for _ in range(2))
    np.testing.assert_array_equal(first.distance, second.distance)


def test_file_returns_what_was_saved(tmp_path):
    prototypes = prototype_distances(FEATURES_OF_SIX, 6)
    prototypes.save(tmp_path / "prototypes.parquet", "ab12")
    loaded = Prototypes.load(tmp_path / "prototypes.parquet")
    for name in ("distance", "cluster", "centroids"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(prototypes, name))
    assert loaded.davies_bouldin == prototypes.davies_bouldin
    assert loaded.fingerprint == "ab12"
    assert [file.name for file in tmp_path.iterdir()] == ["prototypes.parquet"]


def test_missing_and_foreign_files_are_told_apart(tmp_path):
    with pytest.raises(FileNotFoundError, match="tempera score"):
        Prototypes.load(tmp_path / "none.parquet")
    (tmp_path / "text.parquet").write_text("not parquet")
    with pytest.raises(ValueError, match="must be a file of `tempera score`"):
        Prototypes.load(tmp_path / "text.parquet")


def test_bad_features_are_refused():
    features = FEATURES_OF_SIX
    with pytest.raises(ValueError, match="num_clusters must be between"):
        prototype_distances(features, len(features) + 1)
    with pytest.raises(ValueError, match="must be a matrix"):
        prototype_distances(features[0])
    features = features.copy()
    features[7, 1] = np.nan
    with pytest.raises(ValueError, match="row 7"):
        prototype_distances(features)


@pytest.mark.parametrize(("kind", "width"), [("pixels", 768), ("hog", 1764), ("sift", 512)])
def test_features_do_not_depend_on_the_batching(kind, width):
    images = np.random.default_rng(0).integers(0, 256, (7, 3, 70, 50), dtype=np.uint8)
    space = fit_bag_of_words([images]) if kind == "sift" else FEATURES[kind]
    whole = space(images)
    assert whole.shape == (7, width)
    assert whole.dtype == np.float32
    np.testing.assert_allclose(np.concatenate([space(images[:3]), space(images[3:])]), whole, atol=1e-6)


def test_pixels_of_a_flat_image_are_its_colour():
    image = np.zeros((1, 3, 33, 40), np.uint8)
    image[0, 1] = 255
    np.testing.assert_allclose(pixel_features(image)[0].reshape(3, -1).mean(1), [0, 1, 0], atol=1e-6)


def test_hog_sees_orientation_and_not_brightness():
    stripes = np.zeros((1, 3, 64, 64), np.uint8)
    stripes[..., ::8] = stripes[..., 1::8] = stripes[..., 2::8] = stripes[..., 3::8] = 200
    upright, lying, dim = (hog_features(image)[0] for image in (stripes, stripes.swapaxes(2, 3).copy(), stripes // 2))
    assert upright @ dim / np.linalg.norm(upright) / np.linalg.norm(dim) > 0.99
    assert upright @ lying / np.linalg.norm(upright) / np.linalg.norm(lying) < 0.1
