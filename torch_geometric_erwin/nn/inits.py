r"""Initialisation shared by the layers."""

import torch
from torch.nn import Linear


def reset_linear(linear: Linear) -> None:
    r"""Sets zero biases and normal weights of deviation :math:`1 / \sqrt{\mathrm{in}}`.

    They are truncated at two deviations. The rule is that of the `"Efficient BackProp"
    <https://doi.org/10.1007/3-540-49430-8_2>`_ paper; the fixed deviation of 0.02 of
    the Erwin reference implementation is a ninth of it at 32 channels, where layers
    start as almost nothing and learn late.

    Args:
        linear: The layer.

    Example:
        >>> linear = Linear(8, 8)
        >>> reset_linear(linear)
        >>> bool((linear.bias == 0).all())
        True
    """
    std = linear.in_features**-0.5
    torch.nn.init.trunc_normal_(linear.weight, std=std, a=-2 * std, b=2 * std)
    if linear.bias is not None:
        torch.nn.init.zeros_(linear.bias)
