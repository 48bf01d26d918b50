"""Every public function accepts tensors of any layout and gives the same bits."""

import copy
import inspect
from functools import partial
from inspect import ismodule

import pytest
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.utils import _pytree as pytree
from torch_geometric.data import Batch, Data

import torch_geometric_erwin as package
from torch_geometric_erwin import (
    CapturedStep,
    Level,
    Tree,
    TreeConfig,
    ball_tree,
    batch_to_ptr,
    datasets,
    knn,
    knn_graph,
    knn_interpolate,
    masked_mean,
    nn,
    pad_batch,
    radius,
    radius_graph,
    transforms,
    visualization,
)
from torch_geometric_erwin.tree.builder import build_tree
from torch_geometric_erwin.utils import checks, rows

# Batches in training with gradients of positions: clouds depend on each other, as told.
pytestmark = pytest.mark.filterwarnings(
    "ignore:in training, a norm over the batch:UserWarning"
)

SIZES = [40, 1, 23]
N, E, C, H, BALL = sum(SIZES), 150, 8, 2, 8
CONTIGUOUS = torch.contiguous_format


def other(t: Tensor) -> Tensor:
    return -t - 1 if t.is_floating_point() else ~t


def column_major(t: Tensor) -> Tensor:
    return t.movedim(-1, 0).contiguous().movedim(0, -1)


def every_second_row(t: Tensor) -> Tensor:
    return torch.stack([t, other(t)], dim=1).flatten(0, 1)[::2]


def every_second_entry(t: Tensor) -> Tensor:
    return torch.stack([t, other(t)], dim=-1)[..., 0]


def leading_columns(t: Tensor) -> Tensor:
    return torch.cat([t, other(t)], dim=-1)[..., : t.size(-1)]


def at_an_odd_address(t: Tensor) -> Tensor:
    return torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape)


def negated_in_memory(t: Tensor) -> Tensor:
    return torch._neg_view(-t)


VIEWS = {
    f.__name__: f
    for f in (
        *(column_major, every_second_row, every_second_entry, leading_columns),
        *(at_an_odd_address, negated_in_memory),
    )
}


def inputs(dtype):
    """Tensors by name, all of them contiguous."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    pos = normal(N, 3)
    ptr = torch.tensor([0, *SIZES]).cumsum(0)
    tree = ball_tree(pos, ptr=ptr, ball_sizes=BALL, strides=[2])
    return {
        "x": normal(N, C),
        "pos": pos,
        "y": normal(N, 3),
        "q": normal(N, H, C),
        "k": normal(N, H, C),
        "v": normal(N, H, C),
        "sigma": normal(H),
        "coarse": normal(tree.num_rows(1), C),
        "edge_index": torch.randint(N, (2, E), generator=generator),
        "ptr": ptr,
        "batch": torch.arange(3).repeat_interleave(torch.tensor(SIZES)),
        "ball_len": tree.ball_len[0],
        "perm": tree.global_perm_rot(0),
        "mask": pos[:, 0] > 0,
    }


def tree_of(pos, ptr):
    return ball_tree(pos, ptr=ptr, ball_sizes=BALL, strides=[2])


def tree_values(pos, ptr):
    tree = tree_of(pos, ptr)
    padded = tree.pad(N + 5, 5)
    moved = padded.update(torch.cat([pos, pos[:5]]).flip(-1))
    return [
        *(tree, padded, moved, tree.update(-pos), tree.global_perm()),
        *(tree.order(), tree.global_perm_rot(1), tree.batch(1), tree.ptr(1)),
        *(padded.real_rows(1), visualization.ball_of_row(tree, 0)),
        *(tree.to_rows(pos), tree.to_nodes(pos), tree.levels(pos)),
    ]


def level_values(x, pos, ptr, ball_len, perm):
    options = {"ball_size": BALL, "ptr": ptr, "perm_rot": perm}
    level = Level.build(pos, ball_len, **options)
    turned = level.rotated()
    balls = turned.to_balls(x)
    return level, level.batch, level.to_balls(x), balls, turned.from_balls(balls)


class OnLevel(torch.nn.Module):
    """A layer of rows and their level, as a module of tensors."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x, pos, ball_len, ptr=None, perm=None, edge_index=None):
        options = {"ptr": ptr, "perm_rot": perm, "edge_index": edge_index}
        level = Level.build(pos, ball_len, ball_size=BALL, **options)
        return self.layer(x, level), self.layer(x, level.rotated())


