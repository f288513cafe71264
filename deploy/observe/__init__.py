"""Observing runs: metrics for Prometheus, a Grafana dashboard and alert rules, TensorBoard, MLflow, W&B, the report.

Nothing here is needed to train: everything is read from what a run writes and from the state that its API answers.
"""

from deploy.observe.follow import Follower
from deploy.observe.metrics import METRICS, readings
from deploy.observe.prometheus import CONTENT_TYPE, RayExporter, metrics_text
from deploy.observe.trackers import build_trackers

__all__ = ["CONTENT_TYPE", "METRICS", "Follower", "RayExporter", "build_trackers", "metrics_text", "readings"]
