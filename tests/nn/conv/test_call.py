"""Layers are called with the arguments that they take, by name."""

from copy import deepcopy

import pytest
import torch
from compiled import no_recompilation
from torch.nn import Linear, Module
from torch_geometric.nn import (
    CGConv,
    ChebConv,
    EdgeConv,
    GATConv,
    GATv2Conv,
    GCN2Conv,
    GCNConv,
    GINEConv,
    GMMConv,
    GPSConv,
    MessagePassing,
    PNAConv,
    PointNetConv,
    PointTransformerConv,
    PPFConv,
    RGCNConv,
    SAGEConv,
    Sequential,
    TransformerConv,
)
from torch_geometric.nn.models.schnet import InteractionBlock

from torch_geometric_erwin.nn.conv.call import (
    call_conv,
    takes_argument,
    takes_edge_attr,
)

N, C, E = 12, 4, 40


class Differences(MessagePassing):
    """A user's layer, whose features are not called 'x'."""

    def forward(self, h, pos, edge_index, weight):
        return self.propagate(edge_index, h=h, pos=pos, weight=weight[:, None])

    def message(self, h_j, pos_i, pos_j, weight):
        return weight * h_j * (pos_i - pos_j).norm(dim=1, keepdim=True)


class Geometry(Module):
    """A user's plain module, whose first argument is not the features."""

    def forward(self, pos, edge_index, /, *, x):
        return x + (pos[edge_index[0]] - pos[edge_index[1]]).sum()


class Open(Module):
    """A wrapper that passes on whatever it gets."""

    def __init__(self, conv):
        super().__init__()
        self.conv = conv

    def forward(self, *args, **kwargs):
        return self.conv(*args, **kwargs)


class HalfOpen(Open):
    def forward(self, x, edge_index, **kwargs):
        return self.conv(x, edge_index, **kwargs)


class Transposed(Module):
    def forward(self, x, adj_t):
        return x[adj_t[0]].sum(0) + x


@pytest.fixture
def values():
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    pos = random(N, 3).float()  # layers get it in the dtype of the features
    edge_index = torch.randint(N, (2, E), generator=generator)
    return {
        "x": random(N, C),
        "pos": pos,
        "edge_index": edge_index,
        "edge_attr": random(E, 3),
        "edge_weight": random(E),
        "edge_type": torch.randint(2, (E,), generator=generator),
        "normal": random(N, 3),
        "x_0": random(N, C),
        "batch": torch.zeros(N, dtype=torch.int64),
    }


def gine():
    return GINEConv(Linear(C, C), edge_dim=3)


# A layer, how PyG's users call it, and what they give beside x, pos and edge_index.
LAYERS = {
    "gcn": (lambda: GCNConv(C, C), "x, edge_index", ""),
    "gcn weights": (
        lambda: GCNConv(C, C),
        "x, edge_index, edge_weight",
        "edge_weight",
    ),
    "sage": (lambda: SAGEConv(C, C), "x, edge_index", ""),
    "edge": (lambda: EdgeConv(Linear(2 * C, C)), "x, edge_index", ""),
    "point net": (lambda: PointNetConv(Linear(C + 3, C)), "x, pos, edge_index", ""),
    "point": (lambda: PointTransformerConv(C, C), "x, pos, edge_index", ""),
    "ppf": (
        lambda: PPFConv(Linear(C + 4, C)),
        "x, pos, normal, edge_index",
        "normal",
    ),
    "gat": (
        lambda: GATv2Conv(C, C, edge_dim=3),
        "x, edge_index, edge_attr",
        "edge_attr",
    ),
    "gine": (gine, "x, edge_index, edge_attr", "edge_attr"),
    "cg": (lambda: CGConv(C, dim=3), "x, edge_index, edge_attr", "edge_attr"),
    "gmm": (
        lambda: GMMConv(C, C, dim=3, kernel_size=2),
        "x, edge_index, edge_attr",
        "edge_attr",
    ),
    "transformer": (
        lambda: TransformerConv(C, C, edge_dim=3),
        "x, edge_index, edge_attr",
        "edge_attr",
    ),
    "schnet": (
        lambda: InteractionBlock(C, 3, C, 1.0),
        "x, edge_index, edge_weight, edge_attr",
        "edge_weight edge_attr",
    ),
    "rgcn": (lambda: RGCNConv(C, C, 2), "x, edge_index, edge_type", "edge_type"),
    "gcn2": (lambda: GCN2Conv(C, 0.1), "x, x_0, edge_index", "x_0"),
    "cheb": (lambda: ChebConv(C, C, 2), "x, edge_index, None, batch", "batch"),
    "gps": (lambda: GPSConv(C, gine()), "x, edge_index, batch, edge_attr=edge_attr",
            "batch edge_attr"),
    "user": (lambda: Differences(), "x, pos, edge_index, edge_weight", "weight"),
    "geometry": (lambda: Geometry(), "pos, edge_index, x=x", ""),
    "open": (lambda: Open(GCNConv(C, C)), "x, edge_index", ""),
    "open, edges": (lambda: Open(gine()), "x, edge_index, edge_attr", "edge_attr"),
    "half open": (lambda: HalfOpen(gine()), "x, edge_index, edge_attr=edge_attr",
                  "edge_attr"),
    "transposed": (lambda: Transposed(), "x, edge_index", ""),
    "linear": (lambda: Linear(C, C), "x", ""),
    "sequential": (
        lambda: Sequential(
            "x, pos, edge_index",
            [
                (GCNConv(C, C), "x, edge_index -> x"),
                (PointNetConv(Linear(C + 3, C)), "x, pos, edge_index -> x"),
            ],
        ),
        "x, pos, edge_index",
        "",
    ),
}  # fmt: skip