class Weighted(torch.nn.Module):
    """The output of a layer and its weights."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x, level):
        (weights,) = nn.attention_weights(self.layer, x, level)
        return self.layer(x, level), weights.edge_index, weights.alpha


class OnTree(torch.nn.Module):
    """A pooling layer on the rows of its tree, as a module of tensors."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x, pos, ptr, skip=None):
        levels = tree_of(pos.detach(), ptr).levels(pos)
        if skip is None:
            return self.layer(x, levels[1])
        return self.layer(x, skip, *levels)


def data_of(x=None, pos=None, edge_index=None, ptr=None):
    batch = Batch.from_data_list([Data(pos=torch.zeros(n, 3)) for n in SIZES])
    values = {"x": x, "pos": pos, "edge_index": edge_index, "ptr": ptr}
    batch.stores[0].update({k: v for k, v in values.items() if v is not None})
    return batch


def transformed(make, pos, ptr):
    return make()(data_of(pos=pos, ptr=ptr)).to_dict()


def padded(x, pos, edge_index, ptr):
    batch = transforms.BallTree(BALL, [2])(data_of(x, pos, edge_index, ptr))
    batch = pad_batch(batch, N + 7, 5, num_edges=E + 9)
    return batch.to_dict(), Tree.from_data(batch).global_perm()


def captured(x, pos):
    step = CapturedStep(lambda batch: batch.x.sum(0) + batch.pos.sum())
    return step(data_of(x=x, pos=pos))


def averaged(x, mask):
    return masked_mean(x, mask)


def plotted(pos):
    pytest.importorskip("matplotlib").use("Agg")
    tree, axes = ball_tree(pos, ball_sizes=BALL), Figure().subplots()
    visualization.plot_ball_tree(pos, tree, ax=axes)
    return [torch.tensor(c.get_offsets().data) for c in axes.collections]


def fitted(pos, y):
    clouds = [Data(pos=pos, y=y)]
    return torch.tensor(datasets.fit_linear_velocity(clouds, [0.5], mesh_size=8))


def erwin():
    return nn.Erwin(C, [C, C], 3, ball_sizes=BALL, strides=[2], mp_steps=1)


def forces():
    options = {"ball_sizes": BALL, "strides": [2]}
    return nn.Erwin(C, [C, C], 3, mp_steps=1, **options)


# Keys begin with the public name. The arguments are those of `inputs`.
class Moved(torch.nn.Module):
    """A rollout, called with tensors."""

    def __init__(self, rollout):
        super().__init__()
        self.rollout = rollout

    def forward(self, x, pos, edge_index, ptr):
        data = data_of(None, pos, edge_index, ptr)
        data.states = x[:, None]
        return self.rollout.rollout(data, steps=2)


