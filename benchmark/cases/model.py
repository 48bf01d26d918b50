r"""The whole model, including building its tree."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmark.inputs import Graphs, graphs
from benchmark.original import Original
from benchmark.runner import Case, Run, UnavailableError, Workload
from torch_geometric_erwin.nn import Erwin
from torch_geometric_erwin.nn.models.reference import (
    convert_config,
    convert_state_dict,
)

#: Five levels, 19.0 million weights.
FIVE_LEVELS: dict[str, Any] = {
    "c_in": 4,
    "c_hidden": [32, 64, 128, 256, 512],
    "ball_sizes": [128] * 5,
    "strides": [2] * 4,
    "enc_depths": [2, 2, 2, 6, 2],
    "enc_num_heads": [2, 4, 8, 16, 32],
    "dec_depths": [2] * 4,
    "dec_num_heads": [4, 4, 8, 16],
    "rotate": 45,
    "mp_steps": 3,
    "mlp_ratio": 4,
}
#: The published small model for cosmology, with features: 1.9 million weights.
SMALL: dict[str, Any] = {
    "c_in": 4,
    "c_hidden": [32, 64, 128, 256],
    "ball_sizes": [256] * 4,
    "strides": [2] * 3,
    "enc_depths": [2, 2, 6, 2],
    "enc_num_heads": [2, 4, 8, 16],
    "dec_depths": [2] * 3,
    "dec_num_heads": [4, 4, 8],
    "rotate": 0,
    "mp_steps": 3,
    "mlp_ratio": 4,
}
#: A model of the demo's size: 0.5 million weights.
DEMO: dict[str, Any] = {
    **SMALL,
    "c_hidden": [32, 64, 128],
    "ball_sizes": [128] * 3,
    "strides": [4] * 2,
    "enc_depths": [2] * 3,
    "enc_num_heads": [2, 4, 8],
    "dec_depths": [2] * 2,
    "dec_num_heads": [2, 4],
    "rotate": 45,
}
#: A tiny model with five levels, for tests.
TINY: dict[str, Any] = {
    **FIVE_LEVELS,
    "c_hidden": [8, 16, 32],
    "ball_sizes": [16] * 3,
    "strides": [2] * 2,
    "enc_depths": [2, 2, 2],
    "enc_num_heads": [1, 2, 4],
    "dec_depths": [2] * 2,
    "dec_num_heads": [1, 2],
    "mlp_ratio": 2,
}


def _original(config: dict[str, Any], train: bool) -> Run:
    import balltree  # noqa: F401  (the original's tree builder)

    model = _weights(config).train(train)
    call = lambda g: model(g.x, g.pos, g.batch, g.edge_index)  # noqa: E731
    return partial(_run, model, call, "embed.embed_fn")


def _weights(config: dict[str, Any]) -> Original:
    # The lowest nodes of a tree are pairs of points. In the original their order
    # depends on the selection algorithm, here on coordinates. These weights treat both
    # points of a pair alike, so the outputs are the same.
    torch.manual_seed(0)
    model = Original(config)
    c, dim = config["c_hidden"][0], config.get("dimensionality", 3)
    pool = model.get_parameter("encoder.0.pool.proj.weight")
    unpool = model.get_parameter(f"decoder.{len(model.decoder) - 1}.unpool.proj.weight")
    with torch.no_grad():
        for part in pool[:, : 2 * c], pool[:, 2 * c :]:
            part.copy_((part + part.roll(part.size(1) // 2, 1)) / 2)
        swapped = unpool.roll(c, 0)
        offsets = swapped[:, -2 * dim :]
        swapped[:, -2 * dim :] = offsets.roll(dim, 1)
        unpool.copy_((unpool + swapped) / 2)
    return model


def _ours(config: dict[str, Any], train: bool, **options: Any) -> Run:
    if missing := options.keys() - inspect.signature(Erwin).parameters.keys():
        raise UnavailableError(f"Erwin has no option {', '.join(missing)}")
    options = {"layout": "balanced", **options}
    model = Erwin(**{**convert_config(config), **options})
    model.load_state_dict(convert_state_dict(_weights(config).state_dict(), model))
    model.train(train)
    call = lambda g: model(g.x, g.pos, g.edge_index, ptr=g.ptr)  # noqa: E731
    return partial(_run, model, call, "embed.start")


def _run(
    model: torch.nn.Module, call: Callable[[Graphs], Tensor], first: str, g: Graphs
) -> list[Tensor]:
    # The output and, in training, the gradient of the first layer, which has passed
    # through all others.
    if not model.training:
        with torch.no_grad():
            return [call(g)]
    model.zero_grad()
    out = call(g)
    out.square().mean().backward()
    weight = model.get_parameter(f"{first}.weight")
    assert weight.grad is not None
    return [out.detach(), weight.grad]


def close(g: Graphs, expected: list[Tensor], actual: list[Tensor]) -> None:
    r"""Compares in the norm; the baseline's distances have errors of 7e-4."""
    for name, e, a in zip(("out", "gradient"), expected, actual, strict=False):
        error = float((a - e).norm() / e.norm())
        assert error < 1e-2, f"'{name}' is off by {error:.1e}"


