import numpy as np
import pytest
import torch
from compiled import no_recompilation
from scipy.special import erf

from torch_geometric_erwin import _native
from torch_geometric_erwin.ops.edges import Edges
from torch_geometric_erwin.ops.message import composite, mean_message

EPS = 1e-5


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def graph(n, num_edges, seed=0):
    """Unsorted edges, with loops and repeats; if they are few, some nodes have none."""
    generator = torch.Generator().manual_seed(1000 * seed + n)
    return torch.randint(max(n, 1), (2, num_edges), generator=generator)


def inputs(n, channels, dim, pos_dtype=torch.float32, scale=1.0, seed=0):
    """The tensors of a call, which all require a gradient."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(n, channels)] * 2 + [(n, dim), (channels, dim), (channels,), (channels,)]
    tensors = [torch.randn(shape, generator=generator) for shape in shapes]
    tensors[0] *= scale
    tensors[2] = tensors[2].to(pos_dtype)
    return [tensor.requires_grad_() for tensor in tensors]


def exact(tensors):
    return [tensor.detach().double().requires_grad_() for tensor in tensors]


def run(function, tensors, *args, seed=1):
    """The output, and the gradients of a random linear function of it."""
    out = function(tensors, *args)
    generator = torch.Generator().manual_seed(seed)
    grad = torch.randn(out.shape, generator=generator).to(out.dtype)
    return [out.detach(), *torch.autograd.grad(out, tensors, grad)]


def fused(tensors, edge_index):
    return mean_message(*tensors, EPS, Edges(edge_index, tensors[0].size(0)))


def plain(tensors, edge_index):
    return composite(tensors, EPS, *edge_index)


def assert_close(actual, expected, tolerance=4e-6):
    """The tolerance is relative to the largest entry: gradients sum over many edges."""
    for a, b in zip(actual, expected, strict=True):
        assert a.shape == b.shape
        scale = max(1.0, float(b.abs().max())) if b.numel() else 1.0
        torch.testing.assert_close(a.double(), b, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("channels", [1, 5, 16, 31, 32, 64, 100])
@pytest.mark.parametrize(("n", "num_edges"), [(1, 3), (2, 1), (40, 25), (300, 5000)])
def test_equals_composite(n, num_edges, channels, isa):
    # With few channels, the variance can be near zero, which enlarges rounding errors.
    tolerance = 4e-6 if channels > 5 else 1e-3
    tensors, edge_index = inputs(n, channels, 3), graph(n, num_edges)
    expected = run(plain, exact(tensors), edge_index)
    assert_close(run(fused, tensors, edge_index), expected, tolerance)


@pytest.mark.parametrize("pos_dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("dim", [1, 2, 3, 7])
def test_any_dimension(dim, pos_dtype, isa):
    tensors, edge_index = inputs(60, 24, dim, pos_dtype), graph(60, 500)
    actual = run(fused, tensors, edge_index)
    assert_close(actual, run(plain, exact(tensors), edge_index))
    assert actual[3].dtype == pos_dtype


def test_sorted_edges_and_a_hub(isa):
    edge_index = graph(300, 4000)
    edge_index[1, :2000] = 7
    edge_index[0, 2000:3000] = 8
    edge_index = edge_index[:, edge_index[1].argsort(stable=True)]
    tensors = inputs(300, 32, 3)
    expected = run(plain, exact(tensors), edge_index)
    assert_close(run(fused, tensors, edge_index), expected, 1e-5)


def test_flow(isa):
    tensors, edge_index = inputs(50, 32, 3), graph(50, 400)
    edges = Edges(edge_index.flip(0), 50)
    actual = mean_message(*tensors, EPS, edges, "target_to_source")
    assert torch.equal(actual, fused(tensors, edge_index))


@pytest.mark.parametrize("n", [0, 1, 5])
def test_no_edges(n, isa):
    tensors = inputs(n, 32, 3)
    for result in run(fused, tensors, graph(n, 0)):
        assert (result == 0).all()


def test_nodes_without_edges_get_zero(isa):
    tensors = inputs(5, 32, 3)
    out = fused(tensors, torch.tensor([[0, 1, 4], [3, 3, 1]]))
    assert (out == 0).all(dim=1).tolist() == [True, False, True, False, True]


def test_far_positions(isa):
    tensors, edge_index = inputs(60, 32, 3, torch.float64), graph(60, 500)
    far = [*tensors]
    far[2] = (tensors[2] + 1e6).detach().requires_grad_()
    assert_close(run(fused, far, edge_index), run(plain, exact(tensors), edge_index))


@pytest.mark.parametrize("scale", [1e-3, 30.0, 1e4])
def test_any_scale(scale, isa):
    tensors, edge_index = inputs(60, 32, 3, scale=scale), graph(60, 500)
    expected = run(plain, exact(tensors), edge_index)
    assert_close(run(fused, tensors, edge_index), expected, 5e-6)


def test_gelu(isa):
    # Of two channels, the other one is very negative, so its GELU is zero. The variance
    # is small compared with eps = 1, so the output is almost linear in the value.
    z = torch.linspace(-7, 7, 5001)
    rows = torch.stack([z, torch.full_like(z, -50.0)], dim=1).requires_grad_()
    nodes = torch.arange(z.size(0))
    zeros = (torch.zeros_like(rows), torch.zeros(z.size(0), 1), torch.zeros(2, 1))
    norm = (torch.tensor([1.0, 0.0]), torch.zeros(2), 1.0)
    edges = Edges(torch.stack([nodes, nodes]), z.size(0))
    out = mean_message(rows, *zeros, *norm, edges)[:, 0]
    (slope,) = torch.autograd.grad(out.sum(), rows)
    x = z.double().numpy()
    phi = 0.5 * (1 + erf(x / np.sqrt(2)))
    half = x * phi / 2  # the distance of the value from the mean
    root = np.sqrt(half**2 + 1)
    derivative = (phi + x * np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi)) / 2 / root**3
    np.testing.assert_allclose(out.detach().double().numpy(), half / root, atol=6e-7)
    np.testing.assert_allclose(slope[:, 0].double().numpy(), derivative, atol=6e-7)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_stays_so(value, isa):
    tensors = inputs(3, 32, 3)
    with torch.no_grad():
        tensors[0][0, 5] = value
    out = fused(tensors, torch.tensor([[0, 1], [1, 2]]))
    assert out[1].isnan().all()
    assert out[2].isfinite().all()


@pytest.mark.parametrize("channels", [5, 32, 64])
def test_same_bits_on_every_thread_count(channels, isa, threads):
    # Large enough for more threads than one.
    tensors, edge_index = inputs(2000, channels, 3), graph(2000, 32000)
    results = []
    for count in (1, 2, 3):
        threads(count)
        results.append(run(fused, tensors, edge_index))
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


def test_no_tensor_of_the_edges_features():
    n, num_edges, channels = 10, 20_000, 64
    tensors, edge_index = inputs(n, channels, 3), graph(n, num_edges)
    saved, sizes = [], []
    size_of = _native.size_of

    def recorded(name, *args):
        sizes.append(size_of(name, *args))
        return sizes[-1]

    def keep(tensor):
        saved.append(tensor.nbytes)
        return tensor

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_native, "size_of", recorded)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            fused(tensors, edge_index).sum().backward()
    of_features = num_edges * channels * 4
    assert len(saved) == 12
    assert sum(saved) < of_features / 4
    assert len(sizes) == 1
    assert sizes[0] < of_features / 10


def test_gradient_of_a_call_without_gradient_mode():
    # A forward pass that expected no backward pass has not sorted edges by source.
    tensors, edge_index = inputs(40, 32, 3), graph(40, 200)
    edges = Edges(edge_index, 40)
    with torch.no_grad():
        groups = edges.by(1)
    out = torch.ops.erwin.message(*tensors, EPS, *edge_index, *groups, None, None)
    grads = torch.autograd.grad(out.sum(), tensors)
    expected = torch.autograd.grad(fused(tensors, edge_index).sum(), tensors)
    assert all(map(torch.equal, grads, expected))


def second(function, tensors, edge_index):
    first = run_with_graph(function, tensors, edge_index)
    return torch.autograd.grad(sum(g.square().sum() for g in first), tensors)


def run_with_graph(function, tensors, edge_index):
    out = function(tensors, edge_index)
    return torch.autograd.grad(out.sin().sum(), tensors, create_graph=True)


def test_second_derivatives():
    tensors, edge_index = inputs(20, 32, 3), graph(20, 100)
    expected = second(plain, exact(tensors), edge_index)
    assert_close(second(fused, tensors, edge_index), expected, 1e-5)


def test_only_some_gradients():
    tensors, edge_index = inputs(20, 32, 3), graph(20, 100)
    expected = run(fused, tensors, edge_index)[1:]
    for create_graph in (False, True):
        for i in range(len(tensors)):
            some = [t if i == k else t.detach() for k, t in enumerate(tensors)]
            out = fused(some, edge_index)
            grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
            (actual,) = torch.autograd.grad(
                out, some[i], grad, create_graph=create_graph
            )
            torch.testing.assert_close(actual, expected[i], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("channels", [5, 32])
@pytest.mark.parametrize("num_edges", [0, 40])
def test_opcheck(num_edges, channels):
    tensors, edge_index = inputs(9, channels, 3), graph(9, num_edges)
    edges = Edges(edge_index, 9)
    args = (*tensors, EPS, *edge_index, *edges.by(1), *edges.by(0))
    torch.library.opcheck(torch.ops.erwin.message.default, args)
    args = (*(t.detach() for t in args[:6]), *args[6:], torch.randn(9, channels))
    torch.library.opcheck(torch.ops.erwin.message_backward.default, args)


def test_compile():
    torch.compiler.reset()
    # In a batch no two sizes are equal by accident: they would become one symbol.
    compiled = torch.compile(fused, fullgraph=True, dynamic=True, backend="aot_eager")
    for step, (n, num_edges) in enumerate([(40, 300), (7, 90), (150, 70)]):
        tensors, edge_index = inputs(n, 32, 3), graph(n, num_edges)
        with no_recompilation(step):
            actual = run(compiled, tensors, edge_index)
        for a, b in zip(actual, run(fused, tensors, edge_index), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("place", ["source", "target_ptr", "target_order"])
def test_operator_refuses_indices_that_would_harm_memory(place):
    tensors, edge_index = inputs(9, 32, 3), graph(9, 40)
    edges = Edges(edge_index, 9)
    names = ("source", "target", "target_ptr", "target_order")
    args = dict(zip(names, (*edge_index, *edges.by(1)), strict=True))
    rows = [tensor.detach() for tensor in tensors]
    for value in (-1, 41):
        broken = {**args, place: args[place].clone()}
        broken[place][3] = value
        with pytest.raises(RuntimeError, match="erwin_message_forward: invalid"):
            torch.ops.erwin.message(*rows, EPS, *broken.values(), *edges.by(0))


def test_refuses_a_source_that_is_not_there():
    edge_index = graph(9, 40)
    edge_index[0, 3] = 9
    tensors = inputs(9, 32, 3)
    for gradient in (False, True):
        with (
            torch.set_grad_enabled(gradient),
            pytest.raises(ValueError, match=r"nodes from 0 to 8 \(got 9\)"),
        ):
            fused(tensors, edge_index)


@pytest.mark.parametrize("place", ["target", "source_ptr", "source_order"])
def test_backward_refuses_indices_that_would_harm_memory(place):
    tensors, edge_index = inputs(9, 32, 3), graph(9, 40)
    edges = Edges(edge_index, 9)
    names = ("source", "target", "target_ptr", "target_order")
    names = (*names, "source_ptr", "source_order")
    groups = (*edge_index, *edges.by(1), *edges.by(0))
    args = dict(zip(names, groups, strict=True))
    rows = [tensor.detach() for tensor in tensors]
    for value in (-1, 41):
        broken = {**args, place: args[place].clone()}
        broken[place][3] = value
        with pytest.raises(RuntimeError, match="erwin_message_backward: invalid"):
            torch.ops.erwin.message_backward(
                *rows, EPS, *broken.values(), torch.ones(9, 32)
            )


def test_operator_refuses_a_missing_instruction_set(monkeypatch):
    monkeypatch.setattr(_native, "CPU_ISAS", {**_native.CPU_ISAS, "avx9": 9})
    monkeypatch.setattr(_native, "cpu_isa", lambda: "avx9")
    with pytest.raises(RuntimeError, match="not supported by this build"):
        fused(inputs(9, 32, 3), graph(9, 40))
