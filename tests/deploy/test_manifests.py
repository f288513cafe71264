"""Cluster files: Kubernetes resources by structure, and by KubeRay's schema where it is at hand; ray up by Ray's."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.cli import main
from deploy.remote.jobs.shipping import PACKAGES
from deploy.remote.manifests.ray_up import load_description, ray_up_config
from tests.deploy.commands import refusal

MANIFESTS = Path(__file__).parent.parent.parent / "deploy" / "remote" / "manifests"
CRDS = "TEMPERA_KUBERAY_CRDS"
"""Folder with ray.io_rayclusters.yaml and ray.io_rayjobs.yaml of KubeRay 1.7."""
WORDS = ("manifest", "kuberay", "mae_b_800", "--image", "registry/tempera:1", "--index", "/shared/data/index.parquet")
SMALL = ("--loader-cpus", "8", "--set", "fleet.loaders=5", "trainers.workers=16")


def written(capsys: pytest.CaptureFixture[str], *more: str) -> dict[str, dict[str, Any]]:
    """The resources by kind, read back from the file's text."""
    capsys.readouterr()
    assert main([*WORDS, *more]) == 0
    text = capsys.readouterr().out
    assert text.startswith("#")
    return {document["kind"]: document for document in yaml.safe_load_all(text)}


def test_groups_have_the_labels_and_sizes_that_the_run_asks_for(capsys: pytest.CaptureFixture[str]) -> None:
    spec = written(capsys, *SMALL)["RayCluster"]["spec"]
    loader, trainer = spec["workerGroupSpecs"]
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert (loader["groupName"], loader["labels"]) == ("loader", {"tempera-role": "loader"})
    assert (trainer["groupName"], trainer["labels"]) == ("trainer", {"tempera-role": "trainer"})
    sizes = [(group["minReplicas"], group["replicas"], group["maxReplicas"]) for group in (loader, trainer)]
    assert sizes == [(1, 3, 8), (0, 2, 2)]  # two loaders of 4 cores in 8; eight ranks of one GPU in a pod
    assert trainer["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "8"
    assert (spec["enableInTreeAutoscaling"], spec["autoscalerOptions"]["version"]) == (True, "v2")
    assert spec["gcsFaultToleranceOptions"]["backend"] == "rocksdb"


def test_every_container_has_the_token_by_reference_and_no_rights(capsys: pytest.CaptureFixture[str]) -> None:
    spec = written(capsys, "--env-secret", "s3-keys")["RayCluster"]["spec"]
    assert spec["authOptions"] == {"mode": "token", "secretName": "tempera-token"}
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        kinds = {volume["name"]: next(iter(volume.keys() - {"name"})) for volume in pod["volumes"]}
        assert kinds == {"shared-memory": "emptyDir", "shared": "persistentVolumeClaim"}
        (container,) = pod["containers"]
        variables = {variable["name"]: variable for variable in container["env"]}
        assert variables["RAY_AUTH_MODE"]["value"] == "token"
        secret = variables["RAY_AUTH_TOKEN"]["valueFrom"]["secretKeyRef"]
        assert secret == {"name": "tempera-token", "key": "auth_token"}
        assert container["envFrom"] == [{"secretRef": {"name": "s3-keys"}}]
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert {container["livenessProbe"]["httpGet"]["path"]} == {"/api/healthz"}
        assert "readinessProbe" in container
        assert "/dev/shm" in [mount["mountPath"] for mount in container["volumeMounts"]]


def test_the_job_trains_the_run_on_its_cluster_in_its_places(capsys: pytest.CaptureFixture[str]) -> None:
    documents = written(capsys, *SMALL)
    job = documents["RayJob"]["spec"]
    name = documents["RayCluster"]["metadata"]["name"]
    assert job["clusterSelector"] == {"ray.io/cluster": name}
    assert name == "mae-b-800"
    assert job["entrypoint"].startswith("tempera train mae_b_800 --index /shared/data/index.parquet --out ")
    assert job["entrypoint"].count("--set") == 1
    for role, group in (("loader", "fleet"), ("trainer", "trainers")):
        assert f"""'{group}.node_labels={{"tempera-role":"{role}"}}'""" in job["entrypoint"]


def test_only_those_who_must_reach_the_cluster_may(capsys: pytest.CaptureFixture[str]) -> None:
    policy = written(capsys)["NetworkPolicy"]["spec"]
    assert policy["podSelector"]["matchLabels"] == {"ray.io/cluster": "mae-b-800"}
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    opened = [[port["port"] for port in rule.get("ports", [])] for rule in policy["ingress"]]
    assert opened == [[], [8265], [8080]]
    assert policy["ingress"][0]["from"] == [{"podSelector": {"matchLabels": {"ray.io/cluster": "mae-b-800"}}}]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--set", "name=8bits"), "must have a name of at most 40"),
        (("--loader-cpus", "2"), "a loader pod must have fleet.cpus_per_loader"),
        (("--max-loaders", "1", "--loader-cpus", "4"), "8 loaders need 8 pods"),
        (("--gpus-per-trainer", "0"), "must have GPUs"),
        (("--loader-memory", "1"), "shared memory is part of its memory"),
    ],
)
def test_a_run_that_does_not_fit_its_pods_is_refused(
    capsys: pytest.CaptureFixture[str], words: tuple[str, ...], message: str
) -> None:
    assert message in refusal(capsys, *WORDS, *words)


