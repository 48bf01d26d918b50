r"""Initialisation shared by the layers."""

import torch
from torch.nn import Linear


def reset_linear(linear: Linear) -> None:
    r"""Truncated normal weights of deviation 0.02 and zero biases, as in the `Erwin
    <https://arxiv.org/abs/2502.17019>`_ reference implementation.

    Args:
        linear: The layer.

    Example:
        >>> linear = Linear(8, 8)
        >>> reset_linear(linear)
        >>> bool((linear.bias == 0).all())
        True
    """
    torch.nn.init.trunc_normal_(linear.weight, std=0.02)
    if linear.bias is not None:
        torch.nn.init.zeros_(linear.bias)
