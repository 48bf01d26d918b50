r"""Making norms by name, and applying them to the rows of a level."""

from collections.abc import Callable
from inspect import signature
from typing import Union

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

NORMS: dict[str, Callable[[int], Module]] = {
    "batch": BatchNorm,
    "graph": GraphNorm,
    "layer": LayerNorm,
    "rms": RMSNorm,
}


def make_norm(norm: Norm, channels: int, name: str = "norm") -> Module:
    r"""Makes a norm by its name, or by a callable.

    Args:
        norm: :obj:`"batch"`, :obj:`"graph"` (per cloud), :obj:`"layer"` or
            :obj:`"rms"` (per row), :obj:`None` for none, or a callable that makes a
            module from a number of channels. A module that takes a :obj:`batch`, as
            PyG's norms do, gets the cloud of every row.
        channels: The number of features.
        name: What the argument is called, for messages.

    Raises:
        TypeError: If it is none of these.
        ValueError: If no norm has that name.

    Example:
        >>> make_norm("graph", 8)
        GraphNorm(8)
    """
    channels = check_int("channels", channels, 1)
    if norm is None:
        return Identity()
    if isinstance(norm, str):
        if norm not in NORMS:
            raise ValueError(f"'{name}' must be one of {[*NORMS]} (got {norm!r})")
        return NORMS[norm](channels)
    if isinstance(norm, Module) or not callable(norm):
        raise TypeError(
            f"'{name}' must be a name or a callable that makes a norm from a number of "
            f"channels, one for every place (got {norm!r})"
        )
    module = made_by(name, norm, "a number of channels", channels)
    if not isinstance(module, Module):
        kind = type(module).__name__
        raise TypeError(f"'{name}' must make a module (got '{kind}')")
    has_rule = hasattr(module, "on_level")
    takes_batch = "batch" in signature(module.forward).parameters
    return PerCloud(module) if takes_batch and not has_rule else module


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
