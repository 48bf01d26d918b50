r"""Checks at the public boundary: a bad argument is named once, here.

Checks that read values are skipped while a graph is traced, where there are none.
"""

import math
from collections.abc import Callable, Collection, Sequence
from functools import wraps
from inspect import signature
from numbers import Integral, Real
from typing import Any, Optional, TypeVar, Union

import numpy as np
import torch
from torch import Tensor
from torch._subclasses import FakeTensor
from torch.nn import Module
from torch.nn.modules.module import _has_any_global_hook
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from torch_geometric_erwin import _native

#: The dtypes that layers calculate in, but do not sum up in.
HALF = (torch.float16, torch.bfloat16)
_FLOATS = (torch.float32, torch.float64, *HALF)

#: The largest number of rows, channels or whatever else is counted.
LIMIT = 2**31 - 1


T = TypeVar("T")


def reads_values(check: Callable[[Tensor], T]) -> Callable[[Tensor], T]:
    r"""Lets a check of rows look at what :mod:`torch.func` has wrapped.

    Args:
        check: The check; of a batch of samples it sees the rows of all.

    Example:
        >>> @reads_values
        ... def check(x):
        ...     print(x.tolist())
        >>> torch.func.grad(lambda x: check(x) or x.sum())(torch.ones(1, 2)).shape
        [[1.0, 1.0]]
        torch.Size([1, 2])
    """

    @wraps(check)
    def wrapper(x: Tensor) -> T:
        if not _is_wrapped(x):
            return check(x)
        with torch._C._DisableFuncTorch():
            return check(unwrapped(x).flatten(0, -2))

    return wrapper


def unwrapped(x: Tensor) -> Tensor:
    r"""The tensor inside the wrappers of :mod:`torch.func`, all samples of a batch.

    Args:
        x: The tensor.

    Example:
        >>> unwrapped(torch.ones(2))
        tensor([1., 1.])
    """
    return torch.func.debug_unwrap(x)


def _is_wrapped(x: Tensor) -> bool:
    return torch.func.debug_unwrap(x, recurse=False) is not x


def check_tensor(name: str, tensor: Tensor) -> None:
    r"""Checks that an argument is a tensor whose numbers can be read, where it is.

    Tensors without numbers (:obj:`meta`, or a GPU's in a trace) and those that a
    function transform wraps pass: whoever needs their numbers does not get that far.

    Args:
        name: The argument's name, for messages.
        tensor: The argument.

    Raises:
        TypeError: If it is no tensor, or not a dense one.
        ValueError: If its memory was released, or was never there.

    Example:
        >>> released = torch.rand(3)
        >>> _ = released.untyped_storage().resize_(0)
        >>> check_tensor("pos", released)
        Traceback (most recent call last):
        ValueError: the memory of 'pos' has 0 bytes of the 12 that it needs
    """
    if not isinstance(tensor, Tensor):
        raise TypeError(f"'{name}' must be a tensor (got '{type(tensor).__name__}')")
    if torch.compiler.is_compiling():
        return
    if tensor.layout is not torch.strided or tensor.is_nested:
        kind = "a nested tensor" if tensor.is_nested else tensor.layout
        raise TypeError(f"'{name}' must be a dense tensor (got {kind})")
    if _is_wrapped(tensor) or has_memory(tensor):
        return
    if is_traceable_wrapper_subclass(tensor):  # it knows where its numbers are
        return
    size, needed = tensor.untyped_storage().nbytes(), _reach(tensor)
    if size < needed:
        raise ValueError(
            f"the memory of '{name}' has {size} bytes of the {needed} that it needs"
        )
    if tensor.is_cpu:
        raise ValueError(
            f"'{name}' must have values that can be read (got a "
            f"'{type(tensor).__name__}' without)"
        )


def has_memory(tensor: Tensor) -> bool:
    r"""Whether a tensor's memory is there, all of it.

    Args:
        tensor: A tensor with storage.

    Example:
        >>> has_memory(torch.rand(3)), has_memory(torch.rand(3, device="meta"))
        (True, False)
    """
    if tensor.numel() == 0:
        return True
    if isinstance(tensor, FakeTensor):
        return False
    size = tensor.untyped_storage().nbytes()
    return tensor.data_ptr() != 0 and size >= _reach(tensor)


