"""A run on Kubernetes: a NetworkPolicy, a RayCluster and the RayJob that trains on it, for KubeRay 1.7.

The head has no CPUs, so only the driver and the run's services are placed there. Loaders and ranks have a group of pods
each; a node label that the run's configuration asks for keeps them apart, and the autoscaler resizes the groups.
"""

from __future__ import annotations

import math
import re
import shlex
from dataclasses import dataclass
from typing import Any

import yaml

from deploy.remote.jobs.ray_jobs import LOADER, ROLE_LABEL, TRAINER, placement
from deploy.remote.jobs.shipping import GRACE_S
from deploy.remote.manifests.pods import (
    DASHBOARD_PORT,
    METRICS_PORT,
    SHARED,
    PodNeeds,
    PodSettings,
    container_security,
    pod_security,
    pod_template,
)
from deploy.runs.config import RunConfig

LONGEST_NAME = 40
"""Kubernetes allows 63 characters; KubeRay appends to them."""
CLUSTER_LABEL = "ray.io/cluster"
HEADER = """\
# {name}: written by `tempera manifest kuberay`. For KubeRay 1.7 with its feature gate GCSFaultToleranceEmbeddedStorage.
# Needs, in the same namespace:
#   a PersistentVolumeClaim "{claim}", ReadWriteMany, with the shards; run directories are written there
#   the cluster's token, which never stands on a command line:
#     python3 -c 'import secrets; print(secrets.token_hex(32), end="")' |
#       kubectl create secret generic {secret} --from-file=auth_token=/dev/stdin
# The job server, the dashboard and the run's API answer on this machine after
#   kubectl port-forward svc/{name}-head-svc 8265:8265
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class KubernetesOptions:
    """Sizes, image and secrets that the run's own configuration does not have."""

    settings: PodSettings
    loader: PodNeeds
    trainer: PodNeeds
    head: PodNeeds
    max_loader_pods: int
    ray_version: str
    metrics_namespace: str = "prometheus"
    """Namespace that may scrape the metrics."""


def kuberay_documents(config: RunConfig, words: list[str], options: KubernetesOptions) -> list[dict[str, Any]]:
    """Return the resources of a run, in the order in which they are created.

    `words` are the run's `tempera train` command, with paths as the pods see them.

    Raises:
        ValueError: a rank or a loader does not fit into its pod, or Kubernetes does not allow the run's name.
    """
    name, settings = resource_name(config.name), options.settings
    spec = {
        "rayVersion": options.ray_version,
        "authOptions": {"mode": "token", "secretName": settings.token_secret},
        "enableInTreeAutoscaling": True,
        "autoscalerOptions": {
            "version": "v2",
            "upscalingMode": "Default",
            "idleTimeoutSeconds": 300,
            "securityContext": container_security(),
            "resources": {part: {"cpu": "500m", "memory": "1Gi"} for part in ("requests", "limits")},
        },
        "gcsFaultToleranceOptions": {"backend": "rocksdb", "storage": {"size": "1Gi"}},
        "headGroupSpec": {
            "labels": {ROLE_LABEL: "head"},
            # The dashboard listens on every address of the pod, or the job's submitter could not reach it; the network
            # policy and the token decide who can.
            "rayStartParams": {"num-cpus": "0", "num-gpus": "0", "dashboard-host": "0.0.0.0"},  # noqa: S104 - a pod's
            "template": pod_template("ray-head", options.head, settings, head=True),
        },
        "workerGroupSpecs": [_loader_group(config, options), _trainer_group(config, options)],
    }
    cluster = {
        "apiVersion": "ray.io/v1",
        "kind": "RayCluster",
        "metadata": {"name": name, "labels": {"app.kubernetes.io/part-of": "tempera"}},
        "spec": spec,
    }
    return [_network_policy(name, options.metrics_namespace), cluster, _job(name, config, words, settings)]


def to_yaml(documents: list[dict[str, Any]], *, name: str, settings: PodSettings) -> str:
    """Return the resources as a file; its header lists what else the cluster needs."""
    header = HEADER.format(name=name, claim=settings.claim, secret=settings.token_secret)
    text: str = yaml.safe_dump_all(documents, sort_keys=False, width=120, explicit_start=True)
    return header + text


def resource_name(run: str) -> str:
    """Return a run's name as Kubernetes spells names; ValueError if it is too long or starts with no letter."""
    name = run.lower().replace("_", "-")
    if not re.fullmatch(r"[a-z]([a-z0-9-]*[a-z0-9])?", name) or len(name) > LONGEST_NAME:
        raise ValueError(
            f"a run on Kubernetes must have a name of at most {LONGEST_NAME} letters, digits and '-' that starts with "
            f"a letter; got {run!r}. Change it with --set name=..."
        )
    return name


