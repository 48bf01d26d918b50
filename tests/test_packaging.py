import doctest
import importlib
import importlib.metadata
import importlib.resources
import importlib.util
import inspect
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import torch_geometric_erwin

ROOT = Path(__file__).parents[1]
PACKAGES = [
    "torch_geometric_erwin",
    *(
        module.name
        for module in pkgutil.walk_packages(
            torch_geometric_erwin.__path__, "torch_geometric_erwin."
        )
        if module.ispkg and hasattr(importlib.import_module(module.name), "__all__")
    ),
]
PUBLIC_NAMES = [
    (package, name)
    for package in PACKAGES
    for name in importlib.import_module(package).__all__
]


def entry(file: str, pattern: str) -> str:
    match = re.search(pattern, (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE)
    assert match, f"no line '{pattern}' in {file}"
    return match[1]


def test_version_is_the_same_everywhere():
    version = entry("pyproject.toml", r'^version = "(.+)"$')
    assert importlib.metadata.version("torch-geometric-erwin") == version
    assert torch_geometric_erwin.__version__ == version
    assert entry("CITATION.cff", r"^version: (.+)$") == version
    assert entry("CHANGELOG.md", r"^## \[(\d.+)\]") == version


def test_license_is_the_same_everywhere():
    license = entry("pyproject.toml", r'^license = "(.+)"$')
    assert entry("CITATION.cff", r"^license: (.+)$") == license
    assert entry("LICENSE", r"\A(.+) License$") == license


def test_authors_are_the_same_everywhere():
    authors = entry("pyproject.toml", r'^authors = \[\{ name = "(.+)" \}\]$')
    assert entry("CITATION.cff", r"^  - name: (.+)$") == authors
    assert entry("LICENSE", r"^Copyright \(c\) \d+ (.+)$") == authors


def test_one_wheel_serves_every_python():
    distribution = importlib.metadata.distribution("torch-geometric-erwin")
    wheel = distribution.read_text("WHEEL")
    assert wheel is not None
    assert re.findall(r"^Tag: (\w+-\w+)-", wheel, re.MULTILINE) == ["py3-none"]


def test_types_are_published():
    assert (importlib.resources.files("torch_geometric_erwin") / "py.typed").is_file()


def test_native_library_links_neither_python_nor_torch():
    spec = importlib.util.find_spec("torch_geometric_erwin._kernels")
    assert spec is not None
    assert spec.origin is not None
    library = Path(spec.origin).read_bytes()
    assert b"erwin_abi_version" in library
    for foreign in [b"libpython", b"libtorch", b"libc10", b"PyInit_"]:
        assert foreign not in library
    assert b"emulator" not in library  # the emulator is only for tests


def test_package_needs_none_of_its_extras():
    # A module that is None in sys.modules counts as not installed.
    script = f"""
import importlib, sys
for extra in "hypothesis matplotlib onnx onnxruntime onnxscript pytest".split():
    sys.modules[extra] = None
for extra in "torch_cluster torch_scatter triton".split():
    sys.modules[extra] = None
for package in {PACKAGES}:
    importlib.import_module(package)
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_packages_of_a_plugin_are_public():
    public = {package.removeprefix("torch_geometric_erwin.") for package in PACKAGES}
    assert {"datasets", "nn", "transforms"} <= public


@pytest.mark.parametrize("package", PACKAGES)
def test_public_names_are_unique(package):
    names = importlib.import_module(package).__all__
    assert len(names) == len(set(names))


@pytest.mark.parametrize(("package", "name"), PUBLIC_NAMES)
def test_public_name_is_documented_by_an_example(package, name):
    value = getattr(importlib.import_module(package), name)
    if not (inspect.isclass(value) or inspect.isroutine(value)):
        return
    examples = doctest.DocTestParser().get_examples(value.__doc__ or "")
    assert any(not example.options.get(doctest.SKIP) for example in examples)
