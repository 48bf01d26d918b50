"""What tests of compiled code share."""

from contextlib import AbstractContextManager

import torch


def no_recompilation(step: int) -> AbstractContextManager:
    """The first step may compile, and what it compiled must serve the others."""
    return torch.compiler.set_stance("fail_on_recompile" if step else "default")