def _workload(
    num: int,
    n: int,
    train: bool,
    config: dict[str, Any],
    implementations: Mapping[str, Callable[[], Run]],
    baseline: str = "original",
) -> Workload:
    return Workload(
        f"{num} x {n:,}, {'forward + backward' if train else 'forward'}",
        partial(_graphs, num, n),
        implementations,
        baseline,
        close,
        {"clouds": num, "points": num * n, "train": train},
        frozenset({"ours, one ball"}),
    )


def _graphs(num: int, n: int, seed: int) -> Graphs:
    return graphs(num, n, FIVE_LEVELS["c_in"], seed=seed)


def _both(config: dict[str, Any], train: bool) -> dict[str, Callable[[], Run]]:
    return {
        "original": partial(_original, config, train),
        "ours": partial(_ours, config, train),
    }


# Sizes are powers of two and large enough for one full ball on the coarsest level. With
# other sizes the original's balls contain points of several clouds, so it computes
# something else.
def model(size: str) -> Iterator[Workload]:
    r"""A training batch, and single clouds."""
    config = TINY if size == "tiny" else FIVE_LEVELS
    sizes = {"tiny": [(2, 64)], "quick": [(2, 2048)]}.get(
        size, [(16, 2048), (1, 16_384), (1, 65_536)]
    )
    for train in (False, True):
        for num, n in sizes:
            yield _workload(num, n, train, config, _both(config, train))


def model_memory(size: str) -> Iterator[Workload]:
    r"""Memory of a training step and of a prediction."""
    sizes = {"tiny": [(2, 64)], "quick": [(2, 2048)]}.get(
        size, [(16, 2048), (1, 65_536)]
    )
    config = TINY if size == "tiny" else FIVE_LEVELS
    for train in (False, True):
        for num, n in sizes:
            yield _workload(num, n, train, config, _both(config, train))


def model_scaling(size: str) -> Iterator[Workload]:
    r"""One cloud of more and more points, compared with attention over all points."""
    config = TINY if size == "tiny" else FIVE_LEVELS
    sizes = {"tiny": [64], "quick": [2048, 4096]}.get(
        size, [2**i for i in range(11, 19)]
    )
    for n in sizes:
        implementations = _both(config, False)
        if n > 65_536:
            del implementations["original"]
        if n <= 8192:  # larger clouds take far too long, and soon all memory
            whole = [n // 2**l for l in range(len(config["ball_sizes"]))]
            one = partial(_ours, config, False, ball_sizes=whole)
            implementations["ours, one ball"] = one
        yield _workload(1, n, False, config, implementations)


def checkpoint(size: str) -> Iterator[Workload]:
    r"""A training step that recomputes values instead of storing them."""
    config = TINY if size == "tiny" else FIVE_LEVELS
    num, n = {"tiny": (2, 64), "quick": (2, 2048)}.get(size, (16, 2048))
    levels = len(config["ball_sizes"])
    implementations = {"ours": partial(_ours, config, True)}
    for name, first in (("level 0", 1), ("levels 0 and 1", 2), ("all levels", levels)):
        flags = [level < first for level in range(levels)]
        run = partial(_ours, config, True, checkpoint=flags)
        implementations[f"ours, {name}"] = run
    yield _workload(num, n, True, config, implementations, "ours")


def million(size: str) -> Iterator[Workload]:
    r"""The published small model for cosmology, whose input fills 12 MB."""
    config = TINY if size == "tiny" else SMALL
    n = {"tiny": 64, "quick": 50_000}.get(size, 1_000_000)
    for train in (False, True):
        implementations = {"ours": partial(_ours, config, train, checkpoint=train)}
        yield _workload(1, n, train, config, implementations, "ours")


def model_contention(size: str) -> Iterator[Workload]:
    r"""Two processes train at the same time, on a cloud of the demo's size per step."""
    config = TINY if size == "tiny" else DEMO
    n = 64 if size == "tiny" else 4096
    work = _workload(1, n, True, config, _both(config, True))
    yield replace(work, calls=12)


CASES = [
    Case(
        "model",
        "Erwin of five levels, 19.0 million weights, its trees included",
        model,
        allocators=("default", "tuned"),
    ),
    Case(
        "model_memory",
        "Peak memory of Erwin of five levels, 19.0 million weights",
        model_memory,
        measures=("memory",),
    ),
    Case(
        "model_scaling",
        "A forward pass of Erwin of five levels over one cloud",
        model_scaling,
        plot="scaling",
    ),
    Case(
        "checkpoint",
        "A training step of Erwin that recomputes the blocks of some levels",
        checkpoint,
        measures=("time", "memory"),
    ),
    Case(
        "million",
        "A million points in one cloud; in training all levels are recomputed",
        million,
        measures=("time", "memory"),
    ),
    Case(
        "model_contention",
        "Training steps beside a second process that does the same",
        model_contention,
        measures=("contention",),
    ),
    Case(
        "model_contention_asleep",
        "The same, with threads that soon wait asleep (GOMP_SPINCOUNT=1000)",
        model_contention,
        measures=("contention",),
        environment={"GOMP_SPINCOUNT": "1000"},
    ),
]