FUNCTIONS = {
    "Tree": tree_values,
    "ball_tree": lambda pos, ptr: ball_tree(
        pos, ptr=ptr, ball_sizes=BALL, ties="coordinates", validate=True
    ),
    "ball_tree of the original": lambda pos, ptr: ball_tree(
        pos, ptr=ptr, ball_sizes=BALL, layout="perfect"
    ).update(-pos),
    "Level": level_values,
    "batch_to_ptr": lambda batch: batch_to_ptr(batch),
    "knn_graph": lambda pos, ptr: knn_graph(pos, 4, ptr=ptr, loop=True),
    "knn_graph with a tree": lambda pos, ptr: knn_graph(
        pos, 4, ptr=ptr, tree=tree_of(pos, ptr)
    ),
    "knn": lambda pos, ptr: knn(pos, -pos, 4, ptr_x=ptr, ptr_y=ptr),
    "radius": lambda pos, ptr: radius(-pos, pos, 1.0, ptr_x=ptr, ptr_y=ptr),
    "knn_interpolate": lambda x, pos, ptr: knn_interpolate(
        x, pos, -pos, ptr_x=ptr, ptr_y=ptr
    ),
    "radius_graph": lambda pos, ptr: radius_graph(pos, 1.0, ptr=ptr),
    "radius_graph with a cap": lambda pos, ptr: radius_graph(
        pos, 1.0, ptr=ptr, max_num_neighbors=4
    ),
    "masked_mean": averaged,
    "pad_batch": padded,
    "CapturedStep": captured,
    "BallTree": partial(transformed, lambda: transforms.BallTree(BALL, [2])),
    "TreeKNNGraph": partial(transformed, lambda: transforms.TreeKNNGraph(3)),
    "TreeRadiusGraph": partial(transformed, lambda: transforms.TreeRadiusGraph(0.5)),
    "linear_velocity": lambda pos: datasets.linear_velocity(pos, 0.5, mesh_size=8),
    "fit_linear_velocity": fitted,
    "plot_ball_tree": plotted,
    "ball_attention": lambda q, k, v, pos, ball_len, sigma, perm: nn.ball_attention(
        q, k, v, pos, ball_len, sigma, ball_size=BALL, perm=perm
    ),
    "ball_attention and forces": lambda q, k, v, pos, ball_len, sigma: (
        nn.ball_attention(*(q, k, v, pos, ball_len, sigma), ball_size=BALL)
    ),
    "explain_backends": lambda q, pos: [*nn.explain_backends(q, pos, True)],
    "choose_backend": lambda q, pos: [nn.choose_backend(q, pos, True, None)],
    "to_dense": lambda x, ball_len: rows.to_dense(x, ball_len, BALL),
    "put_rows": lambda x, perm: rows.put_rows(x, perm, N),
    "take_rows": lambda x, perm: rows.take_rows(x, perm),
    "row_mask": lambda ball_len: rows.row_mask(ball_len, BALL),
    "slots_of": lambda ball_len: rows.slots_of(ball_len, N, BALL),
    "check_pos": lambda pos: checks.check_pos(pos),
}
# For every module its arguments, and the name of the input if that is different.
MODULES = {
    "BallAttention": (
        lambda: OnLevel(nn.BallAttention(C, H, BALL)),
        "x pos ball_len perm",
    ),
    "BallAttention and forces": (
        lambda: OnLevel(nn.BallAttention(C, H, BALL)),
        "x pos ball_len",
    ),
    "attention_weights": (
        lambda: OnLevel(Weighted(nn.BallAttention(C, H, BALL))),
        "x pos ball_len perm",
    ),
    "make_mixer": (
        lambda: OnLevel(nn.make_mixer("ball", C, H, BALL, 3)),
        "x pos ball_len perm",
    ),
    "ErwinBlock": (
        lambda: OnLevel(nn.ErwinBlock(C, H, BALL)),
        "x pos ball_len perm",
    ),
    "Block": (
        lambda: OnLevel(
            nn.Block(
                *(C, nn.BallAttention(C, H, BALL), nn.SwiGLU(C, 2 * C)),
                conv=nn.MPNNConv(C),
                norm="graph",
            )
        ),
        "x pos ball_len ptr perm edge_index",
    ),
    "ErwinStage": (
        lambda: OnLevel(nn.ErwinStage(nn.ErwinBlock(C, H, BALL) for _ in range(2))),
        "x pos ball_len perm",
    ),
    "DropPath": (lambda: OnLevel(nn.DropPath(0.0)), "x pos ball_len ptr"),
    "BallPooling": (lambda: OnTree(nn.BallPooling(C, C, 2)), "x pos ptr"),
    "BallUnpooling": (
        lambda: OnTree(nn.BallUnpooling(C, C, 2)),
        "x=coarse skip=x pos ptr",
    ),
    "BatchNorm": (lambda: nn.BatchNorm(C), "input=x mask"),
    "GraphNorm": (lambda: nn.GraphNorm(C), "x ptr"),
    "MPNNConv": (lambda: nn.MPNNConv(C), "x pos edge_index"),
    "HybridConv": (
        lambda: nn.HybridConv(C, nn.MPNNConv(C), "ball", H, BALL, rotated=True),
        "x pos edge_index ptr",
    ),
    "LinearEncoding": (lambda: nn.LinearEncoding(3, C), "pos"),
    "FourierEncoding": (lambda: nn.FourierEncoding(3, C), "pos"),
    "Rollout": (lambda: Moved(nn.Rollout(nn.MPNNConv(C))), "x pos edge_index ptr"),
    "MPNNEmbedding": (lambda: nn.MPNNEmbedding(C, C, 1), "x pos edge_index"),
    "explainable": (
        lambda: nn.explainable(nn.MPNN(C, C, 3, num_layers=1)),
        "x edge_index pos",
    ),
    "MPNN": (lambda: nn.MPNN(C, C, 3, num_layers=1), "x pos edge_index"),
    "SwiGLU": (lambda: nn.SwiGLU(C, 2 * C), "x"),
    "Erwin": (erwin, "x pos edge_index ptr"),
    "Erwin and forces": (forces, "x pos edge_index ptr"),
}