@pytest.mark.skipif(CRDS not in os.environ, reason=f"{CRDS} does not name a folder with KubeRay's CRDs")
@pytest.mark.parametrize("more", [(), SMALL, ("--env-secret", "s3-keys")], ids=["plain", "small", "secret"])
def test_kuberays_own_schema_takes_the_resources(capsys: pytest.CaptureFixture[str], more: tuple[str, ...]) -> None:
    import jsonschema

    for kind, document in written(capsys, *more).items():
        path = Path(os.environ[CRDS]) / f"ray.io_{kind.lower()}s.yaml"
        if kind == "NetworkPolicy":
            continue
        versions = yaml.load(path.read_text(), Loader=yaml.CSafeLoader)["spec"]["versions"]
        (schema,) = [version["schema"]["openAPIV3Schema"] for version in versions if version["name"] == "v1"]
        jsonschema.validate(document, strict(schema))


def test_the_strict_schema_refuses_a_field_that_is_not_there() -> None:
    import jsonschema

    schema = strict({"type": "object", "properties": {"a": {"type": "object", "properties": {"b": {}}}}})
    jsonschema.validate({"a": {"b": 1}}, schema)
    with pytest.raises(jsonschema.ValidationError, match="'c' was unexpected"):
        jsonschema.validate({"a": {"c": 1}}, schema)


