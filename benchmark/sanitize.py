r"""Runs every CUDA kernel on small inputs, for ``compute-sanitizer``.

.. code-block:: bash

    PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer python -m benchmark.sanitize
"""

import torch

from benchmark.inputs import clouds
from torch_geometric_erwin import ball_tree, knn_graph, radius_graph
from torch_geometric_erwin.nn import Erwin

DEVICE = "cuda"


def trees() -> None:
    r"""Clouds that fit a block, larger ones, and many small ones."""
    for dtype in (torch.float32, torch.float64):
        for num, size in ((3, 700), (1, 20_000), (600, 20)):
            c = clouds(num, size)
            for layout in ("balanced", "perfect"):
                pos, ptr = c.pos.to(DEVICE, dtype), c.ptr.to(DEVICE)
                tree = ball_tree(
                    pos,
                    ptr,
                    ball_sizes=[32, 32, 16],
                    strides=[2, 2],
                    layout=layout,
                )
                tree.update(pos)


def neighbors() -> None:
    r"""Both searches."""
    for dtype in (torch.float32, torch.float64):
        c = clouds(3, 700)
        pos, ptr = c.pos.to(DEVICE, dtype), c.ptr.to(DEVICE)
        knn_graph(pos, 16, ptr)
        radius_graph(pos, 0.2, ptr)
        radius_graph(pos, 0.2, ptr, max_num_neighbors=8)


def model() -> None:
    r"""A training step: attention, message passing, pooling."""
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
        net(x, pos, knn_graph(pos, 8, ptr), ptr=ptr).square().mean().backward()


def main() -> None:
    r"""Runs them all."""
    for part in (trees, neighbors, model):
        print(part.__name__, flush=True)
        part()
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
