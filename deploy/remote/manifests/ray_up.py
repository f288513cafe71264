"""A `ray up` file from a few lines: a head without CPUs, a CPU group for loaders, a GPU group for trainers.

Clouds (aws, gcp) start machines of each group between its minimum and maximum as actors ask for their label. Bare
machines (local) are named one by one; each finds its label by its own address when Ray starts there.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from deploy.remote.jobs.ray_jobs import LOADER, ROLE_LABEL, TRAINER
from trainer.config import from_dict

PORT = 6379
HEADER = """\
# {name}: written by `tempera up`. `ray up` starts it, `ray dashboard` forwards its job server to this machine,
# `ray down` ends it. The cluster's token is copied from {token}; make it with `ray get-auth-token --generate`.
"""
GCP_IMAGE = "projects/deeplearning-platform-release/global/images/family/common-cpu"
"""Ray's default; a GPU group should name one with NVIDIA's driver as its boot_image."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """Machines of one kind."""

    cpus: int
    gpus: int = 0
    machine: str = ""
    """The cloud's name of the machine, as in c7i.4xlarge or a2-highgpu-8g."""
    boot_image: str = ""
    """The cloud's machine image; Ray's default for the region when empty."""
    hosts: tuple[str, ...] = ()
    """Addresses of the machines, for the local provider."""
    min: int = 0
    max: int = 1
    spot: bool = False
    """Whether to take cheaper machines that the cloud may reclaim."""

    def __post_init__(self) -> None:
        if self.cpus < 1 or self.gpus < 0:
            raise ValueError(f"a machine has 1 CPU or more, and GPUs from 0; got {self.cpus} and {self.gpus}.")
        if not 0 <= self.min <= self.max:
            raise ValueError(f"min and max of a group must be 0 <= min <= max; got {self.min} and {self.max}.")
        for host in self.hosts:
            try:
                ipaddress.ip_address(host)
            except ValueError as error:
                raise ValueError(
                    f"a host must be an IP address, for its label is found by it; got {host!r}."
                ) from error


@dataclass(frozen=True, kw_only=True, slots=True)
class Provider:
    """Where the machines are."""

    type: Literal["local", "aws", "gcp"]
    """local: machines that ssh reaches."""
    region: str = ""
    zone: str = ""
    """Zone of the region; needed for gcp, as is the project."""
    project: str = ""
    head_ip: str = ""
    """Address of the head, for local."""
    ssh_user: str = "ubuntu"
    ssh_private_key: str = ""
    """Key file for ssh; the clouds make one when it is empty."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClusterDescription:
    """A cluster in a few lines."""

    name: str
    provider: Provider
    head: Group
    """The head: driver, selection service, job server; actors get none of its CPUs."""
    loaders: Group
    trainers: Group
    image: str = ""
    """Container image for all machines; empty to install by `setup`."""
    setup: tuple[str, ...] = ()
    """Shell commands that install Tempera and mount the shared storage on every machine."""
    token_file: str = "~/.ray/auth_token"  # noqa: S105 - the file's name
    """The cluster's token on this machine; copied to every node."""
    disk_gib: int = 200
    """Disk of a cloud machine."""
    idle_minutes: float = 10.0
    """Minutes after which an idle machine is given back."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Fields of a `ray up` file to add as they are."""

    def __post_init__(self) -> None:
        if not self.image and not self.setup:
            raise ValueError("a cluster must have an image, or setup commands that install Tempera; it has neither.")
        local = self.provider.type == "local"
        if local and not (self.provider.head_ip and self.loaders.hosts and self.trainers.hosts):
            raise ValueError("a local cluster must name provider.head_ip, loaders.hosts and trainers.hosts.")
        if not local and not all(
            (self.provider.region, self.head.machine, self.loaders.machine, self.trainers.machine)
        ):
            raise ValueError("a cloud cluster must name provider.region and the machine of head, loaders and trainers.")
        if self.provider.type == "gcp" and not (self.provider.zone and self.provider.project):
            raise ValueError("a gcp cluster must name provider.zone and provider.project.")


def load_description(path: Path) -> ClusterDescription:
    """Read a description.

    Raises:
        ValueError: not YAML, an unknown field (the nearest is named), or a rule is broken.
    """
    try:
        value = yaml.safe_load(path.read_text("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} must be YAML: {error}.") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} must be a mapping of fields; got {type(value).__name__}.")
    try:
        return from_dict(ClusterDescription, value)
    except TypeError as error:
        raise ValueError(f"{path}: {str(error).partition('() ')[2] or error}.") from error


