"""Observing runs: metrics for Prometheus, a Grafana dashboard and alert rules, TensorBoard, MLflow, W&B, the report.

Nothing here is needed to train: everything is read from what a run writes and from the state that its API answers.
"""

from deploy.observe.follow import following
from deploy.observe.metrics import METRICS, readings
from deploy.observe.prometheus import CONTENT_TYPE, exported_to_ray, metrics_text
from deploy.observe.trackers import build_trackers

__all__ = ["CONTENT_TYPE", "METRICS", "build_trackers", "exported_to_ray", "following", "metrics_text", "readings"]
