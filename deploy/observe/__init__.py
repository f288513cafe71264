"""Observing runs: metrics for Prometheus, a Grafana dashboard and alert rules, TensorBoard, MLflow, W&B, the report.

Nothing here is needed to train: everything is read from what a run writes and from the state that its API answers.
"""