def _reach(tensor: Tensor) -> int:
    # Where the last element ends, in bytes from the start of the storage.
    if tensor.is_contiguous():
        length = tensor.numel()
    else:
        steps = zip(tensor.shape, tensor.stride())
        length = 1 + sum((size - 1) * stride for size, stride in steps)
    return int(tensor.storage_offset() + length) * tensor.itemsize


def check_pos(pos: Tensor, values: bool = True) -> Tensor:
    r"""Returns positions as the native operators take them.

    They are detached; float16 and bfloat16 become float32, which is exact.

    Args:
        pos: The node positions.
        values: Whether to check values too, which waits for a GPU.

    Shapes:
        - **pos:** :math:`(N, D)` with :math:`D \geq 1`.
        - **output:** :math:`(N, D)`, float32 or float64.

    Raises:
        TypeError: If the positions are not a floating-point tensor.
        ValueError: If they are not two-dimensional or not finite.

    Example:
        >>> check_pos(torch.zeros(4, 3, dtype=torch.float16)).dtype
        torch.float32
    """
    check_tensor("pos", pos)
    if pos.dim() != 2 or pos.size(1) < 1:
        raise ValueError(f"'pos' must have shape [N, D] (got {list(pos.shape)})")
    check_floating("pos", pos)
    if pos.dtype in HALF:
        pos = pos.float()
    pos = pos.detach()
    if values and not torch.compiler.is_compiling():
        check_finite(pos)
    return pos


def check_floating(name: str, x: Tensor) -> None:
    r"""Checks that a tensor has a dtype that PyTorch calculates in.

    Args:
        name: The argument's name, for messages.
        x: The argument.

    Raises:
        TypeError: If it has not.

    Example:
        >>> check_floating("x", torch.arange(3))
        Traceback (most recent call last):
        TypeError: 'x' must be floating-point (got torch.int64)
    """
    if x.dtype not in _FLOATS:
        wide = " of 16 bits or more" if x.is_floating_point() else ""
        raise TypeError(f"'{name}' must be floating-point{wide} (got {x.dtype})")


def check_weight(name: str, x: Tensor, weight: Tensor) -> None:
    r"""Checks that rows can meet the weights of a layer.

    Args:
        name: The argument's name, for messages.
        x: The rows.
        weight: A weight of the layer.

    Raises:
        TypeError: If the weight has another dtype.
        ValueError: If it lies on another device.

    Example:
        >>> check_weight("x", torch.rand(3), torch.rand(3))
    """
    if x.device != weight.device:
        raise ValueError(
            f"'{name}' is on {x.device}, the weights are on {weight.device}: move one "
            f"of them, such as '{name}.to({str(weight.device)!r})'"
        )
    same = x.dtype == weight.dtype or not weight.is_floating_point()
    if not same and not is_autocast(x.device):
        raise TypeError(
            f"'{name}' is {x.dtype}, the weights are {weight.dtype}: convert one of "
            f"them, such as '{name}.to({weight.dtype})'"
        )


def check_positions(name: str, pos: Tensor, num_rows: int, dim: int) -> None:
    r"""Checks the row positions that a layer takes; on the host their values too.

    Args:
        name: The argument's name, for messages.
        pos: The argument.
        num_rows: The number of rows :math:`N`.
        dim: The number of coordinates :math:`D`.

    Shapes:
        - **pos:** :math:`(N, D)`.

    Raises:
        TypeError: If they are no floating-point tensor.
        ValueError: If they have another shape, or are not finite.

    Example:
        >>> check_positions("pos", torch.tensor([[1.0, float("inf")]]), 1, 2)
        Traceback (most recent call last):
        ValueError: 'pos' must be finite (row 0 is [1.0, inf])
    """
    check_rows(name, pos, num_rows, dim)
    if pos.device.type == "cpu" and not torch.compiler.is_compiling():
        check_finite(pos, name)


def check_finite(pos: Tensor, name: str = "pos") -> None:
    r"""Checks the values of positions.

    Args:
        pos: The node positions.
        name: The argument's name, for messages.

    Shapes:
        - **pos:** :math:`(N, D)`.

    Raises:
        ValueError: If a position is not finite.

    Example:
        >>> check_finite(torch.tensor([[0.0], [float("nan")]]))
        Traceback (most recent call last):
        ValueError: 'pos' must be finite (row 1 is [nan])
    """
    row = _not_finite(pos)
    if row is not None:
        raise ValueError(f"'{name}' must be finite (row {row[0]} is {row[1]})")


