r"""Loading states that were saved when batch normalisation was the default norm."""

import warnings
from typing import Any

import torch
from torch.nn import LayerNorm, Module

from torch_geometric_erwin.nn.norm.batch_norm import BatchNorm


def keep_batch_norm(layer: Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    r"""Replaces a layer's norm by batch normalisation, if its state needs that.

    This is a hook of layers with :obj:`norm="layer"` that runs before a state is
    loaded, and a state needs it if it has running statistics. Parameters of the norm
    stay the same objects, because an optimiser may hold them. Wrappers that list a
    model's buffers, such as :class:`~torch.nn.parallel.DistributedDataParallel`, must
    be made after loading.

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
    norm, has_statistics = layer.norm, f"{prefix}norm.running_mean" in state
    if has_statistics and type(norm) is LayerNorm:
        kind: type[Module] = BatchNorm
        warnings.warn(
            "the state was saved with batch normalisation, which replaces the layer's "
            "'layer' norm; make the model with norm='batch'",
            stacklevel=2,
        )
    elif (
        not has_statistics and type(norm) is BatchNorm and f"{prefix}norm.bias" in state
    ):
        kind = LayerNorm  # an earlier state had replaced it
    else:
        return
    with torch.device(norm.weight.device):
        replacement = kind(norm.weight.size(0)).to(norm.weight.dtype)
    replacement.weight, replacement.bias = norm.weight, norm.bias
    layer.norm = replacement.train(norm.training)