def ray_up_config(cluster: ClusterDescription) -> dict[str, Any]:
    """Return the contents of a `ray up` file, checked by Ray's own schema and rules.

    Raises:
        ValueError: Ray refuses it.
    """
    import jsonschema  # type: ignore[import-untyped]
    from ray.autoscaler._private.util import prepare_config, validate_config

    provider, hosts = cluster.provider, [*cluster.loaders.hosts, *cluster.trainers.hosts]
    if provider.type == "local":
        where: dict[str, Any] = {"type": "local", "head_ip": provider.head_ip, "worker_ips": hosts}
    else:
        zone = {"availability_zone": provider.zone} if provider.zone else {}
        project = {"project_id": provider.project} if provider.project else {}
        where = {"type": provider.type, "region": provider.region, **zone, **project}
    key = {"ssh_private_key": provider.ssh_private_key} if provider.ssh_private_key else {}
    # Ray opens a file for each worker and connection: the usual limit of 1,024 is soon reached.
    start = f"ulimit -n 65536; export RAY_AUTH_MODE=token; ray start --port={PORT} --num-cpus=0 --num-gpus=0 --head"
    join = f"ulimit -n 65536; export RAY_AUTH_MODE=token; ray start --address=$RAY_HEAD_IP:{PORT}"
    config: dict[str, Any] = {
        "cluster_name": cluster.name,
        "provider": where,
        "auth": {"ssh_user": provider.ssh_user, **key},
        "idle_timeout_minutes": cluster.idle_minutes,
        "file_mounts": {"~/.ray/auth_token": cluster.token_file},
        "setup_commands": ["chmod 600 ~/.ray/auth_token", *cluster.setup],
        "head_start_ray_commands": [
            "ray stop",
            f"{start} --dashboard-host=127.0.0.1 --labels={ROLE_LABEL}=head "
            "--autoscaling-config=~/ray_bootstrap_config.yaml",
        ],
        "worker_start_ray_commands": ["ray stop", join],
    }
    if cluster.image:
        config["docker"] = {"image": cluster.image, "container_name": "tempera", "pull_before_run": True}
    # Bare machines are all started, and find their role by their addresses; a cloud's get theirs from their group.
    if provider.type == "local":
        config |= {"min_workers": len(hosts), "max_workers": len(hosts)}
        config["worker_start_ray_commands"] = ["ray stop", f"{_find_role(cluster)}; {join} --labels={ROLE_LABEL}=$role"]
    else:
        config["max_workers"] = cluster.loaders.max + cluster.trainers.max
        config |= _node_types(cluster)
    config |= cluster.extra  # last, so that the user's fields win
    # Ray has no public check: this is the one that `ray up` does, before it spends money.
    try:
        validate_config(prepare_config(config))
    except jsonschema.ValidationError as error:
        place = ".".join(map(str, error.absolute_path)) or "the file"
        raise ValueError(f"Ray's schema refuses {place}: {error.message}.") from error
    return config


def to_yaml(config: dict[str, Any], cluster: ClusterDescription) -> str:
    """Return the file's text."""
    header = HEADER.format(name=cluster.name, token=cluster.token_file)
    text: str = yaml.safe_dump(config, sort_keys=False, width=120)
    return header + text


def _node_types(cluster: ClusterDescription) -> dict[str, Any]:
    groups = {"head": cluster.head, LOADER: cluster.loaders, TRAINER: cluster.trainers}
    # The head's CPUs are hidden from the scheduler, so that no loader or rank is placed beside the driver.
    types = {
        role: {
            "node_config": _machine(cluster, group),
            "resources": {"CPU": 0 if role == "head" else group.cpus, "GPU": 0 if role == "head" else group.gpus},
            "labels": {ROLE_LABEL: role},
            "min_workers": 0 if role == "head" else group.min,
            "max_workers": 0 if role == "head" else group.max,
        }
        for role, group in groups.items()
    }
    return {"available_node_types": types, "head_node_type": "head"}


def _machine(cluster: ClusterDescription, group: Group) -> dict[str, Any]:
    """Return a group's machine in the cloud's own terms."""
    if cluster.provider.type == "aws":
        volume = {"DeviceName": "/dev/sda1", "Ebs": {"VolumeSize": cluster.disk_gib, "VolumeType": "gp3"}}
        market = {"InstanceMarketOptions": {"MarketType": "spot"}} if group.spot else {}
        image = {"ImageId": group.boot_image} if group.boot_image else {}
        return {"InstanceType": group.machine, "BlockDeviceMappings": [volume], **image, **market}
    disk = {
        "boot": True,
        "autoDelete": True,
        "type": "PERSISTENT",
        "initializeParams": {"diskSizeGb": cluster.disk_gib, "sourceImage": group.boot_image or GCP_IMAGE},
    }
    # Google cannot move a machine with GPUs to another host: it must be stopped for maintenance.
    scheduling: list[dict[str, Any]] = [{"preemptible": True}] if group.spot else []
    scheduling += [{"onHostMaintenance": "TERMINATE"}] if group.gpus else []
    return {"machineType": group.machine, "disks": [disk], **({"scheduling": scheduling} if scheduling else {})}


def _find_role(cluster: ClusterDescription) -> str:
    """Return shell code that sets $role on a bare machine by its own addresses."""
    cases = [
        "|".join(f'*" {host} "*' for host in hosts) + f") role={role};;"
        for role, hosts in ((LOADER, cluster.loaders.hosts), (TRAINER, cluster.trainers.hosts))
    ]
    return f'case " $(hostname -I) " in {" ".join(cases)} esac'
