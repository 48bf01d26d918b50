r"""The unit of length of a model, and a warning if it does not suit the data."""

import math
import warnings
from collections.abc import Callable, Iterable
from numbers import Real
from typing import Any, Union

import torch
from torch import Tensor
from torch_geometric.data import Data, HeteroData
from torch_geometric.data.storage import NodeStorage

from torch_geometric_erwin.data.storage import stored_tree
from torch_geometric_erwin.nn.extents import far_extent, root_mean_square
from torch_geometric_erwin.tree import Level, TreeConfig
from torch_geometric_erwin.tree.builder import build_tree
from torch_geometric_erwin.tree.reading import Nodes, check_nodes, store_ptr
from torch_geometric_erwin.utils.checks import check_pos, check_ptr


class LengthScaled(torch.nn.Module):
    r"""The base class of a model that divides positions by its own length scale.

    The initial weights suit balls whose rows are at a distance of about one from their
    mean. :attr:`length_scale` is a buffer, so it is saved with the weights. If a state
    was saved without it, it becomes one.
    """

    length_scale: Tensor
    dim: int
    tree_config: TreeConfig

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("length_scale", torch.ones(()))
        self.register_load_state_dict_pre_hook(_with_length_scale)
        self._has_warned = False

    def set_length_scale(
        self, source: Union[float, Tensor, Nodes, Iterable[Nodes]]
    ) -> "LengthScaled":
        r"""Sets the length that positions are divided by.

        If data is given, the length is the median extent of the balls of level 0
        (:meth:`Tree.extents`) over all clouds, rounded to a power of two: then dividing
        loses no digit, however far from the origin the points are. Balls without
        extent, of a single point, are left out. The order of clouds and how they are
        batched make no difference.

        Args:
            source: Data, a batch, or an iterable of them, such as a data set or a
                loader; or the length itself, in the unit of positions, as a number or a
                tensor without axes.

        Raises:
            TypeError: If it is something else.
            ValueError: If no ball has an extent, or the length is not positive.

        Example:
            >>> from torch_geometric_erwin.nn import Erwin
            >>> model = Erwin(0, [16], ball_sizes=2, dim=1, mp_steps=0)
            >>> pos = torch.tensor([[0.0], [2.0], [10.0], [16.0]])
            >>> float(model.set_length_scale(Data(pos=pos)).length_scale)
            1.0
        """
        if _is_number(source):
            length = float(source)  # type: ignore[arg-type]
        else:
            median = _median([self._extents(nodes) for nodes in _nodes(source)])
            length = 2.0 ** round(math.log2(median))
        own = torch.tensor(length, dtype=self.length_scale.dtype)
        if not (math.isfinite(length) and 0 < own < math.inf):
            raise ValueError(
                "the length scale must be a positive number that "
                f"{self.length_scale.dtype} can hold (got {length})"
            )
        self.length_scale.copy_(own)
        self._has_warned = False
        return self

    @torch.no_grad()
    def _extents(self, nodes: Nodes) -> Tensor:
        if not isinstance(nodes, (Data, NodeStorage)):
            raise _wrong(nodes)
        check_nodes("source", nodes)
        pos = check_pos(nodes.pos)
        if pos.size(1) != self.dim:
            raise ValueError(
                f"'pos' must have {self.dim} coordinates (got {pos.size(1)})"
            )
        ptr = check_ptr(store_ptr(nodes), pos.size(0), pos.device)
        tree = stored_tree(nodes, self.tree_config)
        if tree is None:
            tree = build_tree(pos, ptr, self.tree_config)
        else:
            tree.validate(pos.size(0), self.tree_config)
        return tree.extents(pos)[0]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        # `half` would make zero of a length of 1e-9: it stays in float32. A module that
        # was made without memory gets some here.
        before = self.length_scale
        module = super()._apply(fn, recurse)
        device = self.length_scale.device
        if before.is_meta and device.type != "meta":
            self.length_scale = torch.ones((), device=device)
        else:
            self.length_scale = before.to(device)
        return module

    def _in_units(self, pos: Tensor) -> Tensor:
        # Half precision might overflow.
        return pos.to(torch.promote_types(pos.dtype, torch.float32)) / self.length_scale

    def _warn_of_extents(self, level: Level) -> None:
        if torch.compiler.is_compiling() or self._has_warned:
            return
        extent = far_extent(level)
        if extent is None:
            return
        scale = root_mean_square(self.length_scale.view(1, 1))
        warnings.warn(
            f"balls extend over about {extent * scale:.2g}, the model's length scale "
            f"is {scale:.2g}; call 'model.set_length_scale(data)', or "
            f"'model.set_length_scale({extent * scale:.2g})'",
            stacklevel=5,  # names the line that calls the model
        )
        self._has_warned = True


def _is_number(source: Any) -> bool:
    if isinstance(source, Tensor):
        return source.dim() == 0 and source.is_floating_point()
    return isinstance(source, Real) and not isinstance(source, bool)


def _nodes(source: Any) -> Iterable[Nodes]:
    if isinstance(source, (Data, NodeStorage)):
        return [source]
    one = isinstance(source, (str, Tensor, HeteroData))
    if not one and isinstance(source, Iterable):
        return source
    if one or not (hasattr(source, "__len__") and hasattr(source, "__getitem__")):
        raise _wrong(source)
    return map(source.__getitem__, range(len(source)))


def _wrong(source: Any) -> TypeError:
    return TypeError(
        "the length scale must be given by data, an iterable of data, or a number (got "
        f"'{type(source).__name__}')"
    )


def _median(extents: list[Tensor]) -> float:
    # Of an even number of extents, `median` takes the lower one in the middle.
    every = torch.cat([own.double().cpu() for own in extents] or [torch.empty(0)])
    every = every[every > 0]
    if every.size(0) == 0:
        raise ValueError(
            "the length scale cannot be measured: no ball has two different points"
        )
    return float(every.median())


def _with_length_scale(
    module: LengthScaled, state: dict[str, Any], prefix: str, *_: Any
) -> None:
    # A whole state without it is of a model that had none. A part of a state changes
    # nothing.
    name = f"{prefix}length_scale"
    if name in state:
        return
    others = {prefix + key for key in module.state_dict()} - {name}
    one = torch.ones((), device=module.length_scale.device)
    state[name] = one if others <= state.keys() else module.length_scale