def case(name, values):
    make, call, given = LAYERS[name]
    torch.manual_seed(0)
    conv = make().double().eval()
    named = dict(values, pos=values["pos"].double(), conv=conv)
    expected = eval(f"conv({call})", named)
    more = {n: values[n] for n in given.split() if n != "weight"}
    if "weight" in given.split():
        more["weight"] = values["edge_weight"]
    return conv, expected, more


@pytest.mark.parametrize("name", LAYERS)
def test_called_as_a_user_would(name, values):
    conv, expected, more = case(name, values)
    geometry = values["pos"], values["edge_index"]
    out = call_conv(conv, values["x"], *geometry, **more)
    assert torch.equal(out, expected)


# The backend does not generate code, which would take longest and tests nothing here.
@pytest.mark.parametrize("name", ["user", "sequential"])
def test_compiled(name, values):
    conv, expected, more = case(name, values)
    torch.compiler.reset()

    @torch.compile(fullgraph=True, dynamic=True, backend="eager")
    def run(x, pos, edge_index, more):
        return call_conv(conv, x, pos, edge_index, **more)

    for step in range(2):
        with no_recompilation(step):
            out = run(values["x"], values["pos"], values["edge_index"], more)
        torch.testing.assert_close(out, expected)


def test_a_compiled_layer(values):
    conv, expected, _ = case("point net", values)
    compiled = torch.compile(conv, backend="aot_eager")
    geometry = values["pos"], values["edge_index"]
    torch.testing.assert_close(call_conv(compiled, values["x"], *geometry), expected)


def test_another_forward_of_one_class(values):
    # PyG's 'Sequential' has a forward pass for every instance.
    geometry = values["pos"], values["edge_index"]
    expected = {}
    for name in ("x, edge_index", "x, pos, edge_index", "x, edge_index"):
        torch.manual_seed(0)
        layer = Sequential(name, [(GCNConv(C, C), "x, edge_index -> x")]).double()
        out = call_conv(deepcopy(layer), values["x"], *geometry)
        assert torch.equal(out, expected.setdefault("out", out))
        assert takes_argument(layer, "pos") == ("pos" in name)


