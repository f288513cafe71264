"""`tempera manifest`, `up`: write a cluster's description, from a run or from a few lines."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from deploy.commands.combined import AS_NAMED, Combination, Settings
from deploy.console import Answer, say


@dataclass(frozen=True, kw_only=True, slots=True)
class Pods:
    """Sizes and numbers of the pods."""

    loader_cpus: int = 8
    """cores of a loader pod."""
    loader_memory: int = 32
    """GiB of a loader pod; half of it is shared memory."""
    max_loaders: int = 8
    """most loader pods."""
    trainer_cpus: int = 16
    """cores of a trainer pod."""
    trainer_memory: int = 128
    """GiB of a trainer pod; half of it is shared memory."""
    gpus_per_trainer: int = 8
    """GPUs of a trainer pod, for runs with trainers.use_gpu."""


PodOptions = Annotated[Pods, arg(name="")]
USUAL_PODS = Pods()


def kuberay(
    name: Positional[str],
    *,
    image: str,
    index: Path,
    prototypes: Path | None = None,
    combined: Combination = AS_NAMED,
    set: Settings = (),
    out: Path | None = None,
    claim: str = "tempera-shared",
    token_secret: str = "tempera-token",  # noqa: S107 - the secret's name
    env_secret: str = "",
    pods: PodOptions = USUAL_PODS,
    metrics_namespace: str = "prometheus",
) -> Answer:
    """Write a run's RayCluster, NetworkPolicy and RayJob for KubeRay 1.7.

    Args:
        name: as for `tempera train`.
        image: container image built from deploy/remote/manifests/Dockerfile, with its tag or digest.
        index: index.parquet as the pods see it, under /shared.
        prototypes: prototypes.parquet under /shared, for the policies that need it.
        out: file to write; standard output by default.
        claim: ReadWriteMany PersistentVolumeClaim, mounted at /shared.
        token_secret: secret with the cluster's token.
        env_secret: secret whose keys become environment variables, as for object storage.
        metrics_namespace: namespace that may scrape the metrics.
    """
    import ray

    from deploy.remote.manifests.kuberay import KubernetesOptions, kuberay_documents, resource_name, to_yaml
    from deploy.remote.manifests.pods import SHARED, PodNeeds, PodSettings
    from deploy.runs.config import DataConfig
    from deploy.runs.overrides import override
    from deploy.runs.recipes import RUNS
    from trainer.config import choose

    changes = (*combined.settings(), *set)
    config = override(choose(name, RUNS, "a run")(DataConfig(index=str(index))), changes)
    words = ["train", name, "--index", str(index), "--out", f"{SHARED}/runs/{config.name}"]
    words += ["--prototypes", str(prototypes)] if prototypes else []
    settings = PodSettings(image=image, claim=claim, token_secret=token_secret, env_secret=env_secret)
    gpus = pods.gpus_per_trainer if config.trainers.use_gpu else 0
    loader_gib, trainer_gib = pods.loader_memory, pods.trainer_memory
    options = KubernetesOptions(
        settings=settings,
        loader=PodNeeds(cpus=pods.loader_cpus, memory_gib=loader_gib, shared_memory_gib=loader_gib // 2),
        trainer=PodNeeds(cpus=pods.trainer_cpus, memory_gib=trainer_gib, shared_memory_gib=trainer_gib // 2, gpus=gpus),
        head=PodNeeds(cpus=4, memory_gib=16, shared_memory_gib=4),
        max_loader_pods=pods.max_loaders,
        ray_version=ray.__version__,
        metrics_namespace=metrics_namespace,
    )
    documents = kuberay_documents(config, [*words, *(("--set", *changes) if changes else ())], options)
    text = to_yaml(documents, name=resource_name(config.name), settings=settings)
    if out is None:
        return Answer(data={"documents": documents}, view=text, verbatim=True)
    out.write_text(text)
    return Answer(data={"file": str(out), "documents": documents}, view=f"written: {out}")


def up(description: Positional[Path], *, out: Path | None = None, start: bool = False) -> Answer:
    """Write and check the `ray up` file of a cluster described in a few lines, and start it if asked to.

    Args:
        description: YAML file: name, provider (local, aws or gcp), loaders and trainers with their machine, min and
            max; deploy/remote/manifests/*.example.yaml are examples.
        out: file to write; NAME-ray.yaml beside the description by default.
        start: pass the file to `ray up`, which asks before it spends money.
    """
    import subprocess
    import sys

    from deploy.remote.manifests.ray_up import load_description, ray_up_config, to_yaml

    cluster = load_description(description)
    config = ray_up_config(cluster)
    path = out or description.with_name(f"{cluster.name}-ray.yaml")
    path.write_text(to_yaml(config, cluster))
    say(f"{path} is valid for Ray's own schema; `ray up {path}` starts the cluster, `ray down {path}` ends it")
    if start:
        # The `ray` of this environment, whatever PATH finds.
        ray = str(Path(sys.executable).parent / "ray")
        done = subprocess.run([ray, "up", str(path)], check=False)  # noqa: S603 - no shell, and our own file
        return Answer(data={"file": str(path), "rc": done.returncode}, view=str(path), ok=done.returncode == 0)
    return Answer(data={"file": str(path), "config": config}, view=str(path))
