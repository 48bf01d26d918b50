r"""Runs the CUDA kernels on small inputs, for ``compute-sanitizer``.

.. code-block:: bash

    PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer python -m tools.sanitize_cuda
"""

import torch

from benchmark.inputs import clouds
from torch_geometric_erwin import Level, ball_tree, knn, knn_graph, radius, radius_graph
from torch_geometric_erwin.nn import Erwin, ErwinBlock, ball_attention

DEVICE = "cuda"


def trees() -> None:
    r"""Builds trees of clouds that fit in a block, larger ones, and many small ones."""
    for dtype in (torch.float32, torch.float64):
        for num, size in ((3, 700), (1, 20_000), (600, 20)):
            c = clouds(num, size)
            for layout in ("balanced", "perfect"):
                pos, ptr = c.pos.to(DEVICE, dtype), c.ptr.to(DEVICE)
                tree = ball_tree(
                    pos,
                    ptr=ptr,
                    ball_sizes=[32, 32, 16],
                    strides=[2, 2],
                    layout=layout,
                )
                tree.update(pos)
        for dim in (1, 2, 8):
            ball_tree(clouds(2, 3000, dim).pos.to(DEVICE, dtype), ball_sizes=64)


def neighbors() -> None:
    r"""Runs all searches."""
    for dtype in (torch.float32, torch.float64):
        c = clouds(3, 700)
        pos, ptr = c.pos.to(DEVICE, dtype), c.ptr.to(DEVICE)
        knn_graph(pos, 16, ptr=ptr)
        knn_graph(pos, 200, ptr=ptr)  # lists that do not fit in registers
        knn_graph(pos[:, :1], 4, ptr=ptr)
        radius_graph(pos, 0.2, ptr=ptr)
        radius_graph(pos, 0.2, ptr=ptr, max_num_neighbors=8)
        knn(pos, -pos[::2], 16, ptr_x=ptr, ptr_y=ptr // 2)
        radius(pos, 1 - pos[::2], 0.2, ptr_x=ptr, ptr_y=ptr // 2)


def model() -> None:
    r"""Runs a training step: attention, message passing, pooling."""
    c = clouds(2, 500)
    pos, ptr = c.pos.to(DEVICE), c.ptr.to(DEVICE)
    for backend in (None, "sdpa"):
        net = Erwin(
            in_channels=4,
            hidden_channels=[32, 64],
            out_channels=3,
            ball_sizes=64,
            mp_steps=2,
            backend=backend,
        ).to(DEVICE)
        x = torch.randn(len(pos), 4, device=DEVICE)
        net(x, pos, knn_graph(pos, 8, ptr=ptr), ptr=ptr).square().mean().backward()


def blocks() -> None:
    r"""Runs a block in half precision, and one whose positions have a gradient."""
    ball_len = torch.tensor([64, 0, 7, 64, 30], device=DEVICE)
    rows = int(ball_len.sum())
    perm = torch.randperm(rows, device=DEVICE)
    for dtype, differentiable in ((torch.bfloat16, False), (torch.float32, True)):
        block = ErwinBlock(40, 2, ball_size=64)
        pos = torch.rand(rows, 3, device=DEVICE, requires_grad=differentiable)
        x = torch.randn(rows, 40, device=DEVICE)
        level = Level.build(pos, ball_len, ball_size=64, perm_rot=perm).rotated()
        with torch.autocast(DEVICE, dtype, enabled=dtype != torch.float32):
            out = block.to(DEVICE)(x, level)
        out.square().mean().backward()


def attention() -> None:
    r"""Computes all gradients in float32 and half precision, for two sizes of balls."""
    for dtype, channels, size in (
        (torch.float32, 20, 50),
        (torch.bfloat16, 32, 256),
        (torch.bfloat16, 32, 600),
    ):
        rows = 2 * size
        shape = (rows, 2, channels)
        q, k, v = (
            torch.randn(shape, device=DEVICE, dtype=dtype, requires_grad=True)
            for _ in range(3)
        )
        pos = torch.rand(rows, 3, device=DEVICE, requires_grad=True)
        ball_len = torch.full((2,), size, device=DEVICE)
        sigma = torch.full((2,), -1.0, device=DEVICE, requires_grad=True)
        for differentiable in (False, True):
            out = ball_attention(
                *(q, k, v, pos if differentiable else pos.detach(), ball_len, sigma),
                ball_size=size,
            )
            out.float().square().mean().backward()


def main() -> None:
    r"""Runs them all."""
    for part in (trees, neighbors, attention, blocks, model):
        print(part.__name__, flush=True)
        part()
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
