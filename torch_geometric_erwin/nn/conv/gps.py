r"""The parts of PyG's GPS layer in the form of this package."""

import warnings
from copy import deepcopy
from typing import Optional

import torch
from torch.nn import Identity, Module, MultiheadAttention
from torch_geometric.nn import BatchNorm as PyGBatchNorm

from torch_geometric_erwin.nn.attention import BallAttention
from torch_geometric_erwin.nn.norm import BatchNorm
from torch_geometric_erwin.nn.norm.resolver import on_levels


def check_attention(attention: Module) -> None:
    r"""Checks that ball attention has a counterpart of every weight.

    Args:
        attention: The attention of a :class:`~torch_geometric.nn.conv.GPSConv`.

    Raises:
        ValueError: If a weight has none.

    Example:
        >>> check_attention(torch.nn.Linear(8, 8))  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ValueError: 'conv' must have attn_type='multihead' (got 'Linear', whose ...)
    """
    if not isinstance(attention, MultiheadAttention):
        raise ValueError(
            "'conv' must have attn_type='multihead' (got "
            f"'{type(attention).__name__}', whose weights have no counterpart in ball "
            "attention)"
        )
    has_bias = attention.bias_k is not None
    if attention.in_proj_weight is None or has_bias or attention.add_zero_attn:
        raise ValueError(
            "'conv' must not have 'add_bias_kv', 'add_zero_attn', 'kdim' or 'vdim' in "
            "'attn_kwargs': ball attention has no counterpart"
        )


def copy_attention(source: MultiheadAttention, target: BallAttention) -> None:
    r"""Copies the weights of attention.

    The weights of positions are set to zero, as are biases that the source lacks.
    Dropout of attention weights has no counterpart and causes a warning.

    Args:
        source: The attention of PyTorch.
        target: The ball attention, with as many channels and heads.

    Example:
        >>> attention = BallAttention(8, heads=2, ball_size=16)
        >>> copy_attention(MultiheadAttention(8, 2), attention)
        >>> attention.sigma.tolist()
        [0.0, 0.0]
    """
    if source.dropout > 0:
        warnings.warn(
            f"ball attention has no dropout of its weights: the {source.dropout} in "
            "'attn_kwargs' is left out",
            stacklevel=3,
        )
    out = source.out_proj
    with torch.no_grad():
        for linear, weight, bias in (
            (target.lin_qkv, source.in_proj_weight, source.in_proj_bias),
            (target.lin_out, out.weight, out.bias),
        ):
            linear.weight.copy_(weight)
            if bias is None:
                linear.bias.zero_()
            else:
                linear.bias.copy_(bias)
        for parameter in (*target.lin_pos.parameters(), target.sigma):
            parameter.zero_()


def copied_norm(norm: Optional[Module]) -> Module:
    r"""Returns a copy of a norm in the form that layers of this package take.

    Batch normalisation becomes :class:`~torch_geometric_erwin.nn.BatchNorm`, which does
    not count padding and needs no second row.

    Args:
        norm: The norm of a :class:`~torch_geometric.nn.conv.GPSConv`.

    Example:
        >>> isinstance(copied_norm(PyGBatchNorm(8)), BatchNorm)
        True
    """
    if norm is None:
        return Identity()
    inner = getattr(norm, "module", None)
    if type(norm) is not PyGBatchNorm or not isinstance(inner, torch.nn.BatchNorm1d):
        return on_levels(deepcopy(norm))
    if inner.running_mean is None:  # which `BatchNorm` needs
        return deepcopy(norm)
    own = BatchNorm(
        inner.num_features,
        eps=inner.eps,
        momentum=inner.momentum,
        affine=inner.affine,
        device=inner.running_mean.device,
        dtype=inner.running_mean.dtype,
    )
    own.load_state_dict(inner.state_dict())
    return own.train(norm.training)
