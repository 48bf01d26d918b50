r"""Making norms by name, and applying them to the rows of a level."""

import re
from collections.abc import Callable
from inspect import signature
from typing import Any, Optional, Union

import torch_geometric.nn.norm as pyg
from torch import Tensor
from torch.nn import Identity, LayerNorm, Module, RMSNorm
from torch_geometric.nn.inits import reset

from torch_geometric_erwin.nn.norm.batch_norm import BatchNorm
from torch_geometric_erwin.nn.norm.graph_norm import GraphNorm
from torch_geometric_erwin.tree import Level
from torch_geometric_erwin.tree.level import check_level
from torch_geometric_erwin.utils.checks import (
    check_devices,
    check_instance,
    check_int,
    check_tensor,
    made_by,
)

#: A name, :obj:`None` for no norm, or a callable that makes one for so many channels.
Norm = Union[str, None, Callable[[int], Module]]


def _without_channels(norm: Callable[..., Module]) -> Callable[..., Module]:
    return lambda channels, **kwargs: norm(**kwargs)


NORMS: dict[str, Callable[..., Module]] = {
    "batch": BatchNorm,
    "graph": GraphNorm,
    "layer": LayerNorm,
    "rms": RMSNorm,
    "instance": pyg.InstanceNorm,
    "diffgroup": pyg.DiffGroupNorm,
    "pair": _without_channels(pyg.PairNorm),
    "meansubtraction": _without_channels(pyg.MeanSubtractionNorm),
    "graphsize": _without_channels(pyg.GraphSizeNorm),
}


def make_norm(
    norm: Norm,
    channels: int,
    name: str = "norm",
    kwargs: Optional[dict[str, Any]] = None,
) -> Module:
    r"""Makes a norm by its name, or by a callable.

    Names may be written as for PyG's resolver: :obj:`"batch"`, :obj:`"batch_norm"` and
    :obj:`"BatchNorm"` are the same. Four names are norms of this package:

    - :obj:`"batch"`: :class:`BatchNorm`, which does not count rows of padding;
    - :obj:`"graph"`: :class:`GraphNorm`, over every cloud;
    - :obj:`"layer"`: :class:`torch.nn.LayerNorm`, over every row. PyG's norm of that
      name is over all rows and features of a cloud; if that is wanted, pass the class
      :class:`torch_geometric.nn.LayerNorm`;
    - :obj:`"rms"`: :class:`torch.nn.RMSNorm`, over every row.

    :obj:`"instance"`, :obj:`"pair"`, :obj:`"mean_subtraction"`, :obj:`"graph_size"` and
    :obj:`"diff_group"` are those of :mod:`torch_geometric.nn.norm`.

    Args:
        norm: A name, :obj:`None` for none, or a callable that makes a module from a
            number of channels. A module that takes a :obj:`batch`, as PyG's norms do,
            gets the cloud of every row.
        channels: The number of features.
        name: What the argument is called, for messages.
        kwargs: Further arguments of the norm.

    Raises:
        TypeError: If it is none of these.
        ValueError: If no norm has that name.

    Example:
        >>> make_norm("graph", 8)
        GraphNorm(8)
    """
    channels = check_int("channels", channels, 1)
    kwargs = {} if kwargs is None else kwargs
    check_instance(f"{name}_kwargs", kwargs, dict)
    if norm is None:
        return Identity()
    if isinstance(norm, str):
        short = re.sub("[-_ ]", "", norm.lower()).removesuffix("norm")
        if short not in NORMS:
            raise ValueError(f"'{name}' must be one of {[*NORMS]} (got {norm!r})")
        norm = NORMS[short]
    if isinstance(norm, Module) or not callable(norm):
        raise TypeError(
            f"'{name}' must be a name or a callable that makes a norm from a number of "
            f"channels, one for every place (got {norm!r})"
        )
    module = made_by(name, norm, "a number of channels", channels, **kwargs)
    if not isinstance(module, Module):
        kind = type(module).__name__
        raise TypeError(f"'{name}' must make a module (got '{kind}')")
    return on_levels(module)


def on_levels(norm: Module) -> Module:
    r"""Returns a norm in the form that :func:`normalise` takes.

    Args:
        norm: The norm; if it takes a :obj:`batch`, it is wrapped by :class:`PerCloud`.

    Example:
        >>> on_levels(pyg.InstanceNorm(4))
        PerCloud(
          (norm): InstanceNorm(4)
        )
    """
    has_rule = hasattr(norm, "on_level")
    takes_batch = "batch" in signature(norm.forward).parameters
    return PerCloud(norm) if takes_batch and not has_rule else norm


class PerCloud(Module):
    r"""Wraps a norm that takes the cloud of every row, as those of PyG do.

    Args:
        norm: The norm.

    Example:
        >>> from torch_geometric.nn import InstanceNorm
        >>> PerCloud(InstanceNorm(4))
        PerCloud(
          (norm): InstanceNorm(4)
        )
    """

    def __init__(self, norm: Module) -> None:
        super().__init__()
        self.norm = norm
        self.takes_size = "batch_size" in signature(norm.forward).parameters

    def reset_parameters(self) -> None:
        r"""Resets all learnable parameters of the module."""
        reset(self.norm)

    def forward(self, x: Tensor, batch: Tensor, size: int) -> Tensor:
        r"""Runs the forward pass of the module."""
        if self.takes_size:
            return self.norm(x, batch=batch, batch_size=size)
        return self.norm(x, batch=batch)

    def on_level(self, x: Tensor, level: Level) -> Tensor:
        r"""Runs the forward pass over the clouds of a level."""
        return self(x, level.batch, level.num_clouds)


def normalise(norm: Module, x: Tensor, level: Level) -> Tensor:
    r"""Applies a norm to the rows of a level.

    Args:
        norm: A module that is called with rows. If it has a method :obj:`on_level`,
            that is called instead, with rows and the level.
        x: The rows.
        level: The level.

    Shapes:
        - **x:** :math:`(N, C)`; **output:** :math:`(N, C)`.

    Example:
        >>> import torch
        >>> level = Level.build(torch.rand(3, 2), torch.tensor([3]), ball_size=4)
        >>> normalise(Identity(), torch.ones(3, 1), level).flatten().tolist()
        [1.0, 1.0, 1.0]
    """
    check_instance("norm", norm, Module, "a module")
    check_level("level", level)
    check_tensor("x", x)
    check_devices(x=x, level=level.pos)
    if x.dim() != 2 or x.size(0) != level.num_rows:
        raise ValueError(
            f"'x' must have shape [{level.num_rows}, C] (got {[*x.shape]})"
        )
    on_level = getattr(norm, "on_level", None)
    return norm(x) if not callable(on_level) else on_level(x, level)