@reads_values
def _not_finite(pos: Tensor) -> Optional[tuple[int, list[float]]]:
    # The first row that is not finite.
    is_native = pos.dtype in (torch.float32, torch.float64) and has_memory(pos)
    if pos.device.type == "cpu" and is_native:
        finite = _native.is_finite(pos.contiguous())
    else:
        finite = bool(torch.isfinite(pos).all())
    if finite:
        return None
    row = int((~torch.isfinite(pos).all(dim=1)).nonzero()[0])
    return row, pos[row].tolist()


def check_ptr(
    ptr: Optional[Tensor],
    num_rows: int,
    device: torch.device,
    values: bool = True,
    name: str = "ptr",
) -> Tensor:
    r"""Returns the row offsets of the clouds; one cloud if none are given.

    Args:
        ptr: The offsets, as in :class:`torch_geometric.data.Batch`.
        num_rows: The number of rows :math:`N` that they divide.
        device: The device that they must be on.
        values: Whether to check values too, which waits for a GPU.
        name: The argument's name, for messages.

    Shapes:
        - **ptr:** :math:`(G + 1)`, int64, ascending from 0 to :math:`N`.

    Raises:
        TypeError: If the offsets are not int64.
        ValueError: If they are malformed or on another device.

    Example:
        >>> check_ptr(None, 5, torch.device("cpu"))
        tensor([0, 5])
    """
    if ptr is None:
        # Not a tensor of the host's, whose copy to a GPU would wait for it.
        return torch.arange(2, device=device) * num_rows
    check_int64(name, ptr)
    if ptr.dim() != 1 or ptr.size(0) < 1:
        raise ValueError(f"'{name}' must have shape [G + 1] (got {list(ptr.shape)})")
    if ptr.device != device:
        raise ValueError(f"'{name}' is on {ptr.device}, the positions are on {device}")
    if values and not torch.compiler.is_compiling():
        if int(ptr[0]) != 0:
            raise ValueError(f"'{name}' must start at 0 (got {int(ptr[0])})")
        descents = (ptr[1:] < ptr[:-1]).nonzero()
        if descents.numel() > 0:
            i = int(descents[0])
            raise ValueError(
                f"'{name}' must not descend (entry {i} is {int(ptr[i])}, entry {i + 1} "
                f"is {int(ptr[i + 1])})"
            )
        if int(ptr[-1]) != num_rows:
            raise ValueError(
                f"'{name}' must end at the number of rows {num_rows} (got "
                f"{int(ptr[-1])})"
            )
    return ptr


def check_int64(name: str, tensor: Tensor) -> None:
    r"""Checks that an argument is a dense tensor of 64-bit integers.

    Args:
        name: The argument's name, for messages.
        tensor: The argument.

    Raises:
        TypeError: If it is none.

    Example:
        >>> check_int64("perm", [0, 1])
        Traceback (most recent call last):
        TypeError: 'perm' must be an int64 tensor (got 'list')
    """
    if not isinstance(tensor, Tensor) or tensor.dtype != torch.int64:
        is_tensor = isinstance(tensor, Tensor)
        kind = tensor.dtype if is_tensor else f"'{type(tensor).__name__}'"
        raise TypeError(f"'{name}' must be an int64 tensor (got {kind})")
    check_tensor(name, tensor)


def batch_to_ptr(batch: Tensor, num_clouds: Optional[int] = None) -> Tensor:
    r"""Turns a sorted assignment vector into row offsets.

    Args:
        batch: The cloud of every row.
        num_clouds: The number of clouds :math:`G`, if the last ones may be empty.

    Shapes:
        - **batch:** :math:`(N)`, int64, ascending.
        - **output:** :math:`(G + 1)`.

    Raises:
        TypeError: If the vector is not int64.
        ValueError: If it is not one-dimensional, not sorted or negative.

    Example:
        >>> batch_to_ptr(torch.tensor([0, 0, 2]))
        tensor([0, 2, 2, 3])
    """
    check_int64("batch", batch)
    if batch.is_meta:
        raise ValueError("'batch' is on meta, it must be where it has values")
    if batch.dim() != 1:
        raise ValueError(f"'batch' must have shape [N] (got {list(batch.shape)})")
    if batch.numel() > 0:
        descents = (batch[1:] < batch[:-1]).nonzero()
        if descents.numel() > 0:
            i = int(descents[0]) + 1
            raise ValueError(
                f"'batch' must be sorted (entry {i} is {int(batch[i])} after "
                f"{int(batch[i - 1])}); sort the nodes by cloud first"
            )
        if int(batch[0]) < 0:
            raise ValueError(f"'batch' must not be negative (got {int(batch[0])})")
    if num_clouds is not None:
        num_clouds = check_int("num_clouds", num_clouds, 0)
    if num_clouds is None:
        num_clouds = int(batch[-1]) + 1 if batch.numel() > 0 else 0
    elif batch.numel() > 0 and int(batch[-1]) >= num_clouds:
        raise ValueError(
            f"'batch' names cloud {int(batch[-1])} of only {num_clouds} clouds: "
            "'num_clouds' must be larger"
        )
    clouds = torch.arange(num_clouds + 1, device=batch.device)
    return torch.searchsorted(batch.contiguous(), clouds)


