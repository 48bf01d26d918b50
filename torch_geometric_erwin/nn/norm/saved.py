r"""State that was saved when the norm of a layer was batch normalisation by default."""

import warnings
from typing import Any

import torch
from torch.nn import LayerNorm, Module

from torch_geometric_erwin.nn.norm.batch_norm import BatchNorm


def keep_batch_norm(layer: Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    r"""Puts batch normalisation in a layer whose state has running statistics.

    A hook that runs before the state is loaded. Weights stay the same parameters, so
    that an optimiser keeps them.

    Args:
        layer: A layer with the attribute :obj:`norm`.
        state: The state of the whole model.
        prefix: What the names of this layer's state start with.

    Example:
        >>> layer = torch.nn.Module()
        >>> layer.norm = LayerNorm(4)
        >>> with warnings.catch_warnings():
        ...     warnings.simplefilter("ignore")
        ...     keep_batch_norm(layer, {"norm.running_mean": torch.zeros(4)}, "")
        >>> type(layer.norm).__name__
        'BatchNorm'
    """
    norm = layer.norm
    if type(norm) is not LayerNorm or f"{prefix}norm.running_mean" not in state:
        return
    weight, bias = norm.weight, norm.bias
    with torch.device(weight.device):
        batch_norm = BatchNorm(weight.size(0)).to(weight.dtype)
    batch_norm.weight, batch_norm.bias = weight, bias
    layer.norm = batch_norm.train(norm.training)
    warnings.warn(
        "the state was saved with batch normalisation, which replaces the layer's "
        "'layer' norm; make the model with norm='batch'",
        stacklevel=2,
    )
