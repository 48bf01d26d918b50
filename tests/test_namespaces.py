"""What `import torch_geometric_erwin` alone gives."""

import subprocess
import sys

import pytest
import torch

import torch_geometric_erwin

NAMESPACES = ("data", "datasets", "nn", "transforms", "visualization")


def python(script: str) -> str:
    """What a new process prints, which imports nothing but PyTorch and the package."""
    script = f"import sys, torch, torch_geometric_erwin as erwin\n{script}"
    command = [sys.executable, "-c", script]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize("name", NAMESPACES)
def test_namespaces_are_public(name):
    assert name in torch_geometric_erwin.__all__


def test_a_process_that_imports_the_package():
    out = python(
        f"""
for name in {NAMESPACES}:
    assert getattr(erwin, name).__name__ == "torch_geometric_erwin." + name
assert "matplotlib" not in sys.modules
print(*sorted(torch._C._dispatch_get_all_op_names()))
"""
    )
    operators = {name for name in out.split() if name.startswith("erwin::")}
    here = torch._C._dispatch_get_all_op_names()
    assert operators == {name for name in here if name.startswith("erwin::")}
    assert {"erwin::ball_attention", "erwin::ball_tree", "erwin::message"} <= operators
