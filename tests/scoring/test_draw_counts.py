import numpy as np

from scoring.table.draw_counts import DrawCounts


def test_counts_equal_a_plain_table_beyond_two_bytes():
    rng = np.random.default_rng(0)
    counts, plain = DrawCounts(40), np.zeros(40, np.int64)
    for _ in range(30):
        rows = np.concatenate([rng.integers(0, 40, 500), np.full(9_000, 7), np.full(3_000, 39)])
        counts.add(rows)
        np.add.at(plain, rows, 1)
    assert plain[7] > 4 * 2**16 > plain[39] > 2**16
    np.testing.assert_array_equal(counts.part(0, 40), plain)
    np.testing.assert_array_equal(counts.part(5, 9), plain[5:9])
    np.testing.assert_array_equal(counts.histogram, np.bincount(plain))

    restored = DrawCounts(40)
    restored.unpack(counts.pack())
    restored.add(np.array([7, 7, 0]))
    counts.add(np.array([7, 7, 0]))
    np.testing.assert_array_equal(restored.part(0, 40), counts.part(0, 40))
    np.testing.assert_array_equal(restored.histogram[: len(counts.histogram)], counts.histogram)
    assert counts.nbytes == 80