@pytest.mark.parametrize(
    ("make", "given", "message"),
    [
        (lambda: GCNConv(C, C), "edge_attr", "'GCNConv' takes no 'edge_attr'"),
        (lambda: GCNConv(C, C), "edge_attr", r"it takes x, edge_index, edge_weight"),
        (lambda: Linear(C, C), "edge_weight", "'Linear' takes no 'edge_weight'"),
        (
            lambda: InteractionBlock(C, 3, C, 1.0),
            "edge_attr",
            "'InteractionBlock' needs 'edge_weight', which was not given",
        ),
        (lambda: PointNetConv(), "normal", "'PointNetConv' takes no 'normal'"),
        (lambda: Differences(), "", "'Differences' needs 'weight'"),
        (lambda: RGCNConv(C, C, 2), "edge_attr", "'RGCNConv' takes no 'edge_attr'"),
    ],
)
def test_a_missing_or_unknown_argument_is_named(make, given, message, values):
    more = {name: values[name] for name in given.split()}
    with pytest.raises(TypeError, match=message):
        call_conv(make(), values["x"], values["pos"], values["edge_index"], **more)


def test_what_is_missing_is_named(values):
    x, pos, edge_index = (values[n] for n in ("x", "pos", "edge_index"))
    with pytest.raises(TypeError, match="'GCNConv' needs 'edge_index'"):
        call_conv(GCNConv(C, C), x, pos)
    with pytest.raises(TypeError, match="'PointNetConv' needs 'pos'"):
        call_conv(PointNetConv(), x, edge_index=edge_index)
    with pytest.raises(TypeError, match=r"'conv' must be a module \(got None\)"):
        call_conv(None, x, pos, edge_index)


def test_none_is_not_given(values):
    args = values["x"], values["pos"], values["edge_index"], None
    assert call_conv(GCNConv(C, C).double(), *args, edge_weight=None).shape == (N, C)


def test_hooks_see_the_features(values):
    conv, seen = GCNConv(C, C).double(), []
    conv.register_forward_pre_hook(lambda _, args: seen.extend(args))
    call_conv(conv, values["x"], values["pos"], values["edge_index"])
    assert seen[0] is values["x"]


@pytest.mark.parametrize("layer", [GATConv, GATv2Conv, TransformerConv, PNAConv])
def test_a_layer_without_edge_dim_takes_no_features_of_edges(layer, values):
    more = ["mean"], ["identity"], torch.ones(5)
    make = lambda d: layer(C, C, *(more if layer is PNAConv else ()), edge_dim=d)  # noqa: E731
    x, edge_index = values["x"].float(), values["edge_index"]
    attr = torch.rand(edge_index.size(1), 2)
    assert [takes_edge_attr(make(d)) for d in (None, 2)] == [False, True]
    with pytest.raises(TypeError, match=r"without 'edge_dim', .* with 'edge_dim=2'"):
        call_conv(make(None), x, None, edge_index, attr)
    with pytest.raises(TypeError, match=r"without 'edge_dim', .* with 'edge_dim=1'"):
        call_conv(make(None), x, None, edge_index, attr[:, 0])
    assert call_conv(make(None), x, None, edge_index).shape == x.shape
    assert call_conv(make(2), x, None, edge_index, attr).shape == x.shape


@pytest.mark.parametrize("kind", [AssertionError, AttributeError, RuntimeError])
def test_errors_of_a_layer_say_what_it_was_called_with(kind, values):
    class Fails(torch.nn.Module):
        def forward(self, x, edge_index, edge_weight=None, *, edge_attr=None):
            raise kind(*reasons)

    x, edge_index = values["x"].float(), values["edge_index"]
    called = rf"'Fails' fails .* x=float32\[{N}, {C}\], edge_index=int64\[2, \d+\], "
    reasons = []
    for given, message, reason in (
        ({}, "without 'edge_weight', 'edge_attr'$", ()),
        ({"edge_attr": x}, "edge_attr=.*, without 'edge_weight': so$", ("so",)),
    ):
        reasons[:] = reason
        with pytest.raises(kind, match=called + message) as caught:
            call_conv(Fails(), x, None, edge_index, **given)
        assert type(caught.value.__cause__) is kind

    class Full(RuntimeError):  # as `torch.OutOfMemoryError`
        def __init__(self, size):
            super().__init__("full")

    kind, reasons = Full, [3]
    with pytest.raises(Full, match="full"):
        call_conv(Fails(), x, None, edge_index)
    edges = values["edge_index"]
    with pytest.raises(TypeError, match=r"'GINEConv' fails .*without 'edge_attr'"):
        call_conv(GINEConv(Linear(C, C), edge_dim=1), x, None, edges)