def check_choice(name: str, value: object, choices: Collection[str]) -> None:
    r"""Checks an argument that names one of a few choices.

    Args:
        name: The argument's name, for messages.
        value: Its value.
        choices: What it may be.

    Raises:
        ValueError: If it is none of them.

    Example:
        >>> check_choice("layout", "balanced", ["balanced", "perfect"])
    """
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"'{name}' must be one of {[*choices]} (got {value!r})")


def check_int(name: str, value: int, minimum: int, maximum: int = LIMIT) -> int:
    r"""Returns an integer argument that lies between a minimum and a maximum.

    Args:
        name: The argument's name, for messages.
        value: The argument; NumPy's integers are integers too.
        minimum: The smallest value that is allowed.
        maximum: The largest one.

    Raises:
        TypeError: If it is not an integer.
        ValueError: If it is too small or too large.

    Example:
        >>> check_int("dim", 3, minimum=1)
        3
    """
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise TypeError(f"'{name}' must be an integer (got {value!r})")
    if value < minimum:
        raise ValueError(f"'{name}' must be at least {minimum} (got {value})")
    if value > maximum:
        raise ValueError(f"'{name}' must be at most {maximum} (got {value})")
    return int(value)


def check_number(name: str, value: float) -> float:
    r"""Returns an argument that is a real number as a Python float.

    Args:
        name: The argument's name, for messages.
        value: The argument; NumPy's numbers are fine too.

    Raises:
        TypeError: If it is not a real number.
        ValueError: If no float is as large.

    Example:
        >>> check_number("eps", 2)
        2.0
    """
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"'{name}' must be a number (got {value!r})")
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"'{name}' must be a number that a float can hold") from None


def check_finite_number(name: str, value: float, minimum: float = -math.inf) -> float:
    r"""Returns a finite number that is not below a minimum as a Python float.

    Args:
        name: The argument's name, for messages.
        value: The argument.
        minimum: The smallest value that is allowed.

    Raises:
        TypeError: If it is not a real number.
        ValueError: If it is not finite, or too small.

    Example:
        >>> check_finite_number("eps", float("nan"), 0)
        Traceback (most recent call last):
        ValueError: 'eps' must be finite and at least 0 (got nan)
    """
    number = check_number(name, value)
    if not (math.isfinite(number) and number >= minimum):
        least = "" if minimum == -math.inf else f" and at least {minimum}"
        raise ValueError(f"'{name}' must be finite{least} (got {value})")
    return number


def check_instance(name: str, value: object, kind: Any, text: str = "") -> None:
    r"""Checks the class of an argument.

    Args:
        name: The argument's name, for messages.
        value: The argument.
        kind: The class, or a tuple of classes.
        text: What to call them. (default: the name of the class)

    Raises:
        TypeError: If it is of another class.

    Example:
        >>> check_instance("mlp", 3, Module, "a module")
        Traceback (most recent call last):
        TypeError: 'mlp' must be a module (got 3)
    """
    if not isinstance(value, kind):
        text = text or f"a {kind.__name__}"
        given = repr(value)
        if len(given) > 60 or isinstance(
            value, Tensor
        ):  # of data or a tree, or of many numbers
            given = f"'{type(value).__name__}'"
        raise TypeError(f"'{name}' must be {text} (got {given})")


