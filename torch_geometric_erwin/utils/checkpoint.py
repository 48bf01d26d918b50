r"""Computing activations again in the backward pass instead of keeping them."""

from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def recompute(module: torch.nn.Module, *args: Any, is_random: bool = False) -> Tensor:
    r"""Calls a module, and keeps only its inputs for the backward pass.

    Gradients exist to any order. The random state is saved only if the module draws
    random numbers, because reading that of a GPU cannot be captured in a CUDA graph.

    Args:
        module: The module.
        *args: Its arguments.
        is_random: Whether it draws random numbers.

    Example:
        >>> x = torch.ones(2, 3, requires_grad=True)
        >>> recompute(torch.nn.SiLU(), x).sum().backward()
        >>> x.grad.shape
        torch.Size([2, 3])
    """
    if not torch.is_grad_enabled():
        return module(*args)
    return checkpoint(module, *args, use_reentrant=False, preserve_rng_state=is_random)
