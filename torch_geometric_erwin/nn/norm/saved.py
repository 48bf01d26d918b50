r"""Loading states that were saved when batch normalisation was the default norm."""

import warnings
from typing import Any

import torch
from torch.nn import LayerNorm, Module

from torch_geometric_erwin.nn.norm.batch_norm import BatchNorm


def keep_batch_norm(layer: Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    r"""Replaces a layer's norm by batch normalisation, if its state needs that.

    This is a hook that runs before a state is loaded, and a state needs it if it has
    running statistics. Parameters of the norm stay the same objects, because an
    optimiser may hold them.

    Args:
        layer: A layer with the attribute :obj:`norm`.
        state: The state of the whole model.
        prefix: The beginning of the names of this layer in the state.

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