def made_by(name: str, make: Callable[..., Any], what: str, *args: Any) -> Any:
    r"""What a callable argument makes; one that does not take its arguments is named.

    Args:
        name: The argument's name, for messages.
        make: The callable.
        what: What it is called with, in words.
        *args: The same.

    Raises:
        TypeError: If it takes something else.

    Example:
        >>> made_by("norm", torch.nn.LayerNorm, "a number of channels", 8).eps
        1e-05
    """
    try:
        signature(make).bind(*args)
    except TypeError as error:
        raise TypeError(f"'{name}' must take {what} (got {make}: {error})") from None
    except ValueError:  # what is written in C has no signature
        pass
    return make(*args)


def check_flag(name: str, value: bool) -> bool:
    r"""Returns a flag; NumPy's are flags too.

    Args:
        name: The argument's name, for messages.
        value: The argument.

    Raises:
        TypeError: If it is none.

    Example:
        >>> check_flag("loop", True)
        True
    """
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"'{name}' must be a bool (got {value!r})")
    return bool(value)


def check_rows(name: str, x: Tensor, num_rows: int, channels: int) -> None:
    r"""Checks the rows that a layer takes.

    Args:
        name: The argument's name, for messages.
        x: The argument.
        num_rows: The number of rows :math:`N`.
        channels: The number of entries of each.

    Shapes:
        - **x:** :math:`(N, C)`.

    Raises:
        TypeError: If it is no floating-point tensor.
        ValueError: If it has another shape.

    Example:
        >>> check_rows("x", torch.rand(5, 2), 5, 3)
        Traceback (most recent call last):
        ValueError: 'x' must have shape [5, 3] (got [5, 2])
    """
    check_tensor(name, x)
    check_floating(name, x)
    if x.dim() != 2 or x.size(0) != num_rows or x.size(1) != channels:
        raise ValueError(
            f"'{name}' must have shape [{num_rows}, {channels}] (got {[*x.shape]})"
        )


def check_devices(**tensors: Optional[Tensor]) -> None:
    r"""Checks that tensors lie on the device of the first of them.

    Args:
        **tensors: The tensors by their names.

    Raises:
        ValueError: If one lies on another.

    Example:
        >>> check_devices(x=torch.rand(3), perm=torch.arange(3, device="meta"))
        Traceback (most recent call last):
        ValueError: 'perm' is on meta, 'x' is on cpu
    """
    device, first = None, ""
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if device is None:
            device, first = tensor.device, name
        if tensor.device != device:
            raise ValueError(
                f"'{name}' is on {tensor.device}, '{first}' is on {device}"
            )


def check_radius(r: float) -> float:
    r"""Returns a distance as a Python float.

    Args:
        r: The distance; NumPy's numbers are fine too.

    Raises:
        TypeError: If it is not a real number.
        ValueError: If it is negative.

    Example:
        >>> check_radius(2)
        2.0
    """
    r = check_number("r", r)
    if not r >= 0:
        raise ValueError(f"'r' must be a number that is not negative (got {r})")
    return r


def per_level(
    name: str,
    value: Union[int, Sequence[int]],
    levels: int,
    minimum: int = 1,
    maximum: int = LIMIT,
) -> tuple[int, ...]:
    r"""Repeats a scalar for every level, or checks one value per level.

    Args:
        name: The argument's name, for messages.
        value: One number, or one per level.
        levels: The number of levels.
        minimum: The smallest value that is allowed.
        maximum: The largest one.

    Raises:
        TypeError: If a value is not an integer.
        ValueError: If their number or one of them is out of range.

    Example:
        >>> per_level("ball_sizes", 128, 3)
        (128, 128, 128)
    """
    if isinstance(value, (str, bytes)):
        raise TypeError(f"'{name}' must hold integers (got {value!r})")
    values = list(value) if isinstance(value, Sequence) else [value] * levels
    for v in values:
        if not isinstance(v, Integral) or isinstance(v, bool):
            raise TypeError(f"'{name}' must hold integers (got {v!r})")
        check_int(name, v, minimum, maximum)
    if len(values) != levels:
        raise ValueError(
            f"'{name}' must have one value or {levels} (got {len(values)}: {values})"
        )
    return tuple(int(v) for v in values)


_HOOKS = (
    "_forward_pre_hooks",
    "_forward_hooks",
    "_backward_pre_hooks",
    "_backward_hooks",
)