def strict(schema: Any) -> Any:
    """A structural schema that refuses unknown fields, and reads Kubernetes' own marks."""
    if isinstance(schema, list):
        return [strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    result = {name: strict(part) for name, part in schema.items()}
    if "properties" in schema and isinstance(schema["properties"], dict) and "type" in schema:
        open_ended = schema.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in schema
        bare = set(schema["properties"]) >= {"apiVersion", "kind"}
        result |= {} if open_ended or bare else {"additionalProperties": False}
    return result


@pytest.mark.parametrize("provider", ["aws", "gcp", "local"])
def test_each_example_becomes_a_file_that_ray_takes(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, provider: str
) -> None:
    out = tmp_path / "ray.yaml"
    assert main(["up", str(MANIFESTS / f"{provider}.example.yaml"), "--out", str(out), "--json"]) == 0
    config = yaml.safe_load(out.read_text())
    assert config == json.loads(capsys.readouterr().out)["config"]
    assert "--num-cpus=0" in config["head_start_ray_commands"][1]
    assert "--dashboard-host=127.0.0.1" in config["head_start_ray_commands"][1]
    for commands in (config["head_start_ray_commands"], config["worker_start_ray_commands"]):
        assert "export RAY_AUTH_MODE=token" in commands[1]
    if provider == "local":
        assert config["provider"]["worker_ips"] == ["10.0.0.2", "10.0.0.3", "10.0.0.9"]
        return
    types = config["available_node_types"]
    roles = {name: kind["labels"]["tempera-role"] for name, kind in types.items()}
    assert roles == {role: role for role in ("head", "loader", "trainer")}
    assert [(kind["min_workers"], kind["max_workers"]) for kind in types.values()] == [(0, 0), (1, 8), (0, 2)]
    assert types["trainer"]["resources"]["GPU"] == 8


def test_a_bare_machine_learns_its_role_from_its_address(tmp_path: Path) -> None:
    import subprocess

    config = ray_up_config(load_description(MANIFESTS / "local.example.yaml"))
    find_role, _, _ = config["worker_start_ray_commands"][1].partition("; ulimit")
    for address, role in (("10.0.0.3", "loader"), ("10.0.0.9", "trainer"), ("10.0.0.33", "")):
        shell = f"hostname() {{ echo 172.17.0.1 {address} ; }}; {find_role}; echo $role"
        said = subprocess.run(["bash", "-c", shell], check=True, capture_output=True, text=True).stdout
        assert said.strip() == role


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("loaders:", "loader:"), "Did you mean 'loaders'"),
        (("10.0.0.3", "node3"), "a host must be an IP address"),
        (("head_ip: 10.0.0.1, ", ""), "must name provider.head_ip"),
        (("setup:", "extra: {colour: red}\nsetup:"), "Ray's schema refuses the file: .*'colour' was unexpected"),
        (("name: tempera", "name: [tempera]"), "Ray's schema refuses cluster_name"),
        (("cpus: 32", "cpus: 0"), "a machine has 1 CPU or more"),
    ],
)
def test_a_wrong_description_is_one_clear_line(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    text = (MANIFESTS / "local.example.yaml").read_text()
    assert change[0] in text
    path = tmp_path / "cluster.yaml"
    path.write_text(text.replace(*change, 1))
    with pytest.raises(ValueError, match=message):
        ray_up_config(load_description(path))


def test_every_stage_of_the_image_copies_what_is_there() -> None:
    """Line by line, as a builder reads it: stages are named before they are used, sources lie in the repository."""
    text = (MANIFESTS / "Dockerfile").read_text().replace("\\\n", " ")
    lines = [line.split() for line in text.splitlines() if line and not line.startswith("#")]
    assert {line[0] for line in lines} <= {"ARG", "FROM", "ENV", "RUN", "COPY", "WORKDIR", "USER", "CMD"}
    stages, copied, user = ["${PYTHON_IMAGE}"], set[str](), ""
    for word, *rest in lines:
        if word == "FROM":
            assert rest[0] in stages
            stages.append(rest[2])
            user = ""
        elif word == "COPY" and rest[0].startswith("--from="):
            assert rest[0].removeprefix("--from=") in stages
            assert not user, "what root wrote cannot be changed by the image's user"
        elif word == "COPY":
            copied |= set(rest[:-1])
        elif word == "USER":
            user = rest[0]
        elif word == "CMD":
            assert user == "1000:1000"
    root = MANIFESTS.parents[2]
    assert all((root / name).exists() for name in copied)
    assert copied >= {*PACKAGES, "pyproject.toml", "constraints.txt", "README.md", "LICENSE"}
    pinned = (root / "constraints.txt").read_text()
    assert re.search(r"^setuptools==", pinned, re.MULTILINE), "the image is built without build isolation"
    wanted = re.search(r'requires-python = ">=3\.(\d+)"', (root / "pyproject.toml").read_text())
    given = re.search(r"PYTHON_IMAGE=python:3\.(\d+)\.\d+", text)
    assert wanted
    assert given
    assert int(given[1]) >= int(wanted[1])


def test_the_image_is_pinned_and_not_root() -> None:
    text = (MANIFESTS / "Dockerfile").read_text()
    assert "--require-hashes -r constraints.txt" in text
    assert {"cpu", "cuda"} <= set(re.findall(r"^FROM .* AS (\w+)$", text, re.MULTILINE))
    users = re.findall(r"^USER (\S+)$", text, re.MULTILINE)
    assert users == ["1000:1000", "1000:1000"]
    assert ":latest" not in text
