"""What a process computes that PyTorch restricts to older instructions."""

import os
import subprocess
import sys

import torch


def computed_with(level, path, module, function, *args):
    """Returns what a function of a module of the tests returns there; `path` is of a
    file for what it is called with, and what it returns."""
    torch.save(args, path)
    script = (
        f"import sys; path, *sys.path[:0] = sys.argv[1:]; import torch, {module}; "
        f"torch.save({module}.{function}(*torch.load(path)), path)"
    )
    environment = os.environ | {"ATEN_CPU_CAPABILITY": level}
    args = [sys.executable, "-c", script, str(path), *sys.path]
    subprocess.run(args, check=True, env=environment)
    return torch.load(path)
