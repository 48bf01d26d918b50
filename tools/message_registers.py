r"""Registers and shared memory of the message-passing Triton kernels, without a GPU.

``python -m tools.message_registers`` compiles the kernels and prints registers per
thread, bytes that a thread spills, and shared memory of a program. Only a GPU can show
how fast they are (``python -m benchmark message_cuda``).
"""

from itertools import product
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from tools.registers import CAPABILITIES, Usage, read_usage
from torch_geometric_erwin.ops.triton.message import Tile, tile_of
from torch_geometric_erwin.ops.triton.message_backward import (
    source_kernel,
    target_kernel,
)
from torch_geometric_erwin.ops.triton.message_forward import forward_kernel
from torch_geometric_erwin.ops.triton.message_rows import TABLES

KERNELS: dict[str, Any] = {
    "forward": forward_kernel,
    "target": target_kernel,
    "source": source_kernel,
}


def compiled(
    kernel: str,
    channels: int,
    capability: tuple[int, int],
    tile: Tile,
    dim: int = 3,
    pos_dtype: str = "fp32",
) -> Any:
    r"""Compiles a kernel with the arguments of a call.

    Args:
        kernel: A key of :data:`KERNELS`.
        channels: The channels of a row.
        capability: The device's compute capability.
        tile: The tile: the one in the package, or another one to compare with.
        dim: The number of coordinates.
        pos_dtype: The data type of the coordinates.
    """
    function = KERNELS[kernel]
    constants = {
        "CHANNELS": channels,
        "DIM": dim,
        "WIDTH": max(16, triton.next_power_of_2(channels)),
        "NODES": tile.nodes,
        "EDGES": tile.edges,
    }
    signature, aligned = {}, {}
    for i, name in enumerate(function.arg_names):
        if name in constants:
            signature[name] = "constexpr"
        elif name in ("nodes", "edges"):
            signature[name] = "i32"
        elif name == "eps":
            signature[name] = "fp32"
        else:
            element = "i64" if name in TABLES else "fp32"
            signature[name] = f"*{pos_dtype if name == 'pos' else element}"
            if name not in TABLES:
                aligned[(i,)] = [["tt.divisibility", 16]]
    used = {k: v for k, v in constants.items() if k in function.arg_names}
    return triton.compile(
        ASTSource(function, signature, used, aligned),
        target=GPUTarget("cuda", 10 * capability[0] + capability[1], 32),
        options={"num_warps": tile.warps, "enable_fp_fusion": True},
    )


def usage(
    kernel: str, channels: int, capability: tuple[int, int], **other: Any
) -> Usage:
    r"""Compiles a kernel with the tile in the package; returns what it uses.

    Args:
        kernel: A key of :data:`KERNELS`.
        channels: The channels of a row.
        capability: The device's compute capability.
        **other: Further arguments of :func:`compiled`.
    """
    other.setdefault("tile", tile_of(channels, kernel != "forward"))
    return read_usage(compiled(kernel, channels, capability, **other))


def main() -> None:
    r"""Prints a line for every kernel."""
    print(f"Triton {triton.__version__}")
    sizes = [16, 20, 32, 64, 96, 128, 256, 512]
    for channels, dim, kernel, capability in product(
        sizes, (3, 7), KERNELS, CAPABILITIES
    ):
        found = usage(kernel, channels, capability, dim=dim)
        print(kernel, channels, dim, capability, "|", *found, flush=True)


if __name__ == "__main__":
    main()
