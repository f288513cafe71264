"""Pod templates of a Ray cluster on Kubernetes: not root, shared memory for batches, probes, secrets by reference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

AGENT_PORT, DASHBOARD_PORT, GCS_PORT, METRICS_PORT = 52365, 8265, 6379, 8080
HEALTH_PATH = "/api/healthz"
"""Answered by each node's agent without a token, as KubeRay expects it of Ray 2.53 and later."""
USER_ID = 1000
"""The Dockerfile's user."""
SHARED = "/shared"
"""Where the claim with shards and run directories is mounted."""
TOKEN_KEY = "auth_token"  # noqa: S105 - the key's name
GRACE_S = 120
"""Seconds that a pod may take to end, for the trainer's last checkpoint."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PodNeeds:
    """Resources of one pod."""

    cpus: int
    memory_gib: int
    """Memory, shared memory included."""
    shared_memory_gib: int
    """Shared memory, for Ray's object store and the loaders' rings."""
    gpus: int = 0
    """NVIDIA GPUs."""

    def __post_init__(self) -> None:
        if self.cpus < 1 or self.gpus < 0:
            raise ValueError(f"a pod needs 1 CPU or more, and GPUs from 0; got {self.cpus} and {self.gpus}.")
        if not 1 <= self.shared_memory_gib < self.memory_gib:
            raise ValueError(
                f"a pod's shared memory is part of its memory and must be 1 GiB or more and below it "
                f"({self.memory_gib} GiB); got {self.shared_memory_gib}."
            )

    def resources(self) -> dict[str, Any]:
        """Return requests and limits; equal ones, so that no pod is evicted for what others use."""
        amounts: dict[str, Any] = {"cpu": str(self.cpus), "memory": f"{self.memory_gib}Gi"}
        if self.gpus:
            amounts["nvidia.com/gpu"] = str(self.gpus)
        return {"requests": amounts, "limits": dict(amounts)}


@dataclass(frozen=True, kw_only=True, slots=True)
class PodSettings:
    """Settings that all pods of a cluster share."""

    image: str
    """Container image, with its tag or digest."""
    claim: str
    """PersistentVolumeClaim that all pods mount, ReadWriteMany."""
    token_secret: str
    """Secret with the cluster's token under `auth_token`."""
    env_secret: str = ""
    """Secret whose keys become environment variables, as for object storage; none when empty."""


def pod_template(name: str, needs: PodNeeds, settings: PodSettings, *, head: bool = False) -> dict[str, Any]:
    """Return a pod template with one Ray container; the head also has ports for jobs and the cluster's state."""
    ports = [{"name": "metrics", "containerPort": METRICS_PORT}]
    if head:
        ports += [{"name": "gcs", "containerPort": GCS_PORT}, {"name": "dashboard", "containerPort": DASHBOARD_PORT}]
    # By reference: a manifest is committed and shown, so the token must not stand in it.
    token = {"secretKeyRef": {"name": settings.token_secret, "key": TOKEN_KEY}}
    container: dict[str, Any] = {
        "name": name,
        "image": settings.image,
        "imagePullPolicy": "IfNotPresent",
        "ports": ports,
        "env": [
            {"name": "RAY_AUTH_MODE", "value": "token"},
            {"name": "RAY_AUTH_TOKEN", "valueFrom": token},
        ],
        "resources": needs.resources(),
        "livenessProbe": _probe(delay_s=30, every_s=10, failures=12),
        "readinessProbe": _probe(delay_s=10, every_s=5, failures=10),
        "securityContext": container_security(),
        "volumeMounts": [
            {"name": "shared-memory", "mountPath": "/dev/shm"},  # noqa: S108 - mounted in the container
            {"name": "shared", "mountPath": SHARED},
        ],
    }
    if settings.env_secret:
        container["envFrom"] = [{"secretRef": {"name": settings.env_secret}}]
    spec: dict[str, Any] = {
        "securityContext": pod_security(),
        "terminationGracePeriodSeconds": GRACE_S,
        "containers": [container],
        # A container's own /dev/shm has 64 MiB, too little for Ray's object store and the loaders' rings.
        "volumes": [
            {"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": f"{needs.shared_memory_gib}Gi"}},
            {"name": "shared", "persistentVolumeClaim": {"claimName": settings.claim}},
        ],
    }
    if not head:  # only the head's autoscaler talks to Kubernetes
        spec["automountServiceAccountToken"] = False
    return {"spec": spec}


def pod_security() -> dict[str, Any]:
    """Return the security context of a pod: not root, and in the group that may write to the shared volume."""
    return {
        "runAsNonRoot": True,  # the kubelet checks it, whatever the image says
        "runAsUser": USER_ID,
        "runAsGroup": USER_ID,
        "fsGroup": USER_ID,
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def container_security() -> dict[str, Any]:
    """Return the security context of a container: no way to more rights."""
    return {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def _probe(*, delay_s: int, every_s: int, failures: int) -> dict[str, Any]:
    return {
        "httpGet": {"path": HEALTH_PATH, "port": AGENT_PORT},
        "initialDelaySeconds": delay_s,
        "periodSeconds": every_s,
        "timeoutSeconds": 5,
        "failureThreshold": failures,
    }
