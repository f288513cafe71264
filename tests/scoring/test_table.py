import itertools

import numpy as np
import pytest

from scoring.table.draw_counts import DrawCounts
from scoring.table.scores import ScoreReport, ScoreTable, checked_scores


def report(ids, values, *, step=0, producer="a", sequence=0):
    scores = {"ids": np.asarray(ids), "values": np.asarray(values, np.float32), "kind": "loss"}
    return ScoreReport(**scores, step=step, producer=producer, sequence=sequence)


def merged(reports, num_rows=6):
    table = ScoreTable(num_rows)
    for one in reports:
        table.merge(one)
    return table.values


REPORTS = [
    report([0, 1, 2], [1, 1, 1], step=1, producer="b", sequence=1),
    report([1, 2, 3], [2, 2, 2], step=2, producer="b", sequence=2),
    report([2, 3, 4], [3, 3, 3], step=2, producer="a", sequence=7),
    report([0, 4], [4, 4], step=1, producer="b", sequence=3),
    report([4], [5], step=0, producer="z", sequence=9),
]


def test_last_writer_wins_by_step_then_producer_then_sequence():
    np.testing.assert_array_equal(merged(REPORTS), [4, 2, 2, 2, 3, np.nan])


def test_merge_is_commutative():
    expected = merged(REPORTS)
    for order in itertools.permutations(REPORTS):
        np.testing.assert_array_equal(merged(order), expected)


def test_merge_is_idempotent():
    np.testing.assert_array_equal(merged([*REPORTS, *REPORTS[::-1], *REPORTS]), merged(REPORTS))


def test_id_named_twice_takes_its_last_value():
    np.testing.assert_array_equal(merged([report([1, 1, 1], [5, 6, 7])], 2), [np.nan, 7])


def test_random_reports_agree_with_a_slow_twin():
    rng = np.random.default_rng(0)
    reports = []
    for sequence in range(60):
        step, producer = int(rng.integers(4)), "abcd"[rng.integers(4)]
        ids, values = rng.integers(0, 50, 20), rng.random(20)
        reports.append(report(ids, values, step=step, producer=producer, sequence=sequence))
    held = {}
    for one in reports:
        for place, (sample, value) in enumerate(zip(one.ids, one.values, strict=True)):
            key = (one.step, one.producer, one.sequence, place)
            held[sample] = max(held.get(sample, ((), 0.0)), (key, float(value)))
    expected = [held.get(sample, ((), np.nan))[1] for sample in range(50)]
    np.testing.assert_allclose(merged(reports, 50), expected, rtol=1e-7)
    np.testing.assert_allclose(merged(rng.permutation(np.array(reports, object)), 50), expected, rtol=1e-7)


def test_packed_table_goes_on_where_it_was():
    table, copy = ScoreTable(6), ScoreTable(6)
    for one in REPORTS[:3]:
        table.merge(one)
    copy.unpack(table.values.copy(), table.holder.copy(), *table.pack())
    for one in REPORTS[3:]:
        table.merge(one)
        copy.merge(one)
    np.testing.assert_array_equal(copy.values, table.values)


def test_refusals_are_counted_once_each():
    ids, values, rejected = checked_scores([0, -1, 9, 1, 2, 3], [1.0, np.nan, 1.0, np.inf, -1.0, 2.0], 5)
    assert ids.tolist() == [0, 3]
    assert values.tolist() == [1.0, 2.0]
    assert rejected == {"unknown_id": 2, "not_finite": 1, "negative": 1}


def test_oversized_report_is_refused(monkeypatch):
    monkeypatch.setattr("scoring.table.scores.REPORT_LIMIT", 2)
    with pytest.raises(ValueError, match="at most 2"):
        checked_scores([0, 1, 2], [0.0, 0.0, 0.0], 5)


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
    restored.unpack({name: array.copy() for name, array in counts.pack().items()})
    restored.add(np.array([7, 7, 0]))
    counts.add(np.array([7, 7, 0]))
    np.testing.assert_array_equal(restored.part(0, 40), counts.part(0, 40))
    np.testing.assert_array_equal(restored.histogram[: len(counts.histogram)], counts.histogram)
    assert counts.nbytes == 80
