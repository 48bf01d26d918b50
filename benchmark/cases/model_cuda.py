r"""The whole model on a GPU; trees are built before the timed call."""

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch_geometric.data import Data

from benchmark.cases.model import FIVE_LEVELS, TINY
from benchmark.inputs import Graphs, graphs
from benchmark.original import Original, OriginalTree
from benchmark.runner import Case, Run, Workload, cuda_peak, synchronised_seconds
from torch_geometric_erwin.cuda_graph import CapturedStep
from torch_geometric_erwin.nn import Erwin
from torch_geometric_erwin.nn.models.reference import (
    convert_config,
    convert_state_dict,
)
from torch_geometric_erwin.tree import Tree, TreeConfig
from torch_geometric_erwin.tree.builder import build_tree

DEVICE = "cuda"
_HALF = "bf16 autocast"


class Batch(NamedTuple):
    r"""Graphs and their trees."""

    graphs: Graphs
    tree: Tree


def make_batch(num: int, n: int, config: dict[str, Any], seed: int) -> Batch:
    r"""Clouds with their tree, on the GPU.

    Args:
        num: The number of clouds.
        n: The points of a cloud, a power of two.
        config: The arguments of the original's constructor.
        seed: Makes the same batch again.
    """
    g = Graphs(*(t.to(DEVICE) for t in graphs(num, n, config["c_in"], seed=seed)))
    levels = config["ball_sizes"], config["strides"], config["rotate"]
    return Batch(g, build_tree(g.pos, g.ptr, TreeConfig(*levels)))


def _original(config: dict[str, Any], train: bool, half: bool, compiled: bool) -> Run:
    torch.manual_seed(0)
    model = Original(config).to(DEVICE).train(train)
    forward = torch.compile(model) if compiled else model

    def call(b: Batch) -> Tensor:
        # Sizes are powers of two: no slot is empty, and both models have equal balls.
        g, t = b
        order = t.global_perm()
        rotated = [t.global_perm_rot(l) for l in range(t.config.num_levels)]
        tree = OriginalTree(order, torch.ones_like(order, dtype=torch.bool), rotated)
        return forward(g.x, g.pos, g.batch, g.edge_index, tree)

    return partial(_run, model, call, "embed.embed_fn", half)


def _ours(
    config: dict[str, Any], train: bool, half: bool, compiled: bool, **options: Any
) -> Run:
    torch.manual_seed(0)
    weights = Original(config).state_dict()
    model = Erwin(**{**convert_config(config), "layout": "balanced", **options})
    model.load_state_dict(convert_state_dict(weights, model))
    model = model.to(DEVICE).train(train)
    forward = torch.compile(model) if compiled else model

    def call(b: Batch) -> Tensor:
        g = b.graphs
        return forward(g.x, g.pos, g.edge_index, ptr=g.ptr, tree=b.tree)

    return partial(_run, model, call, "embed.start", half)


def _captured(config: dict[str, Any], train: bool, half: bool, **options: Any) -> Run:
    ours = _ours(config, train, half, compiled=False, **options)
    trees: list[Tree] = []
    outputs: list[Tensor] = []

    def run(data: Data) -> Tensor:
        g = Graphs(*(data[name] for name in Graphs._fields))
        outputs[:] = ours(Batch(g, trees[0]))
        return outputs[0]

    step = CapturedStep(run)

    def call(b: Batch) -> list[Tensor]:
        trees[:] = [b.tree]  # a replay uses the tree of the recorded call
        step(Data(**b.graphs._asdict()))
        return outputs

    return call


def _run(
    model: torch.nn.Module, call: Run, first: str, half: bool, b: Batch
) -> list[Tensor]:
    # The output and, in training, the gradient of the first layer, which has passed
    # through all others.
    with torch.autocast(DEVICE, torch.bfloat16, enabled=half):
        if not model.training:
            with torch.no_grad():
                return [call(b)]
        model.zero_grad()
        loss = (out := call(b)).float().square().mean()
    loss.backward()
    weight = model.get_parameter(f"{first}.weight")
    assert weight.grad is not None
    return [out.detach(), weight.grad]


