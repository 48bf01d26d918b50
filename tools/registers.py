r"""Registers and shared memory of the ball-attention Triton kernels, without a GPU.

``python -m tools.registers`` compiles the kernels with every tile in the package and
prints registers per thread, bytes that a thread spills, and shared memory of a program.
These numbers help to choose tiles, but only a GPU can show how fast a tile is
(``python -m benchmark attention_cuda``).
"""

import re
import subprocess
import tempfile
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import triton
from triton.backends import nvidia
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from torch_geometric_erwin.ops.triton import tiles
from torch_geometric_erwin.ops.triton.backward import keys_kernel, queries_kernel
from torch_geometric_erwin.ops.triton.forward import forward_kernel
from torch_geometric_erwin.ops.triton.rows import ANYWHERE

CAPABILITIES = [(8, 0), (9, 0)]
PRECISIONS = {"bf16": "half", "fp16": "half", "tf32": "tf32", "fp32": "ieee"}
_LONG = ("lengths", "ends", "perm")
_FLOAT = ("pos", "sigma", "lse", "grad_sigma", "grad_pos")


class Usage(NamedTuple):
    r"""Registers per thread, bytes a thread spills, shared bytes of a program."""

    registers: int
    spilled: int
    shared: int


class Launch(NamedTuple):
    r"""A kernel and the arguments of a call."""

    kernel: str  # forward, keys or queries
    dtype: str  # a key of PRECISIONS
    channels: int
    ball_size: int
    capability: tuple[int, int]
    pos_grad: bool = False
    permuted: bool = False


def launches(
    dtypes: list[str], channels: list[int], ball_sizes: list[int]
) -> Iterator[Launch]:
    r"""All kernels that calls of these sizes launch, for all capabilities."""
    for about in product(dtypes, channels, ball_sizes, CAPABILITIES):
        for permuted in (False, True):
            yield Launch("forward", *about, permuted=permuted)
            for pos_grad in (False, True):
                keys = Launch("keys", *about, pos_grad, permuted)
                yield keys
                if not _is_whole(keys):
                    yield keys._replace(kernel="queries")


def tile_of(launch: Launch) -> tiles.Tile:
    r"""The tile in the package."""
    about = (
        *(PRECISIONS[launch.dtype], launch.channels, launch.ball_size),
        launch.capability,
    )
    if launch.kernel == "forward":
        return tiles.forward_tile(*about)
    tile = tiles.keys_tile if launch.kernel == "keys" else tiles.queries_tile
    return tile(*about, launch.pos_grad)


def _is_whole(launch: Launch) -> bool:
    return launch.ball_size <= tile_of(launch).keys and not launch.pos_grad


def usage(launch: Launch, tile: tiles.Tile, dim: int = 3) -> Usage:
    r"""Compiles a kernel and reads what it uses.

    Args:
        launch: The call.
        tile: The tile: the one in the package, or another one to compare with.
        dim: The number of coordinates.
    """
    kernel: Any = {
        "forward": forward_kernel,
        "keys": keys_kernel,
        "queries": queries_kernel,
    }[launch.kernel]
    precision = PRECISIONS[launch.dtype]
    element = "fp32" if precision in ("tf32", "ieee") else launch.dtype
    constants = {
        "CHANNELS": launch.channels,
        "DIM": dim,
        "WIDTH": max(16, triton.next_power_of_2(launch.channels)),
        "QUERIES": tile.queries,
        "KEYS": tile.keys,
        "WHOLE": _is_whole(launch),
        "AHEAD": tile.ahead,
        "PRECISION": "tf32" if precision == "tf32" else "ieee",
    }
    if not launch.pos_grad:
        constants["grad_pos"] = None
    if not launch.permuted:
        constants["perm"] = None
    constants = {k: v for k, v in constants.items() if k in kernel.arg_names}
    signature, aligned = {}, {}
    for i, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name] = "constexpr"
        elif name == "scale":
            signature[name] = "fp32"
        elif name in ("rows", "blocks", "heads"):
            signature[name] = "i32"
        elif name.endswith(("_stride", "_head")):
            signature[name] = "i32"
            if launch.channels % 16 == 0:
                aligned[(i,)] = [["tt.divisibility", 16]]
        else:
            known = "i64" if name in _LONG else "fp32" if name in _FLOAT else element
            signature[name] = f"*{known}"
            if name not in ANYWHERE:
                aligned[(i,)] = [["tt.divisibility", 16]]
    compiled = triton.compile(
        ASTSource(kernel, signature, constants, aligned),
        target=GPUTarget("cuda", 10 * launch.capability[0] + launch.capability[1], 32),
        options={
            "num_warps": tile.warps,
            "num_stages": tile.stages,
            "enable_fp_fusion": True,
        },
    )
    return read_usage(compiled)


def read_usage(compiled: Any) -> Usage:
    r"""What a compiled kernel uses.

    Args:
        compiled: The kernel that Triton's compiler returned.
    """
    tool = Path(nvidia.__path__[0]) / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        command = [str(tool), "--dump-resource-usage", file.name]
        text = subprocess.run(command, capture_output=True, check=True, text=True)
    found = re.search(r"REG:(\d+) STACK:(\d+) .*LOCAL:(\d+)", text.stdout)
    if found is None:
        raise RuntimeError(f"cuobjdump said: {text.stdout}")
    registers, stack, local = (int(n) for n in found.groups())
    return Usage(registers, stack + local, compiled.metadata.shared)


def main() -> None:
    r"""Prints a line for every kernel and tile in the package."""
    print(f"Triton {triton.__version__}")
    seen = set()
    for launch in launches(
        [*PRECISIONS], [8, 32, 64, 128], [16, 32, 64, 128, 256, 512]
    ):
        tile = tile_of(launch)
        key = (*launch[:3], *launch[4:], tile, _is_whole(launch))
        if key not in seen:
            seen.add(key)
            print(*launch, "|", *tile, "|", *usage(launch, tile), flush=True)


if __name__ == "__main__":
    main()