@pytest.fixture(autouse=True)
def every_warning():
    """Makes PyTorch repeat warnings that it otherwise gives once per process."""
    torch.set_warn_always(True)
    yield
    torch.set_warn_always(False)


@pytest.fixture(autouse=True)
def one_thread():
    """Uses one thread: nothing here is large enough for more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def nest(value):
    """The tensors and constants of a result, in one list."""
    return pytree.tree_leaves(value)


def largest(value):
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return 0
    return float(value.detach().abs().max()) if value.numel() > 0 else 0


def assert_same(actual, expected, exact=True):
    floats = [
        t for t in nest(expected) if isinstance(t, Tensor) and t.is_floating_point()
    ]
    scale = max((float(t.detach().abs().max()) for t in floats if t.numel()), default=0)
    for a, b in zip(nest(actual), nest(expected), strict=True):
        if not isinstance(b, Tensor):
            assert a == b
        elif exact or not b.is_floating_point():
            torch.testing.assert_close(a, b, rtol=0, atol=0)
        else:
            atol = 100 * torch.finfo(b.dtype).eps * scale
            torch.testing.assert_close(a, b, rtol=0, atol=atol)


def check(call, tensors, exact):
    """Compares results for one argument at a time in another layout."""
    expected = call(**tensors)
    for name, tensor in tensors.items():
        for view in VIEWS.values():
            if tensor.dtype == torch.bool and view is negated_in_memory:
                continue
            assert torch.equal(view(tensor), tensor)
            assert_same(call(**{**tensors, name: view(tensor)}), expected, exact)
        if tensor.is_floating_point():
            row = tensor[:1].expand_as(tensor)
            copied = call(**{**tensors, name: row.clone(memory_format=CONTIGUOUS)})
            assert_same(call(**{**tensors, name: row}), copied, exact)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(name, dtype):
    call, tensors = FUNCTIONS[name], inputs(dtype)
    tensors = {name: tensors[name] for name in inspect.signature(call).parameters}
    # PyTorch's sum over all rows depends on the layout.
    check(call, tensors, exact=call not in (captured, averaged))


def run(module, args, layout):
    """The outputs of a module, and the gradients of inputs and weights."""
    leaves = {
        name: t.detach().requires_grad_(t.is_floating_point())
        for name, t in args.items()
    }
    module = copy.deepcopy(module)
    outputs = [t for t in nest(module(**leaves)) if t.requires_grad]
    wanted = [t for t in leaves.values() if t.requires_grad] + [*module.parameters()]
    grads = [layout(torch.linspace(-1, 1, t.numel()).view_as(t).to(t)) for t in outputs]
    return outputs, torch.autograd.grad(outputs, wanted, grads, allow_unused=True)


def module_of(name, dtype):
    torch.manual_seed(0)
    make, arguments = MODULES[name]
    pairs = [argument.partition("=") for argument in arguments.split()]
    tensors = inputs(dtype)
    return make().to(dtype), {a: tensors[b or a] for a, _, b in pairs}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", MODULES)
def test_inputs_of_modules(name, dtype):
    module, tensors = module_of(name, dtype)
    check(lambda **args: run(module, args, torch.clone), tensors, exact=False)


@pytest.mark.parametrize("name", MODULES)
def test_weights_of_modules(name):
    module, tensors = module_of(name, torch.float32)
    expected = run(module, tensors, torch.clone)
    for view in VIEWS.values():
        other = copy.deepcopy(module)
        for parameter in other.parameters():
            parameter.data = view(parameter.data)
        assert_same(run(other, tensors, torch.clone), expected, exact=False)


@pytest.mark.parametrize("name", MODULES)
def test_gradients_of_outputs_of_modules(name):
    module, tensors = module_of(name, torch.float32)
    expected = run(module, tensors, torch.clone)
    for view in VIEWS.values():
        assert_same(run(module, tensors, view), expected, exact=False)

    def expanded(t):  # as the gradient of a sum arrives
        return t.new_ones(()).expand_as(t)

    expected = run(module, tensors, torch.ones_like)
    assert_same(run(module, tensors, expanded), expected, exact=False)


@pytest.mark.parametrize("view", VIEWS.values(), ids=[*VIEWS])
def test_tables_of_trees(view):
    tensors = inputs(torch.float32)
    x, pos, ptr = (tensors[name] for name in ("x", "pos", "ptr"))
    model = nn.Erwin(C, [C, C], 3, ball_sizes=BALL, strides=[2], mp_steps=0).eval()

    def uses(tree):
        return [
            *(tree.update(-pos), tree.pad(N + 5, 5), tree.order(), tree.ptr(1)),
            *(tree.global_perm(), tree.global_perm_rot(1), tree.batch(1)),
            *(tree.to_rows(x), tree.to_nodes(x), tree.levels(pos)),
            knn_graph(pos, 3, ptr=ptr, tree=tree),
            radius_graph(pos, 1.0, ptr=ptr, tree=tree),
            knn_graph(pos, 3, tree=tree),
            radius_graph(pos, 1.0, tree=tree),
            model(x, pos, ptr=ptr, tree=tree),
            model(x, pos, tree=tree),
            visualization.ball_of_row(tree, 1),
        ]

    config = TreeConfig(BALL, [2], runs=[[2, 32], [4]])
    tree = build_tree(pos, ptr, config)
    model.tree_config = config
    assert_same(uses(pytree.tree_map_only(Tensor, view, tree)), uses(tree))


@pytest.mark.parametrize("view", VIEWS.values(), ids=[*VIEWS])
def test_tables_of_data(view):
    transform = transforms.BallTree(BALL, [2], runs=[[2, 32], [4]])
    tensors = inputs(torch.float32)
    batch = transform(data_of(pos=tensors["pos"]))
    odd = copy.copy(batch).apply(view)
    for use in (Tree.from_data, lambda b: Tree.from_data(b, transform.config)):
        assert_same(use(odd), use(batch))
    assert_same(
        pad_batch(odd, N + 7, 5).to_dict(), pad_batch(batch, N + 7, 5).to_dict()
    )


def test_no_public_name_is_left_out():
    packages = (package, nn, transforms, datasets, visualization)
    public = {n for p in packages for n in p.__all__ if not ismodule(getattr(p, n))}
    elsewhere = {"ball_of_row", "to_original"}
    without_tensors = {"AttentionWeights", "TreeConfig", "CosmologyLPT"}
    keys = {key.partition(" ")[0] for key in (*FUNCTIONS, *MODULES)}
    assert public - elsewhere - without_tensors <= keys