def close(half: bool, b: Batch, expected: list[Tensor], actual: list[Tensor]) -> None:
    r"""Compares in the norm.

    Rounding to bfloat16 changes the gradient of the first layer by a relative 0.15 in
    either formulation, measured at a tiny size.

    Args:
        half: Whether products were computed in bfloat16.
        b: The batch.
        expected: The output and the gradient of the baseline.
        actual: The output and the gradient of another implementation.
    """
    limits = (1e-1, 4e-1) if half else (1e-2, 1e-2)
    names = ("out", "gradient")
    for name, limit, e, a in zip(names, limits, expected, actual, strict=False):
        error = float((a.float() - e.float()).norm() / e.float().norm())
        assert error < limit, f"'{name}' is off by {error:.1e}"


def workload(
    num: int, n: int, train: bool, half: bool, config: dict[str, Any], **options: Any
) -> Workload:
    r"""Both formulations of a model, eager and compiled, and ours as a CUDA graph.

    Args:
        num: The number of clouds.
        n: The points of a cloud, a power of two.
        train: Whether there is a backward pass.
        half: Whether products are computed in bfloat16.
        config: The arguments of the original's constructor.
        **options: Further arguments of ours.
    """
    step = "forward + backward" if train else "forward"
    args = (config, train, half)
    return Workload(
        f"{num} x {n:,}, {_HALF if half else 'float32'}, {step}",
        partial(make_batch, num, n, config),
        {
            "original": partial(_original, *args, compiled=False),
            "original, compiled": partial(_original, *args, compiled=True),
            "ours": partial(_ours, *args, compiled=False, **options),
            "ours, compiled": partial(_ours, *args, compiled=True, **options),
            "ours, captured": partial(_captured, *args, **options),
        },
        "original",
        partial(close, half),
        {"clouds": num, "points": num * n, "train": train, "half": half},
        seconds=synchronised_seconds,
        peak=cuda_peak,
    )


def _workloads(
    sizes: list[tuple[int, int]], size: str, steps: tuple[bool, ...]
) -> Iterator[Workload]:
    if not torch.cuda.is_available():
        return
    config = TINY if size == "tiny" else FIVE_LEVELS
    sizes = {"tiny": [(2, 64)], "quick": [(2, 2048)]}.get(size, sizes)
    for half in (True, False):
        for train in steps:
            for num, n in sizes:
                yield workload(num, n, train, half, config)


def model_cuda(size: str) -> Iterator[Workload]:
    r"""A training batch of small clouds, and one of large ones."""
    yield from _workloads([(16, 2048), (16, 32_768)], size, (False, True))


def model_memory_cuda(size: str) -> Iterator[Workload]:
    r"""A training step over large clouds."""
    yield from _workloads([(16, 32_768)], size, (True,))


def million_cuda(size: str) -> Iterator[Workload]:
    r"""One large cloud; all blocks are recomputed in the backward pass."""
    if not torch.cuda.is_available():
        return
    config = TINY if size == "tiny" else FIVE_LEVELS
    n = {"tiny": 64, "quick": 65_536}.get(size, 2**20)
    for half in (True, False):
        yield workload(1, n, True, half, config, checkpoint=True)


CASES = [
    Case(
        "model_cuda",
        "Erwin of five levels, 19.0 million weights, on a GPU (needs one)",
        model_cuda,
    ),
    Case(
        "model_memory_cuda",
        "Peak memory of Erwin of five levels on a GPU (needs one)",
        model_memory_cuda,
        measures=("memory",),
    ),
    Case(
        "million_cuda",
        "A training step over a million points on a GPU, all levels recomputed "
        "(needs one)",
        million_cuda,
        measures=("time", "memory"),
    ),
]