def is_plain(module: Module, kind: type[Module]) -> bool:
    r"""Whether calling a module is what its class says and nothing more.

    Args:
        module: The module.
        kind: The class.

    Example:
        >>> is_plain(torch.nn.SiLU(), torch.nn.SiLU)
        True
    """
    return (
        type(module) is kind
        and "forward" not in vars(module)
        and not any(getattr(module, name) for name in _HOOKS)
        and not _has_any_global_hook()
    )


def flag_per_level(
    name: str, value: Union[bool, Sequence[bool]], levels: int
) -> tuple[bool, ...]:
    r"""Repeats a flag for every level, or checks one per level.

    Args:
        name: The argument's name, for messages.
        value: One flag, or one per level.
        levels: The number of levels.

    Raises:
        TypeError: If a value is not a flag.
        ValueError: If their number does not fit.

    Example:
        >>> flag_per_level("checkpoint", True, 2)
        (True, True)
    """
    values = list(value) if isinstance(value, Sequence) else [value] * levels
    values = [check_flag(name, v) for v in values]
    if len(values) != levels:
        raise ValueError(
            f"'{name}' must have one value or {levels} (got {len(values)}: {values})"
        )
    return tuple(values)


def is_autocast(device: torch.device) -> bool:
    r"""Whether autocast is at work on a device; some have none.

    Args:
        device: The device.

    Example:
        >>> is_autocast(torch.device("meta"))
        False
    """
    known = torch.amp.is_autocast_available(device.type)
    return known and torch.is_autocast_enabled(device.type)


def is_readable(x: Tensor) -> bool:
    r"""Whether a check can look at single values, and without waiting for a GPU.

    Args:
        x: The tensor.

    Example:
        >>> is_readable(torch.ones(2))
        True
        >>> torch.vmap(lambda x: x * is_readable(x))(torch.ones(2)).tolist()
        [0.0, 0.0]
    """
    return (
        not torch.compiler.is_compiling()
        and x.device.type == "cpu"
        and not is_batched(x)
    )


def is_batched(x: Tensor) -> bool:
    r"""Whether a tensor stands for several samples of a :func:`torch.vmap`.

    Args:
        x: The tensor, which other transforms may have wrapped too.

    Example:
        >>> is_batched(torch.ones(2))
        False
    """
    # The samples are one more dimension of what is inside.
    return unwrapped(x).dim() > x.dim()


def check_lengths(name: str, lengths: Tensor, num_rows: int, limit: int) -> None:
    r"""Checks the lengths of the runs, balls or groups, that rows are divided into.

    Args:
        name: The argument's name, for messages.
        lengths: The rows of every run.
        num_rows: The number of rows.
        limit: The largest length that is possible.

    Shapes:
        - **lengths:** :math:`(K)`, int64.

    Raises:
        TypeError: If they are no tensor.
        ValueError: If they are malformed, do not sum to the rows, or exceed the limit.

    Example:
        >>> check_lengths("ball_len", torch.tensor([4, 2]), num_rows=6, limit=4)
    """
    check_tensor(name, lengths)
    if lengths.dim() != 1 or lengths.dtype != torch.int64:
        raise ValueError(
            f"'{name}' must be int64 with one dimension (got {lengths.dtype}, "
            f"{list(lengths.shape)})"
        )
    if not is_readable(lengths):
        return
    total = int(lengths.sum())
    if total != num_rows:
        raise ValueError(
            f"'{name}' must sum to the number of rows {num_rows} (got {total})"
        )
    if lengths.size(0) == 0:
        return
    low, high = (int(t) for t in lengths.aminmax())
    if low < 0 or high > limit:
        bad = low if low < 0 else high
        raise ValueError(f"'{name}' must lie between 0 and {limit} (got {bad})")


def check_permutation(name: str, perm: Tensor, num_rows: int) -> None:
    r"""Checks an order of rows.

    Args:
        name: The argument's name, for messages.
        perm: The row at every place.
        num_rows: The number of rows.

    Shapes:
        - **perm:** :math:`(N)`, int64.

    Raises:
        TypeError: If it is no int64 tensor.
        ValueError: If it has another shape, or does not hold every row once.

    Example:
        >>> check_permutation("perm", torch.tensor([1, 1]), 2)
        Traceback (most recent call last):
        ValueError: 'perm' must hold every row once (row 1 is there 2 times)
    """
    check_tensor(name, perm)
    if perm.dim() != 1 or perm.size(0) != num_rows:
        raise ValueError(f"'{name}' must have shape [{num_rows}] (got {[*perm.shape]})")
    if perm.dtype != torch.int64:
        raise TypeError(f"'{name}' must be int64 (got {perm.dtype})")
    if num_rows == 0 or not is_readable(perm):
        return
    for row in map(int, perm.aminmax()):
        if not 0 <= row < num_rows:
            raise ValueError(
                f"'{name}' must hold rows from 0 to {num_rows - 1} (got {row})"
            )
    count = torch.bincount(perm)
    if int(count.max()) > 1:
        row = int(count.argmax())
        raise ValueError(
            f"'{name}' must hold every row once (row {row} is there {count[row]} times)"
        )


