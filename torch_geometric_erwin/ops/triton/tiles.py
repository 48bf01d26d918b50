r"""The sizes of the tiles of attention kernels.

They are in tables and not searched for at run time. So the first call of a size costs
one compilation, and a result has the same bits in every process. Sizes are such that no
kernel needs more registers than there are, for compute capability 8.0 and 9.0: all of
them were compiled without a GPU (``tools/registers.py``). No GPU has timed them yet.
The choices consider that

- registers must hold a whole tile of scores and of distances beside the sums;
- the fewer keys a block has, the more often are the queries, their outputs and their
  gradients read; and if a ball has more than one block of keys, gradients of queries
  need a second kernel, which computes all weights once more;
- if one program takes all registers of a multiprocessor, no other program can run while
  it waits for memory, so it loads the next block before it computes with this one;
- products of float32 without tensor cores need registers for both factors.
"""

from functools import cache
from typing import NamedTuple


class Tile(NamedTuple):
    r"""The queries and keys of a block, the warps of a program, and its way to load.

    Blocks are loaded in advance by Triton's pipeline, with :obj:`stages` blocks at a
    time, or, with :obj:`ahead`, by the kernel itself, one block at a time. The backward
    kernel does so because with Triton's pipeline its products wait for each other.
    """

    queries: int
    keys: int
    warps: int
    stages: int = 1
    ahead: bool = False


# Tiles by the precision of products and the padded channels of a head.
_FORWARD = {
    "half": {
        16: Tile(64, 64, 4, 2),
        32: Tile(64, 128, 4, 2),
        64: Tile(64, 64, 8),
        128: Tile(64, 64, 8),
    },
    "tf32": {
        16: Tile(64, 64, 4),
        32: Tile(64, 64, 4),
        64: Tile(64, 32, 8),
        128: Tile(16, 32, 4),
    },
    "ieee": {
        16: Tile(32, 32, 4),
        32: Tile(32, 32, 4),
        64: Tile(32, 32, 4),
        128: Tile(16, 32, 4),
    },
}
_KEYS = {
    "half": {
        16: Tile(32, 128, 8, ahead=True),
        32: Tile(32, 128, 8, ahead=True),
        64: Tile(32, 64, 8, ahead=True),
        128: Tile(32, 32, 8),
    },
    "tf32": {
        16: Tile(32, 64, 8),
        32: Tile(32, 64, 8),
        64: Tile(32, 32, 4),
        128: Tile(32, 32, 8),
    },
    "ieee": {
        16: Tile(32, 32, 4),
        32: Tile(32, 32, 4),
        64: Tile(16, 32, 8),
        128: Tile(16, 32, 8),
    },
}
# Hopper's tensor cores read factors from shared memory, so that fewer registers are
# needed and tiles can be larger.
_FORWARD_HOPPER = {
    **_FORWARD,
    "half": {**_FORWARD["half"], 16: Tile(64, 128, 4, 2)},
}
_KEYS_HOPPER = {
    **_KEYS,
    "half": {
        **_KEYS["half"],
        16: Tile(32, 256, 8, ahead=True),
        32: Tile(32, 256, 8, ahead=True),
        64: Tile(32, 128, 8, ahead=True),
    },
}
_QUERIES = {
    "half": {
        16: Tile(64, 64, 4),
        32: Tile(64, 64, 4),
        64: Tile(64, 32, 4),
        128: Tile(64, 32, 4),
    },
    "tf32": {
        16: Tile(32, 32, 4),
        32: Tile(32, 32, 4),
        64: Tile(32, 32, 4),
        128: Tile(32, 32, 8),
    },
    "ieee": {
        16: Tile(32, 32, 4),
        32: Tile(32, 32, 4),
        64: Tile(16, 32, 8),
        128: Tile(16, 32, 8),
    },
}
# Gradients of positions need more registers, for the offsets along every axis.
_WITH_POSITIONS = {
    "half": {w: Tile(32, 32, 8) for w in (16, 32, 64, 128)},
    "tf32": {w: Tile(16, 32, 8) for w in (16, 32, 64, 128)},
    "ieee": {
        16: Tile(16, 32, 8),
        32: Tile(16, 32, 8),
        64: Tile(16, 32, 8),
        128: Tile(16, 16, 8),
    },
}


@cache
def forward_tile(
    precision: str, channels: int, ball_size: int, capability: tuple[int, int]
) -> Tile:
    r"""Returns the tile of the forward kernel.

    Args:
        precision: ``half``, ``tf32`` or ``ieee``.
        channels: The channels of a head.
        ball_size: The largest number of rows in a ball.
        capability: The device's compute capability.

    Example:
        >>> forward_tile("half", 32, 256, (9, 0))
        Tile(queries=64, keys=128, warps=4, stages=2, ahead=False)
    """
    table = _FORWARD_HOPPER if capability >= (9, 0) else _FORWARD
    return _fitted(table[precision][_width(channels)], ball_size)


@cache
def keys_tile(
    precision: str,
    channels: int,
    ball_size: int,
    capability: tuple[int, int],
    pos_grad: bool,
) -> Tile:
    r"""Returns the tile of the backward kernel with a program per block of keys.

    Args:
        precision: ``half``, ``tf32`` or ``ieee``.
        channels: The channels of a head.
        ball_size: The largest number of rows in a ball.
        capability: The device's compute capability.
        pos_grad: Whether positions get a gradient.

    Example:
        >>> keys_tile("half", 32, 24, (9, 0), pos_grad=False)
        Tile(queries=32, keys=32, warps=4, stages=1, ahead=True)
    """
    table = _KEYS_HOPPER if capability >= (9, 0) else _KEYS
    table = _WITH_POSITIONS if pos_grad else table
    return _fitted(table[precision][_width(channels)], ball_size)


@cache
def queries_tile(
    precision: str,
    channels: int,
    ball_size: int,
    capability: tuple[int, int],
    pos_grad: bool,
) -> Tile:
    r"""Returns the tile of the backward kernel with a program per block of queries.

    Args:
        precision: ``half``, ``tf32`` or ``ieee``.
        channels: The channels of a head.
        ball_size: The largest number of rows in a ball.
        capability: The device's compute capability.
        pos_grad: Whether positions get a gradient.

    Example:
        >>> queries_tile("ieee", 20, 1000, (8, 0), pos_grad=False)
        Tile(queries=32, keys=32, warps=4, stages=1, ahead=False)
    """
    table = _WITH_POSITIONS if pos_grad else _QUERIES
    return _fitted(table[precision][_width(channels)], ball_size)


def _width(channels: int) -> int:
    return max(16, 1 << (channels - 1).bit_length())


def _fit(size: int, ball_size: int) -> int:
    # Triton's products of matrices need at least 16 rows.
    return max(16, min(size, 1 << (ball_size - 1).bit_length()))


def _fitted(tile: Tile, ball_size: int) -> Tile:
    queries, keys = _fit(tile.queries, ball_size), _fit(tile.keys, ball_size)
    few = 4 * queries * keys <= tile.queries * tile.keys
    warps = min(tile.warps, 4) if few else tile.warps
    return tile._replace(queries=queries, keys=keys, warps=warps)
