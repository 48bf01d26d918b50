r"""Contracts of operators: the dtypes, shapes and devices of their arguments.

Kernels check nothing and read memory as shapes and dtypes say. So every implementation
is registered by :func:`implement`, which checks the arguments of each call against the
contract that it is given, and every fake by :func:`register_fake`.
"""

import re
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, NamedTuple, Union

import torch
from torch import Tensor

from torch_geometric_erwin._native import LAYOUTS, MAX_LEVELS
from torch_geometric_erwin.utils.checks import check_tensor, has_memory

_NO_MEMORY = "can't allocate memory"  # in PyTorch's error, if the host has none left

Function = Callable[..., Any]
Takes = dict[str, Union[str, int]]
Sizes = dict[str, Any]  # the number that every symbol of a shape has in a call


class _Extent(NamedTuple):
    r"""One entry of a shape: ``factor * symbol + shift``, or the number ``shift``."""

    symbol: str
    factor: int
    shift: int

    @classmethod
    def parse(cls, text: str) -> "_Extent":
        found = re.fullmatch(r"(\d*)([A-Z]*)\+?(\d*)", text)
        assert found is not None, text
        factor, symbol, shift = found.groups()
        if not symbol:
            return cls("", 0, int(factor))
        return cls(symbol, int(factor or 1), int(shift or 0))

    def fits(self, size: int, sizes: Sizes) -> bool:
        if not self.symbol:
            return size == self.shift
        value, rest = divmod(size - self.shift, self.factor)
        same = sizes.setdefault(self.symbol, value) == value
        return same and rest == 0 and value >= 0

    def text(self, sizes: Sizes) -> str:
        if not self.symbol:
            return str(self.shift)
        if self.symbol in sizes:
            return str(self.factor * sizes[self.symbol] + self.shift)
        factor = "" if self.factor == 1 else str(self.factor)
        return factor + self.symbol + (f" + {self.shift}" if self.shift else "")


class _Argument(NamedTuple):
    r"""The part of a contract about one tensor."""

    place: int
    name: str
    dtypes: tuple[torch.dtype, ...]
    like: int  # the place of the argument whose dtype it has, or -1
    extents: tuple[Union[str, _Extent], ...]  # a symbol alone is a string
    anywhere: bool  # whether it may lie on another device

    @classmethod
    def parse(cls, name: str, text: str, names: Sequence[str]) -> "_Argument":
        found = re.fullmatch(r"([\w|]+) \[(.*)\]( anywhere)?", text)
        assert found is not None, text
        words, shape, anywhere = found.groups()
        entries = [entry for entry in shape.replace(" ", "").split(",") if entry]
        like = names.index(words) if words in names else -1
        return cls(
            names.index(name),
            name,
            () if like >= 0 else tuple(getattr(torch, w) for w in words.split("|")),
            like,
            tuple(e if e.isalpha() else _Extent.parse(e) for e in entries),
            bool(anywhere),
        )

    def has_shape(self, shape: Sequence[int], sizes: Sizes) -> bool:
        if len(shape) != len(self.extents):
            return False
        for size, extent in zip(shape, self.extents):
            if type(extent) is str:
                if sizes.setdefault(extent, size) != size:
                    return False
            elif not extent.fits(size, sizes):  # type: ignore[union-attr]
                return False
        return True

    def shape_text(self, sizes: Sizes) -> str:
        texts = []
        for extent in self.extents:
            whole = extent if isinstance(extent, _Extent) else _Extent(extent, 1, 0)
            texts.append(whole.text(sizes))
        return ", ".join(texts)


