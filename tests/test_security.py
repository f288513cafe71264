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


def violations(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] in FORBIDDEN_MODULES)
        elif isinstance(node, ast.ImportFrom):
            if (node.module or "").split(".")[0] in FORBIDDEN_MODULES:
                yield str(node.module)
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if name in FORBIDDEN_CALLS:
                yield name
            for keyword in node.keywords:
                value = ast.unparse(keyword.value)
                if (keyword.arg, value) in {("shell", "True"), ("allow_pickle", "True"), ("weights_only", "False")}:
                    yield f"{keyword.arg}={value}"


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
