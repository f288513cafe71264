"""What untrusted bytes must never reach is nowhere in our code: unpickling, evaluation, a shell, unsafe loaders."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("loader", "scoring", "trainer", "deploy")
FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal", "joblib"}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "torch.load", "yaml.load"}
FORBIDDEN_CALLS |= {"yaml.unsafe_load", "np.load", "numpy.load", "subprocess.getoutput", "subprocess.getstatusoutput"}
FORBIDDEN_CALLS |= {"yaml.load_all", "yaml.full_load", "yaml.full_load_all", "yaml.unsafe_load_all", "pd.read_pickle"}
FORBIDDEN_CALLS |= {"os.execl", "os.execv", "os.spawnl", "os.spawnv", "pty.spawn", "code.interact", "runpy.run_path"}
FORBIDDEN_CALLS |= {
    "tempfile.mktemp",
    "ssl._create_unverified_context",
    "torch.hub.load",
    "xml.etree.ElementTree.parse",
}
FORBIDDEN_METHODS = {"extractall", "set_string_function", "unpackb"}
"""Methods of whatever object: archives are never extracted."""
FORBIDDEN_ARGUMENTS = {
    ("shell", "True"),
    ("allow_pickle", "True"),
    ("weights_only", "False"),
    ("verify", "False"),
    ("check_hostname", "False"),
    ("verify_mode", "ssl.CERT_NONE"),
    ("host", "'0.0.0.0'"),
    ("dashboard_host", "'0.0.0.0'"),
}
FORBIDDEN_NAMES = {"ray.cloudpickle", "torch.serialization", "multiprocessing.reduction", "pickletools"}


def violations(source: str) -> Iterator[str]:
    tree = ast.parse(source)
    # A list of plain classes that the restricted unpickler may build is not a way to unpickle anything else.
    restricted = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and ast.unparse(node) == "torch.serialization.safe_globals"
    }
    for node in ast.walk(tree):
        if id(node) in restricted:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if is_forbidden_module(alias.name))
        elif isinstance(node, ast.ImportFrom):
            names = [str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)]
            yield from filter(is_forbidden_module, names)
        elif isinstance(node, ast.Attribute) and ast.unparse(node) in FORBIDDEN_NAMES:
            yield ast.unparse(node)
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if name in FORBIDDEN_CALLS or name.rpartition(".")[2] in FORBIDDEN_METHODS:
                yield name
            for keyword in node.keywords:
                value = ast.unparse(keyword.value)
                if (keyword.arg, value) in FORBIDDEN_ARGUMENTS:
                    yield f"{keyword.arg}={value}"


def is_forbidden_module(name: str) -> bool:
    """Whether a module, or what is imported out of one, unpickles or runs text."""
    return name.split(".", maxsplit=1)[0] in FORBIDDEN_MODULES or name in FORBIDDEN_NAMES


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from joblib import load",
        "torch.load(p)",
        "eval('1')",
        "subprocess.run(c, shell=True)",
        "np.load(p)",
        "f(weights_only=False)",
        "from ray import cloudpickle",
        "import ray.cloudpickle",
        "ray.cloudpickle.loads(b)",
        "yaml.full_load(t)",
        "tarfile.open(p).extractall()",
        "client.get(u, verify=False)",
        "uvicorn.run(a, host='0.0.0.0')",
    ],
)
def test_the_scan_sees_what_it_looks_for(source: str) -> None:
    assert list(violations(source))


@pytest.mark.parametrize("package", PACKAGES)
def test_no_package_unpickles_evaluates_or_opens_a_shell(package: str) -> None:
    found = {
        f"{path.relative_to(ROOT)}: {what}"
        for path in sorted((ROOT / package).rglob("*.py"))
        for what in violations(path.read_text("utf-8"))
    }
    assert not found


@pytest.mark.parametrize("package", PACKAGES)
def test_sources_are_ascii_and_name_no_path_of_one_machine(package: str) -> None:
    for path in (ROOT / package).rglob("*.py"):
        text = path.read_text("utf-8")
        assert text.isascii(), path
        assert "/home/" not in text, path
        assert "/root/" not in text, path
