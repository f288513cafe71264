"""Files for Prometheus and Grafana: scrape configuration, alert rules and dashboard of a run."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from deploy.observe.grafana import dashboard
from deploy.runs.rundir import write_json

ALERTS = Path(__file__).with_name("alerts.yml")
SCRAPE_S = 10
OFF_RAY = {"source_labels": ["__name__"], "regex": "ray_(tempera_.*)", "target_label": "__name__"}
"""Ray puts its own prefix before every name."""
NOT_TWICE = {"source_labels": ["__name__"], "regex": "ray_tempera_.*", "action": "drop"}
"""Drop the run's metrics from Ray where its API is scraped too: sums would count them twice."""


def write_monitoring(
    folder: Path,
    *,
    url: str | None = None,
    token_file: Path | None = None,
    ray_targets: Path | None = None,
    scrape_s: int = SCRAPE_S,
) -> list[Path]:
    """Write prometheus.yml, alerts.yml and grafana.json into a folder, which is created if missing; return their paths.

    `url` and `token_file` are those of the run's HTTP API, None when the metrics come from Ray alone. `ray_targets` is
    Ray's service discovery file, None without Ray: with `url` it adds Ray's own metrics, without it also the run's.
    """
    folder.mkdir(parents=True, exist_ok=True)
    configuration, alerts, panels = folder / "prometheus.yml", folder / ALERTS.name, folder / "grafana.json"
    jobs: list[dict[str, Any]] = []
    if url is not None:
        place = urlsplit(url)
        job: dict[str, Any] = {
            "job_name": "tempera",
            "metrics_path": "/metrics",
            "scheme": place.scheme,
            "static_configs": [{"targets": [place.netloc]}],
        }
        # Name the token's file instead of copying the token: these files may be shared or committed.
        if token_file is not None:
            job["authorization"] = {"credentials_file": str(token_file.resolve())}
        jobs.append(job)
    if ray_targets is not None:
        relabel = OFF_RAY if url is None else NOT_TWICE
        ray = {"job_name": "ray", "file_sd_configs": [{"files": [str(ray_targets)]}]}
        jobs.append(ray | {"metric_relabel_configs": [relabel]})
    content = {
        "global": {"scrape_interval": f"{scrape_s}s", "evaluation_interval": f"{scrape_s}s"},
        "rule_files": [ALERTS.name],
        "scrape_configs": jobs,
    }
    configuration.write_text(yaml.safe_dump(content, sort_keys=False))
    shutil.copyfile(ALERTS, alerts)
    write_json(panels, dashboard())
    return [configuration, alerts, panels]
