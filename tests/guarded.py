"""Memory for the native library with guards around it."""

from math import prod

import torch
from torch import Tensor

GUARD, MARK = 128, 0xA5  # bytes


class Guarded:
    """Uninitialised memory between guard bytes, which no call may write."""

    def __init__(self, size: int, shift: int = 0):
        self.first, self.size = GUARD + shift, size
        self.bytes = torch.full((self.first + size + GUARD,), MARK, dtype=torch.uint8)

    @property
    def address(self) -> int:
        return self.bytes.data_ptr() + self.first

    def tensor(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        view = self.bytes[self.first : self.first + self.size].view(dtype)
        return view.view(shape)

    def is_intact(self) -> bool:
        last = self.first + self.size
        return bool((self.bytes[: self.first] == MARK).all()) and bool(
            (self.bytes[last:] == MARK).all()
        )


class Outputs:
    """Guarded arrays of one call, by name."""

    def __init__(self) -> None:
        self.arrays: dict[str, tuple[Guarded, Tensor]] = {}

    def new(self, name: str, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        memory = Guarded(prod(shape) * dtype.itemsize)
        tensor = memory.tensor(shape, dtype)
        self.arrays[name] = memory, tensor
        return tensor

    def read(self) -> dict[str, Tensor]:
        """The arrays, after a check that their guards are unchanged."""
        for name, (memory, _) in self.arrays.items():
            assert memory.is_intact(), name
        return {name: tensor for name, (_, tensor) in self.arrays.items()}