def check_mask(name: str, mask: Tensor, num_rows: int) -> None:
    r"""Checks a flag for every row.

    Args:
        name: The argument's name, for messages.
        mask: The flags.
        num_rows: The number of rows.

    Shapes:
        - **mask:** :math:`(N)`, bool.

    Raises:
        TypeError: If it is no boolean tensor.
        ValueError: If it has another shape.

    Example:
        >>> check_mask("mask", torch.tensor([True]), 2)
        Traceback (most recent call last):
        ValueError: 'mask' must have shape [2] (got [1]), a flag for every row
    """
    check_tensor(name, mask)
    if mask.dtype != torch.bool:
        raise TypeError(f"'{name}' must be boolean (got {mask.dtype})")
    if mask.dim() != 1 or mask.size(0) != num_rows:
        raise ValueError(
            f"'{name}' must have shape [{num_rows}] (got {[*mask.shape]}), a flag for "
            "every row"
        )


def check_share(name: str, value: float) -> float:
    r"""Returns a probability below one as a Python float.

    Args:
        name: The argument's name, for messages.
        value: The argument.

    Raises:
        TypeError: If it is not a real number.
        ValueError: If it is not in :math:`[0, 1)`.

    Example:
        >>> check_share("dropout", 0)
        0.0
    """
    number = check_number(name, value)
    if not 0 <= number < 1:
        raise ValueError(f"'{name}' must be at least 0 and below 1 (got {value})")
    return number


def check_edges(
    name: str, edge_index: Tensor, num_nodes: int, int32: bool = False
) -> None:
    r"""Checks edges between nodes, or between rows.

    Args:
        name: The argument's name, for messages.
        edge_index: The edges.
        num_nodes: The number of nodes :math:`N`.
        int32: Whether 32-bit integers are fine, too.

    Shapes:
        - **edge_index:** :math:`(2, E)`, int64.

    Raises:
        TypeError: If they are no int64 tensor.
        ValueError: If they have another shape, or name a node that is not there.

    Example:
        >>> check_edges("edge_index", torch.tensor([[0], [3]]), 3)
        Traceback (most recent call last):
        ValueError: 'edge_index' must name one of 3 nodes (got 3)
    """
    check_tensor(name, edge_index)
    if edge_index.dim() != 2 or edge_index.size(0) != 2:
        raise ValueError(f"'{name}' must have shape [2, E] (got {[*edge_index.shape]})")
    if edge_index.dtype != torch.int64 and not (
        int32 and edge_index.dtype == torch.int32
    ):
        raise TypeError(f"'{name}' must be int64 (got {edge_index.dtype})")
    if not is_readable(edge_index):
        return
    if edge_index.size(1) == 0:
        return
    for node in map(int, edge_index.aminmax()):
        if not 0 <= node < num_nodes:
            raise ValueError(
                f"'{name}' must name one of {num_nodes} nodes (got {node})"
            )


def check_shape(name: str, x: Tensor, sizes: Sequence[int]) -> None:
    r"""Checks the first sizes of a tensor.

    Args:
        name: The argument's name, for messages.
        x: The argument.
        sizes: What its shape must begin with.

    Raises:
        TypeError: If it is no dense tensor.
        ValueError: If its shape begins otherwise.

    Example:
        >>> check_shape("x", torch.rand(5, 2), (4,))
        Traceback (most recent call last):
        ValueError: 'x' must have shape [4, ...] (got [5, 2])
    """
    check_tensor(name, x)
    if x.shape[: len(sizes)] != tuple(sizes):
        wanted = ", ".join(map(str, sizes))
        raise ValueError(f"'{name}' must have shape [{wanted}, ...] (got {[*x.shape]})")
