"""Message passing on a GPU: the operator, the layer, compiled and captured."""

import copy

import pytest
import torch
from compiled import no_recompilation
from messages import EPS, GRAPHS, WIDTHS, assert_close, inputs, reference

from torch_geometric_erwin.nn import MPNNConv
from torch_geometric_erwin.ops.edges import Edges
from torch_geometric_erwin.ops.message import composite, mean_message

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
OPS = torch.ops.erwin
LARGER = [*GRAPHS, (300, 5000), (1000, 16_000)]


def results(rows, edge_index, grad, flow="source_to_target"):
    leaves = [t.detach().requires_grad_() for t in rows]
    out = mean_message(*leaves, EPS, Edges(edge_index, rows[0].size(0)), flow)
    leaves = [*leaves[:2], *leaves[3:]]
    return [out.detach(), *torch.autograd.grad(out, leaves, grad)]


@pytest.mark.parametrize("channels, dim", WIDTHS)
@pytest.mark.parametrize("n, num_edges", LARGER)
@pytest.mark.parametrize("pos_dtype", [torch.float32, torch.float64])
def test_equals_reference(n, num_edges, channels, dim, pos_dtype):
    args = inputs(n, num_edges, channels, dim, pos_dtype, "cuda")
    assert_close(results(*args), reference(*args), channels)


def test_flow():
    rows, edge_index, grad = inputs(300, 5000, 64, 3, device="cuda")
    expected = results(rows, edge_index, grad)
    actual = results(rows, edge_index.flip(0), grad, "target_to_source")
    for a, e in zip(actual, expected, strict=True):
        assert torch.equal(a, e)


def test_same_bits_in_every_run():
    args = inputs(1000, 16_000, 64, 3, device="cuda")
    expected = results(*args)
    for _ in range(5):
        assert all(map(torch.equal, results(*args), expected))


@pytest.mark.parametrize("num_edges", [0, 1, 5000])
def test_groups_equal_those_of_the_cpu(num_edges):
    key = torch.randint(70, (num_edges,))
    expected = OPS.group(key, 75)
    for a, e in zip(OPS.group(key.cuda(), 75), expected, strict=True):
        assert torch.equal(a.cpu(), e)


def test_reads_no_value_from_the_device():
    args = inputs(300, 5000, 64, 3, device="cuda")
    results(*args)  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        results(*args)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_graph_replays_other_edges():
    args = inputs(300, 5000, 64, 3, device="cuda")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        results(*args)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = results(*args)
    for limit in (300, 100, 3):
        args[1].copy_(torch.randint(limit, (2, 5000)))
        graph.replay()
        for a, e in zip(captured, results(*args), strict=True):
            assert torch.equal(a, e)


@pytest.mark.parametrize("num_edges", [0, 40])
def test_opcheck(num_edges):
    rows, edge_index, grad = inputs(9, num_edges, 20, 3, device="cuda")
    edges = Edges(edge_index, 9)
    args = (EPS, *edge_index, *edges.by(1), *edges.by(0))
    torch.library.opcheck(OPS.group.default, (edge_index[0], 9))
    torch.library.opcheck(OPS.message_backward.default, (*rows, *args, grad))
    leaves = [t.requires_grad_() for t in rows]
    torch.library.opcheck(OPS.message.default, (*leaves, *args))


def test_second_derivatives():
    rows, edge_index, _ = inputs(20, 100, 32, 3, device="cuda")

    def second(tensors, function):
        leaves = [t.detach().requires_grad_() for t in tensors]
        first = torch.autograd.grad(
            function(leaves).sin().sum(), leaves, create_graph=True
        )
        return torch.autograd.grad(sum(g.square().sum() for g in first), leaves)

    edges = Edges(edge_index, 20)
    actual = second(rows, lambda t: mean_message(*t, EPS, edges))
    exact = [t.double() for t in rows]
    expected = second(exact, lambda t: composite(t, EPS, *edge_index))
    assert_close(actual, expected, 32, tolerance=1e-5)


def layer_inputs(n=200, num_edges=3000, channels=32):
    torch.manual_seed(0)
    conv = MPNNConv(channels).cuda()
    x, pos = torch.randn(n, channels).cuda(), torch.rand(n, 3).cuda()
    return conv, (x, pos, torch.randint(n, (2, num_edges)).cuda())


def test_layer_takes_the_operator(monkeypatch):
    conv, args = layer_inputs()
    monkeypatch.setattr(conv, "propagate", None)
    conv(*args).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in conv.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_layer_in_half_precision(dtype):
    conv, (x, *rest) = layer_inputs()
    expected = conv(x, *rest)
    # A few rounding errors.
    tolerance = {"rtol": 0, "atol": 32 * torch.finfo(dtype).eps}
    out = copy.deepcopy(conv).to(dtype)(x.to(dtype), *rest)
    assert out.dtype == dtype
    torch.testing.assert_close(out.float(), expected, **tolerance)
    with torch.autocast("cuda", dtype):
        out = conv(x, *rest)
    torch.testing.assert_close(out.float(), expected, **tolerance)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_one_graph_for_all_sizes(backend):
    torch.compiler.reset()
    compiled = None
    for i, (n, num_edges) in enumerate([(200, 3000), (70, 900), (150, 40)]):
        conv, args = layer_inputs(n, num_edges)
        if compiled is None:
            first = conv
            compiled = torch.compile(
                conv, fullgraph=True, dynamic=True, backend=backend
            )
        with no_recompilation(i):
            out = compiled(*args)
        torch.testing.assert_close(out, first(*args), rtol=1e-5, atol=1e-5)
