r"""Times ball attention with other tiles than those in the package; needs a GPU.

``python -m tools.tiles --dtype bf16 --channels 32 --ball-size 256`` prints the
fastest tiles of every kernel. Write a tile to ``ops/triton/tiles.py`` if it is faster
for all sizes and ``tools/registers.py`` finds no spills.
"""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from itertools import product
from statistics import median
from typing import Any

import torch
from torch import Tensor

from benchmark.cases.attention import Balls, make_balls, moved
from benchmark.runner import cuda_seconds
from torch_geometric_erwin.nn import ball_attention
from torch_geometric_erwin.ops.triton import attention
from torch_geometric_erwin.ops.triton.tiles import Tile

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
_KERNELS = ("forward", "keys", "queries")


def candidates(kernel: str, ball_size: int) -> Iterator[Tile]:
    r"""Tiles with up to 64 scores per thread and one or two pipeline stages.

    Args:
        kernel: A name in ``_KERNELS``.
        ball_size: The largest number of rows in a ball; no tile is larger.
    """
    sizes = [n for n in (16, 32, 64, 128, 256) if n <= max(16, ball_size)]
    for queries, keys, warps in product(sizes, sizes, (1, 2, 4, 8)):
        if 4 <= queries * keys / (32 * warps) <= 64:
            tile = Tile(queries, keys, warps)
            yield tile
            two = {"ahead": True} if kernel == "keys" else {"stages": 2}
            yield tile._replace(**two)


@contextmanager
def _shipping(kernel: str, tile: Tile) -> Iterator[None]:
    name = f"{kernel}_tile"
    shipped = getattr(attention, name)
    setattr(attention, name, lambda *_: tile)
    try:
        yield
    finally:
        setattr(attention, name, shipped)


def _step(train: bool, ball_size: int, b: Balls) -> Any:
    rows = (*b.rows, b.pos, b.ball_len, b.sigma)
    out = ball_attention(*rows, ball_size=ball_size, backend="triton")
    if not train:
        return out
    leaves: list[Tensor] = [*b.rows, b.sigma]
    return torch.autograd.grad(out, leaves, b.grad)


def main() -> None:
    r"""Reads the command line, and prints the ten fastest tiles of every kernel."""
    parser = argparse.ArgumentParser(prog="python -m tools.tiles")
    parser.add_argument("--dtype", choices=_DTYPES, default="bf16")
    parser.add_argument("--channels", type=int, default=32)
    parser.add_argument("--ball-size", type=int, default=256)
    parser.add_argument("--points", type=int, default=65_536)
    parser.add_argument("--repeats", type=int, default=15)
    args = parser.parse_args()
    balls = make_balls(args.points, args.channels, args.ball_size, False, seed=0)
    print(torch.cuda.get_device_name(), vars(args))
    for kernel in _KERNELS:
        train = kernel != "forward"
        b = moved(balls, "cuda", _DTYPES[args.dtype], train)
        run = partial(_step, train, args.ball_size)
        times: list[tuple[float, str]] = []
        for tile in [None, *candidates(kernel, args.ball_size)]:
            try:
                with nullcontext() if tile is None else _shipping(kernel, tile):
                    run(b)  # compiles
                    seconds = [cuda_seconds(run, b) for _ in range(args.repeats)]
            except Exception as error:  # a tile may need more than a GPU has
                print(f"  {tile}: {type(error).__name__}")
                continue
            times.append((median(seconds), "as shipped" if tile is None else str(tile)))
        print(f"{kernel}, {'forward + backward' if train else 'forward'}:")
        for value, name in sorted(times)[:10]:
            print(f"  {1e6 * value:8.1f} µs  {name}")
        print(*[f"  {1e6 * v:8.1f} µs  {n}" for v, n in times if n == "as shipped"])


if __name__ == "__main__":
    main()
