"""The NetworkPolicy of a cluster: its pods talk to each other; others come in by one port each, for one purpose."""

from __future__ import annotations

from typing import Any

from deploy.remote.manifests.pods import DASHBOARD_PORT, METRICS_PORT

CLUSTER_LABEL = "ray.io/cluster"
OPERATOR = {"app.kubernetes.io/name": "kuberay-operator"}


def network_policy(cluster: str, job: str, *, metrics_namespace: str) -> dict[str, Any]:
    """Deny everything to and from a cluster's pods but what a run needs.

    In: the cluster itself; the job's submitter and the KubeRay operator to the job server; Prometheus to the metrics.
    Out: the cluster itself; DNS; HTTPS, for object storage and the Kubernetes API that the autoscaler asks.

    Args:
        cluster: name of the RayCluster.
        job: name of the RayJob.
        metrics_namespace: namespace that Prometheus runs in.
    """
    inside = {"podSelector": {"matchLabels": {CLUSTER_LABEL: cluster}}}
    submitter = {
        "podSelector": {"matchLabels": {"ray.io/originated-from-cr-name": job, "ray.io/originated-from-crd": "RayJob"}}
    }
    operator = {"namespaceSelector": {}, "podSelector": {"matchLabels": dict(OPERATOR)}}
    prometheus = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": metrics_namespace}}}
    dns = {
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}},
        "podSelector": {"matchLabels": {"k8s-app": "kube-dns"}},
    }
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": cluster},
        "spec": {
            "podSelector": {"matchLabels": {CLUSTER_LABEL: cluster}},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [
                {"from": [inside]},
                {"from": [submitter, operator], "ports": [_port(DASHBOARD_PORT)]},
                {"from": [prometheus], "ports": [_port(METRICS_PORT)]},
            ],
            "egress": [
                {"to": [inside]},
                {"to": [dns], "ports": [_port(53, "UDP"), _port(53)]},
                {"ports": [_port(443), _port(6443)]},
            ],
        },
    }


def _port(number: int, protocol: str = "TCP") -> dict[str, Any]:
    return {"port": number, "protocol": protocol}