def _network_policy(name: str, metrics_namespace: str) -> dict[str, Any]:
    """Deny all traffic of a cluster's pods but what a run needs.

    In: the cluster itself; the job's submitter and the KubeRay operator to the job server; Prometheus to the metrics.
    Out: the cluster itself; DNS; HTTPS, for object storage and the Kubernetes API that the autoscaler asks.
    """

    def port(number: int, protocol: str = "TCP") -> dict[str, Any]:
        return {"port": number, "protocol": protocol}

    inside = {"podSelector": {"matchLabels": {CLUSTER_LABEL: name}}}
    submitter = {
        "podSelector": {"matchLabels": {"ray.io/originated-from-cr-name": name, "ray.io/originated-from-crd": "RayJob"}}
    }
    operator = {
        "namespaceSelector": {},
        "podSelector": {"matchLabels": {"app.kubernetes.io/name": "kuberay-operator"}},
    }
    prometheus = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": metrics_namespace}}}
    dns = {
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}},
        "podSelector": {"matchLabels": {"k8s-app": "kube-dns"}},
    }
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": name},
        "spec": {
            "podSelector": {"matchLabels": {CLUSTER_LABEL: name}},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [
                {"from": [inside]},
                {"from": [submitter, operator], "ports": [port(DASHBOARD_PORT)]},
                {"from": [prometheus], "ports": [port(METRICS_PORT)]},
            ],
            "egress": [
                {"to": [inside]},
                {"to": [dns], "ports": [port(53, "UDP"), port(53)]},
                {"ports": [port(443), port(6443)]},
            ],
        },
    }


def _loader_group(config: RunConfig, options: KubernetesOptions) -> dict[str, Any]:
    fleet, needs = config.fleet, options.loader
    # A loader that binds no CPU fits anywhere: all of them share one pod.
    each = max(1, math.floor(needs.cpus / fleet.cpus_per_loader)) if fleet.cpus_per_loader else fleet.loaders
    if fleet.cpus_per_loader > needs.cpus:
        raise ValueError(
            f"a loader pod must have fleet.cpus_per_loader ({fleet.cpus_per_loader}) or more; got {needs.cpus}."
        )
    pods = math.ceil(fleet.loaders / each)
    # Refused here, since the loaders without a pod would wait for it until the run's end.
    if pods > options.max_loader_pods:
        raise ValueError(
            f"{fleet.loaders} loaders need {pods} pods; at most {options.max_loader_pods} are allowed (--max-loaders)."
        )
    return _group(LOADER, needs, options.settings, least=1, now=pods, most=options.max_loader_pods)


def _trainer_group(config: RunConfig, options: KubernetesOptions) -> dict[str, Any]:
    trainers, needs = config.trainers, options.trainer
    if trainers.use_gpu and not needs.gpus:
        raise ValueError("a trainer pod must have GPUs for a run with trainers.use_gpu; got 0 (--gpus-per-trainer).")
    fits = [math.floor(needs.cpus / trainers.cpus_per_worker)] + ([needs.gpus] if trainers.use_gpu else [])
    if min(fits) < 1:
        raise ValueError(
            f"a trainer pod must have trainers.cpus_per_worker ({trainers.cpus_per_worker}) or more; got {needs.cpus}."
        )
    pods = math.ceil(trainers.workers / min(fits))
    # None at least, so that the autoscaler gives the GPUs back when no rank asks for them.
    return _group(TRAINER, needs, options.settings, least=0, now=pods, most=pods)


def _group(role: str, needs: PodNeeds, settings: PodSettings, *, least: int, now: int, most: int) -> dict[str, Any]:
    return {
        "groupName": role,
        "replicas": now,
        "minReplicas": least,
        "maxReplicas": most,
        "labels": {ROLE_LABEL: role},
        "rayStartParams": {"num-cpus": str(needs.cpus), "num-gpus": str(needs.gpus)},
        "template": pod_template("ray-worker", needs, settings),
    }


def _job(name: str, config: RunConfig, words: list[str], settings: PodSettings) -> dict[str, Any]:
    placed = placement((LOADER, TRAINER))
    # --set takes all the words after it and stands last: the placement joins them.
    command = [*words, *placed] if "--set" in words else [*words, "--set", *placed]
    submitter = {
        "name": "ray-job-submitter",
        "image": settings.image,
        "resources": {part: {"cpu": "500m", "memory": "1Gi"} for part in ("requests", "limits")},
        "securityContext": container_security(),
    }
    environment = {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(GRACE_S)}}
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {"name": name},
        "spec": {
            "clusterSelector": {CLUSTER_LABEL: name},
            "submissionMode": "K8sJobMode",
            "entrypoint": shlex.join(["tempera", *command]),
            "runtimeEnvYAML": yaml.safe_dump(environment),
            # By these `tempera jobs` knows its own, as if `tempera submit` had started it.
            "metadata": {"tempera_run": config.name, "tempera_out": f"{SHARED}/runs/{config.name}"},
            "submitterPodTemplate": {
                "spec": {
                    "restartPolicy": "Never",
                    "automountServiceAccountToken": False,
                    "securityContext": pod_security(),
                    "containers": [submitter],
                }
            },
        },
    }
