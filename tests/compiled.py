"""Helpers for tests of compiled code."""

from contextlib import AbstractContextManager

import torch


def no_recompilation(step: int) -> AbstractContextManager:
    """Only the first step may compile; the other steps must use the same code."""
    return torch.compiler.set_stance("fail_on_recompile" if step else "default")