class Contract:
    r"""The arguments that an implementation of an operator takes.

    Args:
        operator: The operator's name.
        **arguments: For every tensor a text with its dtypes, or the argument whose
            dtype it has, and its shape. A letter in shapes stands for the same number
            everywhere. For an argument that is a number, its least value.

    Example:
        >>> contract = Contract("erwin::group", key="int64 [E]", groups=0)
        >>> contract.check((torch.tensor([2, 0]), 3))
        >>> contract.check((torch.tensor([2.0, 0.0]), 3))
        Traceback (most recent call last):
        TypeError: erwin::group: 'key' must be torch.int64 (got torch.float32)
    """

    def __init__(self, operator: str, **arguments: Union[str, int]) -> None:
        self.operator = operator
        names = argument_names(operator)
        self.tensors = [
            _Argument.parse(name, text, names)
            for name, text in sorted(arguments.items(), key=lambda a: names.index(a[0]))
            if isinstance(text, str)
        ]
        self.least = [
            (names.index(name), name, least)
            for name, least in arguments.items()
            if not isinstance(least, str)
        ]

    def check(self, args: Sequence[Any]) -> None:
        r"""Checks the arguments of a call.

        Raises:
            TypeError: If a tensor has another dtype.
            ValueError: If one has another shape or device, or its memory is missing; if
                a number is too small.
        """
        sizes: Sizes = {}
        device = args[self.tensors[0].place].device
        for argument in self.tensors:
            tensor = args[argument.place]
            if tensor is None:
                continue
            if tensor.dtype not in self._dtypes(argument, args):
                raise self._wrong_dtype(argument, args)
            if not argument.has_shape(tensor.shape, sizes):
                raise ValueError(
                    f"{self.operator}: '{argument.name}' must have shape "
                    f"[{argument.shape_text(sizes)}] (got {[*tensor.shape]})"
                )
            if tensor.device != device and not argument.anywhere:
                raise ValueError(
                    f"{self.operator}: '{argument.name}' is on {tensor.device}, "
                    f"'{self.tensors[0].name}' on {device}"
                )
            if not has_memory(tensor):
                check_tensor(argument.name, tensor)  # raises an error in most cases
                if tensor.is_cpu:
                    kind = type(tensor).__name__
                    raise TypeError(
                        f"{self.operator}: '{argument.name}' is a '{kind}', which has "
                        "no memory of its own"
                    )
        for place, name, least in self.least:
            if not args[place] >= least:  # NaN is refused too
                raise ValueError(
                    f"{self.operator}: '{name}' must be at least {least} (got "
                    f"{args[place]})"
                )

    def _dtypes(
        self, argument: _Argument, args: Sequence[Any]
    ) -> tuple[torch.dtype, ...]:
        return argument.dtypes or (args[argument.like].dtype,)

    def _wrong_dtype(self, argument: _Argument, args: Sequence[Any]) -> TypeError:
        wanted = self._dtypes(argument, args)
        return TypeError(
            f"{self.operator}: '{argument.name}' must be "
            f"{' or '.join(map(str, wanted))} (got {args[argument.place].dtype})"
        )


#: The contracts of all implementations, by operator and device.
CONTRACTS: dict[tuple[str, str], Contract] = {}


def argument_names(operator: str) -> list[str]:
    r"""Returns the names of an operator's arguments.

    Example:
        >>> argument_names("erwin::group")
        ['key', 'groups']
    """
    return [a.name for a in torch._C._get_schema(operator, "").arguments]


def implement(
    operator: str, device: str, **arguments: Union[str, int]
) -> Callable[[Function], Function]:
    r"""Registers an implementation, with a check of the arguments before each call.

    If the host has no memory left for the outputs, :obj:`MemoryError` is raised. The
    function that the decorator returns does that too, but checks no arguments.

    Args:
        operator: The operator's name.
        device: The type of device that it serves.
        **arguments: The arguments that it takes, see :class:`Contract`.
    """
    contract = CONTRACTS[operator, device] = Contract(operator, **arguments)

    def register(function: Function) -> Function:
        @wraps(function)
        def guarded(*args: Any) -> Any:
            try:
                return function(*args)
            except RuntimeError as error:
                if _NO_MEMORY not in str(error):
                    raise
                raise MemoryError(f"{operator}: {error}") from error

        @wraps(function)
        def checked(*args: Any) -> Any:
            contract.check(args)
            return guarded(*args)

        torch.library.impl(operator, device)(checked)
        return guarded

    return register


def register_fake(operator: str) -> Callable[[Function], Function]:
    r"""Registers a fake, which allocates outputs for tensors that have no values.

    PyTorch calls it even if only some tensors are on :obj:`meta`, and would return
    uninitialised memory as a result. Such a call raises an error.

    Args:
        operator: The operator's name.
    """
    names = argument_names(operator)

    def register(function: Function) -> Function:
        @wraps(function)
        def checked(*args: Any) -> Any:
            tensors = [(n, t) for n, t in zip(names, args) if isinstance(t, Tensor)]
            empty = [n for n, t in tensors if t.device.type == "meta"]
            if 0 < len(empty) < len(tensors):
                full = next(n for n, _ in tensors if n not in empty)
                device = dict(tensors)[full].device
                raise ValueError(
                    f"{operator}: '{empty[0]}' is on meta, '{full}' on {device}"
                )
            return function(*args)

        torch.library.register_fake(operator)(checked)
        return function

    return register


def check_tree(
    ball_sizes: list[int],
    strides: list[int],
    layout: str = "balanced",
    rotate: float = 0.0,
) -> None:
    r"""Checks the form of a tree's configuration; the native library checks bounds.

    Args:
        ball_sizes: The largest number of rows in a ball, per level.
        strides: The number of rows that each coarsening pools.
        layout: The layout of the tree.
        rotate: The angle of the second tree, in degrees.

    Raises:
        ValueError: If it is not the configuration of a tree.

    Example:
        >>> check_tree([8, 8], [2])
    """
    levels = len(ball_sizes)
    if not 1 <= levels <= MAX_LEVELS or len(strides) != levels - 1:
        raise ValueError(
            f"'ball_sizes' must have 1 to {MAX_LEVELS} entries, and 'strides' one less "
            f"(got {ball_sizes} and {strides})"
        )
    if layout not in LAYOUTS:
        raise ValueError(f"'layout' must be one of {[*LAYOUTS]} (got {layout!r})")
    if not abs(rotate) <= 360.0:
        raise ValueError(f"'rotate' must be an angle in degrees (got {rotate})")
