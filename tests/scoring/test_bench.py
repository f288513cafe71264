import json

from tests.bench import selection as bench


def test_bench_reports_every_figure(monkeypatch):
    monkeypatch.setattr(bench, "SERVICE_SIZE", 20_000)
    report = bench.selection(trainers=False, sizes=(50_000, 10**12), seconds=0.3)
    figures = report["by_n"]["50000"]
    assert {"draw_window_ms", "reweigh_ms", "solve_ms", "resident_bytes_per_sample"} <= set(figures)
    assert all(value > 0 for value in figures.values())
    assert report["by_n"][str(10**12)] is None, "it does not fit into memory"
    assert {"scores_per_s", "ack_p99_ms", "window_p99_ms_256_threads", "recover_ms"} <= set(report)
    assert report["scores_per_s"] > 0
    json.dumps(report, allow_nan=False)
