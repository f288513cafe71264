import faiss
import numpy as np
import pytest

from scoring.clusters import cluster, kmeans_device, labelled_clusters
from scoring.features import rows as feature_rows
from scoring.features.rows import normalised
from scoring.features.store import FeatureStore
from scoring.prototypes import prototype_distances
from tests.bench.kmeans import kmeans, purity
from tests.scoring.configs import blobs


def stored(path, features, chunk=1000):
    store = FeatureStore(path, identity={"space": "x"}, num_samples=len(features), chunk_samples=chunk)
    for number in store.missing():
        store.write(number, features[store.ids(number)], bad=[f"{number}"] if number == 2 else [])
    return store


def test_rows_on_disk_cluster_as_those_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(feature_rows, "ROWS_AT_ONCE", 700)
    features = blobs(8, 900, 6)
    here, there = cluster(features, 8, seed=1), cluster(stored(tmp_path, features), 8, seed=1)
    np.testing.assert_array_equal(here.assignment, there.assignment)
    np.testing.assert_array_equal(here.centroids, there.centroids)


def test_passes_over_all_rows_end_at_the_members_means():
    features = blobs(8, 900, 6)  # 7,200 rows, of which 2,048 are sampled
    found = cluster(features, 8, seed=2)
    means = np.stack([features[found.assignment == k].mean(0) for k in range(8)])
    np.testing.assert_allclose(found.centroids, means, atol=0.05)
    nearest = np.linalg.norm(features[:, None] - found.centroids[None], axis=2)
    np.testing.assert_array_equal(found.assignment, nearest.argmin(1))
    np.testing.assert_allclose(found.distance, nearest.min(1), rtol=1e-4)


def test_labels_are_clusters_with_their_means():
    features, labels = blobs(3, 10, 6), np.array([5, 7, 9]).repeat(10)
    found = labelled_clusters(features, labels)
    np.testing.assert_array_equal(found.assignment, np.arange(3).repeat(10))
    np.testing.assert_allclose(found.centroids[1], features[10:20].mean(0), atol=1e-5)
    np.testing.assert_allclose(found.distance[12], np.linalg.norm(features[12] - found.centroids[1]), rtol=1e-5)
    assert prototype_distances(features, labels=labels).num_clusters == 3
    with pytest.raises(ValueError, match="1 have none"):
        labelled_clusters(features, np.append(labels[:-1], -1))


def test_presets_standardise_and_scale(tmp_path):
    features = blobs(8, 900, 6) * np.array([1, 10, 100, 1, 1, 0], np.float32) + 3
    rows = normalised(stored(tmp_path, features), "standardise")
    np.testing.assert_allclose(rows[:].mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(rows[:].std(0), [1, 1, 1, 1, 1, 0], atol=1e-4)
    library = normalised(features, "library")
    np.testing.assert_allclose(np.linalg.norm(library[:], axis=1), 1, atol=1e-5)
    expected = (features - features.mean(0)) / np.where(features.std(0) > 0, features.std(0), 1)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(library[5:9], expected[5:9], atol=1e-4)
    assert normalised(features, "none") is features
    with pytest.raises(ValueError, match="normalise must be one of"):
        normalised(features, "whiten")


@pytest.mark.skipif(hasattr(faiss, "StandardGpuResources"), reason="this faiss has GPUs")
def test_a_gpu_that_is_not_there_is_an_error():
    assert kmeans_device("auto") == kmeans_device("cpu") == "cpu"
    with pytest.raises(ValueError, match="build for the CPU"):
        kmeans_device("gpu")


def test_a_store_goes_on_where_it_stopped_and_knows_its_own(tmp_path):
    features = blobs(2, 1250, 6)
    store = FeatureStore(tmp_path / "s", identity={"space": "hog"}, num_samples=2500, chunk_samples=1000)
    store.write(1, features[1000:2000])
    (tmp_path / "s" / "features-000000.safetensors").write_bytes(b"torn")
    again = FeatureStore(tmp_path / "s", identity={"space": "hog"}, num_samples=2500, chunk_samples=1000)
    assert again.missing() == [0, 2]
    with pytest.raises(ValueError, match=r"same space \(pixels\); it holds hog"):
        FeatureStore(tmp_path / "s", identity={"space": "pixels"}, num_samples=2500, chunk_samples=1000)
    with pytest.raises(ValueError, match="one finite row"):
        again.write(0, features[:999])
    whole = stored(tmp_path / "w", features)
    assert whole.shape == features.shape
    rows = np.array([3, 999, 1000, 2499])
    np.testing.assert_array_equal(whole[rows], features[rows])
    np.testing.assert_array_equal(whole[900:2100], features[900:2100])
    assert whole.bad() == ["2"]


def test_the_benchmark_clusters_made_features_and_measures_the_process(tmp_path, capsys):
    report = kmeans(samples=5000, width=16, clusters=2, folder=tmp_path)
    assert report["purity"] == 1.0  # two centres in 16 dimensions lie far apart
    assert (report["clusters"], report["feature_bytes"]) == (2, 4 * 5000 * 16)
    assert min(report[name] for name in ("seconds", "cpu_seconds", "of_product")) > 0
    assert report["peak_bytes"] > 2**20
    said = capsys.readouterr().err
    assert "making features" in said
    assert "clustering" in said
    assert not list(tmp_path.iterdir())  # the features are gone


def test_purity_is_the_share_of_each_clusters_most_frequent_origin():
    assert purity(np.array([0, 0, 0, 1, 1], np.int32), np.array([7, 7, 2, 2, 2], np.int32)) == 4 / 5
