import copy

import pytest
import torch
from clouds import cloud, randomised
from oracles import erwin as plain
from torch.utils._python_dispatch import TorchDispatchMode
from torch_geometric import EdgeIndex
from torch_geometric.nn import MessagePassing
from torch_geometric.utils import coalesce

from torch_geometric_erwin.nn import MPNNConv, MPNNEmbedding
from torch_geometric_erwin.ops.registry import explain


@pytest.mark.parametrize("n", [1, 2, 9])
@pytest.mark.parametrize("dim", [1, 2, 3, 7])
def test_equals_definition(n, dim):
    conv = randomised(MPNNConv(5, dim))
    data = cloud(n, channels=5, dim=dim)
    edges = data.edge_index.T.tolist()
    expected = plain.message_passing(
        conv.state_dict(), list(data.x), list(data.pos), edges
    )
    actual = conv(data.x, data.pos, data.edge_index)
    torch.testing.assert_close(actual, torch.stack(expected), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("edge_dim", [1, 4])
@pytest.mark.parametrize("n", [1, 2, 9])
def test_edge_features_equal_definition(n, edge_dim):
    conv = randomised(MPNNConv(5, 3, edge_dim))
    data = cloud(n, channels=5)
    attr = cloud(3 * n, channels=edge_dim).x.requires_grad_()
    edges = data.edge_index.T.tolist()
    expected = plain.message_passing(
        conv.state_dict(), list(data.x), list(data.pos), edges, list(attr)
    )
    expected = torch.stack(expected)
    actual = conv(data.x, data.pos, data.edge_index, attr)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
    grads = [torch.autograd.grad(y.square().sum(), attr) for y in (actual, expected)]
    torch.testing.assert_close(*grads)
    scripted = torch.jit.script(conv)(data.x, data.pos, data.edge_index, attr)
    torch.testing.assert_close(scripted, expected)
    if edge_dim == 1:
        flat = conv(data.x, data.pos, data.edge_index, attr[:, 0])
        assert torch.equal(flat, actual)


def test_edge_features_are_a_reason_to_propagate():
    x, pos, edge_index = single()[1]
    conv, attr = MPNNConv(6, edge_dim=2), torch.rand(edge_index.size(1), 2)
    assert explain("message", conv, x, pos, edge_index)["native"] == (
        "it has edge features"
    )
    assert repr(conv) == "MPNNConv(6, dim=3, edge_dim=2)"
    assert conv(x, pos, edge_index, attr).shape == x.shape
    for bad, kind, message in (
        (None, ValueError, "'edge_attr' is missing, the layer takes 2 features of"),
        (attr[1:], ValueError, r"'edge_attr' must have shape \[\d+, 2\]"),
        (attr.int(), TypeError, "'edge_attr' must be floating-point"),
        (attr.double(), TypeError, "'edge_attr' is torch.float64, the weights are"),
    ):
        with pytest.raises(kind, match=message):
            conv(x, pos, edge_index, bad)
    with pytest.raises(ValueError, match="the layer takes no edge features"):
        MPNNConv(6)(x, pos, edge_index, attr)


def test_node_without_edges_gets_an_empty_message():
    conv = randomised(MPNNConv(5))
    data = cloud(4, channels=5)
    edge_index = torch.tensor([[0, 1], [1, 0]])
    expected = plain.message_passing(
        conv.state_dict(), list(data.x), list(data.pos), edge_index.T.tolist()
    )
    actual = conv(data.x, data.pos, edge_index)
    torch.testing.assert_close(actual, torch.stack(expected), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("edge_dim", [None, 1, 2])
@pytest.mark.parametrize("n", [0, 1, 3])
def test_no_edges(n, edge_dim):
    conv = randomised(MPNNConv(5, edge_dim=edge_dim))
    data = cloud(n, channels=5)
    attr = None if edge_dim is None else torch.rand(0, edge_dim, dtype=torch.float64)
    out = conv(data.x, data.pos, torch.empty(2, 0, dtype=torch.int64), attr)
    assert out.shape == (n, 5)
    assert torch.isfinite(out).all()
    out.square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in conv.parameters() if p.numel())


def test_flow():
    data = cloud(9, channels=5)
    forward, backward = MPNNConv(5), MPNNConv(5, flow="target_to_source")
    backward.load_state_dict(forward.state_dict())
    forward, backward = forward.double(), backward.double()
    torch.testing.assert_close(
        backward(data.x, data.pos, data.edge_index.flip(0)),
        forward(data.x, data.pos, data.edge_index),
    )


def test_depends_on_offsets_alone():
    conv = randomised(MPNNConv(5))
    data = cloud(9, channels=5)
    out = conv(data.x, data.pos, data.edge_index)
    moved = conv(data.x, data.pos + 1000, data.edge_index)
    # float64 positions at 1000 are rounded to 1e-13.
    torch.testing.assert_close(moved, out, rtol=0, atol=1e-11)


def test_gradients():
    conv = randomised(MPNNConv(5))
    data = cloud(9, channels=5)
    data.x.requires_grad_()
    data.pos.requires_grad_()
    out = conv(data.x, data.pos, data.edge_index)
    (out * torch.randn_like(out)).sum().backward()
    for tensor in (data.x, data.pos, *conv.parameters()):
        assert (tensor.grad.abs() > 1e-9).all()


def test_is_message_passing():
    assert isinstance(MPNNConv(5), MessagePassing)


def test_reset_parameters():
    conv = randomised(MPNNConv(64))
    conv.reset_parameters()
    for name, parameter in conv.named_parameters():
        if name.endswith("bias"):
            assert (parameter == 0).all(), name
        elif name.startswith("norm"):
            assert (parameter == 1).all(), name
        else:
            assert 0.8 < parameter.std() * parameter.size(1) ** 0.5 < 0.96, name


def test_repr():
    assert repr(MPNNConv(5, dim=2)) == "MPNNConv(5, dim=2)"


class Calls(TorchDispatchMode):
    """Counts the calls of the package's operators."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "erwin":
            self.names.append(func.name())
        return func(*args, **(kwargs or {}))


def is_fused(conv, *args):
    with Calls() as calls, torch.no_grad():
        conv(*args)
    return "erwin::message" in calls.names


def single(channels=6, n=9, **kwargs):
    """A layer and its input in float32, for which the native kernel is used."""
    conv = randomised(MPNNConv(channels, **kwargs)).float()
    data = cloud(n, channels=channels, dtype=torch.float32)
    return conv, (data.x, data.pos, data.edge_index)


def shuffled(n, num_edges):
    generator = torch.Generator().manual_seed(n)
    return torch.randint(max(n, 1), (2, num_edges), generator=generator)


@pytest.mark.parametrize("flow", ["source_to_target", "target_to_source"])
@pytest.mark.parametrize("pos_dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("n", "num_edges", "dim"), [(1, 2, 3), (2, 1, 1), (70, 40, 2), (200, 3000, 3)]
)
def test_kernel_equals_propagate(n, num_edges, dim, pos_dtype, flow):
    conv = randomised(MPNNConv(32, dim, flow=flow)).float()
    data = cloud(n, channels=32, dim=dim, dtype=torch.float32)
    x, pos, edge_index = data.x, data.pos.to(pos_dtype), shuffled(n, num_edges)
    exact = copy.deepcopy(conv).double()
    assert is_fused(conv, x, pos, edge_index)
    assert not is_fused(exact, x.double(), pos.double(), edge_index)
    results = []
    for layer, dtype in ((conv, None), (exact, torch.float64)):
        inputs = [t.to(dtype or t.dtype).requires_grad_() for t in (x, pos)]
        out = layer(*inputs, edge_index)
        grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(0))
        leaves = [*inputs, *layer.parameters()]
        results.append(
            [out.detach(), *torch.autograd.grad(out, leaves, grad.to(out.dtype))]
        )
    for actual, expected in zip(*results, strict=True):
        scale = 4e-6 * max(1.0, float(expected.abs().max()))
        torch.testing.assert_close(actual.double(), expected, rtol=0, atol=scale)


class WithMessage(MPNNConv):
    def message(self, source_j):
        return source_j


class WithPropagate(MPNNConv):
    def propagate(self, edge_index, source, target, pos, edge_attr):
        return source


class Aggregates:
    def aggregate(self, inputs, index, ptr=None, dim_size=None):
        return torch.zeros(dim_size, inputs.size(1))


class WithMixin(Aggregates, MPNNConv):
    pass


class Renamed(MPNNConv):
    pass


class RenamedAgain(Renamed):
    pass


def test_subclass_that_changes_a_step_is_honoured():
    _, args = single()
    for kind in (WithMessage, WithPropagate, WithMixin):
        for _ in range(2):  # PyG replaces `propagate` when it makes the first instance
            assert not is_fused(kind(6), *args), kind
    for kind in (MPNNConv, Renamed, RenamedAgain):
        for _ in range(2):
            assert is_fused(kind(6), *args), kind


@pytest.mark.parametrize("step", ["propagate", "message", "aggregate"])
@pytest.mark.parametrize("kind", ["forward_pre", "forward"])
def test_hooks_are_called(step, kind):
    conv, args = single()
    expected, called = conv(*args), []
    register = getattr(conv, f"register_{step}_{kind}_hook")
    handle = register(lambda *arguments: called.append(1))
    torch.testing.assert_close(conv(*args), expected, rtol=1e-5, atol=1e-6)
    assert called == [1]
    handle.remove()
    assert is_fused(conv, *args)


@pytest.mark.parametrize("name", ["lin_offset", "norm_message"])
def test_hooks_of_parts_are_called(name):
    conv, args = single()
    args[1].requires_grad_()
    expected, called = conv(*args), []
    part = getattr(conv, name)
    for register in (
        part.register_forward_hook,
        part.register_forward_pre_hook,
        part.register_full_backward_hook,
        part.register_full_backward_pre_hook,
    ):
        handle = register(lambda *arguments: called.append(1))
        out = conv(*args)
        torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-6)
        out.sum().backward()
        assert called.pop() == 1
        handle.remove()
    assert is_fused(conv, *args)


def with_bias(conv):
    conv.lin_offset = torch.nn.Linear(3, 6)


def without_affine(conv):
    conv.norm_message = torch.nn.LayerNorm(6, elementwise_affine=False)


def without_bias(conv):
    conv.norm_message = torch.nn.LayerNorm(6, bias=False)


def without_norm(conv):
    conv.norm_message = torch.nn.Identity()


def parametrized(conv):
    torch.nn.utils.parametrizations.weight_norm(conv.lin_offset)


@pytest.mark.parametrize(
    "change", [with_bias, without_affine, without_bias, without_norm, parametrized]
)
def test_changed_parts_are_honoured(change):
    conv, args = single()
    change(conv)
    assert not is_fused(conv, *args)


@pytest.mark.parametrize("aggr", ["sum", "max", "std"])
def test_other_aggregations(aggr):
    conv, args = single(aggr=aggr)
    assert not is_fused(conv, *args)
    assert not torch.allclose(conv(*args), single()[0](*args))


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
def test_other_adjacencies():
    conv, (x, pos, edge_index) = single()
    edge_index = coalesce(edge_index, sort_by_row=False)
    expected = conv(x, pos, edge_index)
    ones = torch.ones(edge_index.size(1))
    for other in (
        EdgeIndex(edge_index, sparse_size=(9, 9), sort_order="col"),
        torch.sparse_coo_tensor(edge_index.flip(0), ones, (9, 9), is_coalesced=True),
        edge_index.int(),
    ):
        assert not is_fused(conv, x, pos, other)
        out = conv(x, pos, other)
        torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)


def test_explainer_gets_its_messages():
    conv, args = single()
    conv.explain = True
    conv._edge_mask = torch.nn.Parameter(torch.zeros(27))
    conv._apply_sigmoid = True
    assert not is_fused(conv, *args)
    conv(*args).sum().backward()
    assert (conv._edge_mask.grad != 0).any()
    conv.explain = False
    assert is_fused(conv, *args)


def test_malformed_input_is_refused():
    conv, (x, pos, edge_index) = single()
    with pytest.raises(ValueError, match=r"'pos' must have shape \[9, 3\]"):
        conv(x, pos[:-1], edge_index)
    for end in ([[0], [1]], [[1], [0]]):
        with pytest.raises(ValueError, match="'edge_index' must name one of 9 nodes"):
            conv(x, pos, edge_index + 9 * torch.tensor(end))


def reason(conv, *args):
    reasons = explain("message", conv, *args)
    assert (reasons["native"] == "") == is_fused(conv, *args)
    assert reasons["triton"]
    assert reasons["propagate"] == ""
    return reasons["native"]


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
def test_why_the_kernel_does_not_serve_a_call_is_said():
    conv, (x, pos, edge_index) = single()
    args = (x, pos, edge_index)
    assert reason(conv, *args) == ""
    assert explain("message", conv, *args)["triton"] == (
        "it runs on CUDA devices (got cpu)"
    )
    other = edge_index.int()
    assert "must be torch.int64 with shape [2, E]" in reason(conv, x, pos, other)
    other = EdgeIndex(edge_index, sparse_size=(9, 9))
    assert reason(conv, x, pos, other).endswith("be a tensor (got 'EdgeIndex')")
    other = torch.eye(9).to_sparse()
    assert "must be dense (got torch.sparse_coo)" in reason(conv, x, pos, other)
    assert reason(WithMessage(6), *args) == "a subclass changes a step of 'propagate'"
    assert reason(single(aggr="sum")[0], *args).startswith("it has aggr='mean' (got ")
    without_norm(conv)
    assert "'norm_message' is not the layer's own" in reason(conv, *args)
    conv, _ = single()
    with_bias(conv)
    assert "'lin_offset' is not the layer's own" in reason(conv, *args)
    conv, _ = single()
    handle = conv.register_message_forward_hook(lambda *arguments: None)
    assert reason(conv, *args) == "a hook is called in 'propagate'"
    handle.remove()
    double = conv.double(), x.double(), pos.double(), edge_index
    assert "(got torch.float64, [9, 6])" in reason(*double)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    conv, (x, pos, edge_index) = single(32, 60)
    expected = conv(x, pos, edge_index)
    tolerance = 8 * torch.finfo(dtype).eps  # for a few rounding errors
    half = copy.deepcopy(conv).to(dtype)
    out = half(x.to(dtype), pos, edge_index)
    assert out.dtype == dtype
    torch.testing.assert_close(out.float(), expected, rtol=0, atol=4 * tolerance)
    assert is_fused(half, x.to(dtype), pos, edge_index)
    with torch.autocast("cpu", dtype):
        out = conv(x, pos, edge_index)
        out.float().square().sum().backward()
        assert is_fused(conv, x, pos, edge_index)
    torch.testing.assert_close(out.float(), expected, rtol=0, atol=4 * tolerance)
    assert all(torch.isfinite(p.grad).all() for p in conv.parameters())


def test_transforms_of_functions():
    conv, (x, pos, edge_index) = single()
    parameters = dict(conv.named_parameters())

    def loss(parameters, x):
        args = (x, pos, edge_index)
        return torch.func.functional_call(conv, parameters, args).square().sum()

    loss(parameters, x).backward()
    grads = torch.func.grad(loss)(parameters, x)
    for name, parameter in parameters.items():
        torch.testing.assert_close(grads[name], parameter.grad, rtol=1e-5, atol=1e-5)
    _, tangent = torch.func.jvp(lambda x: loss(parameters, x), (x,), (x,))
    expected = (torch.func.grad(loss, argnums=1)(parameters, x) * x).sum()
    torch.testing.assert_close(tangent, expected, rtol=1e-5, atol=1e-5)
    several = torch.func.vmap(loss, in_dims=(None, 0))(parameters, torch.stack([x, -x]))
    torch.testing.assert_close(several[0], loss(parameters, x), rtol=1e-5, atol=1e-5)


def test_script():
    conv, args = single()
    scripted = torch.jit.script(conv)
    torch.testing.assert_close(scripted(*args), conv(*args), rtol=1e-5, atol=1e-5)


def test_forces_can_be_fitted():
    conv, (x, pos, edge_index) = single()
    exact = copy.deepcopy(conv).double()
    grads = []
    for layer, dtype in ((conv, torch.float32), (exact, torch.float64)):
        p = pos.to(dtype, copy=True).requires_grad_()
        energy = layer(x.to(dtype), p, edge_index).square().sum()
        (force,) = torch.autograd.grad(-energy, p, create_graph=True)
        force.square().sum().backward()
        grads.append(
            [force.detach(), *(parameter.grad for parameter in layer.parameters())]
        )
    for actual, expected in zip(*grads, strict=True):
        scale = 1e-5 * max(1.0, float(expected.abs().max()))
        torch.testing.assert_close(actual.double(), expected, rtol=0, atol=scale)


def test_layers_of_an_embedding_share_the_sorted_edges():
    embed = MPNNEmbedding(2, 8, num_steps=3)
    data = cloud(9, dtype=torch.float32)
    with Calls() as calls:
        out = embed(data.x, data.pos, data.edge_index)
        out.sum().backward()
    assert calls.names.count("erwin::group") == 2
    assert calls.names.count("erwin::message") == 3
    assert calls.names.count("erwin::message_backward") == 3
    with Calls() as calls, torch.no_grad():
        embed(data.x, data.pos, data.edge_index)
    assert calls.names.count("erwin::group") == 1


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr])
def test_edge_features_of_a_sparse_matrix_are_refused(layout):
    """PyG passes its values on under another name, and only if they are numbers."""
    conv = MPNNConv(8, edge_dim=1)
    matrix = torch.eye(3).to_sparse(layout=layout)
    for edge_attr in (None, torch.rand(3, 1)):
        with pytest.raises(ValueError, match="takes them as 'edge_attr'"):
            conv(torch.rand(3, 8), torch.rand(3, 3), matrix, edge_attr)
