"""Mixers as a user would write them; they use only the public interface."""

import io

import pytest
import torch
from clouds import ragged
from torch.export import Dim
from torch_geometric.nn import GCNConv

from torch_geometric_erwin import ball_tree
from torch_geometric_erwin.nn import Block, Erwin, GraphNorm, SwiGLU, make_mixer

SIZES = [30, 0, 17, 1, 41]


class BallMean(torch.nn.Module):
    """The mean over the rows of a ball, mapped and added to them."""

    def __init__(self, channels, heads, ball_size, dim):
        super().__init__()
        self.lin = torch.nn.Linear(channels, channels)

    def forward(self, x, level):
        balls = level.to_balls(x)  # [K, B, C]
        count = level.ball_mask.sum(1).clamp(min=1)
        mean = balls.sum(1) / count[:, None]
        return level.from_balls(self.lin(mean)[:, None].expand_as(balls))


class RunMean(torch.nn.Module):
    """The mean over runs of four rows; the model requests these runs from the tree."""

    required_runs = (4,)

    def __init__(self, channels, *_):
        super().__init__()
        self.lin = torch.nn.Linear(channels, channels)

    def forward(self, x, level):
        run = torch.searchsorted(
            level.runs[4].cumsum(0), torch.arange(level.num_rows), right=True
        )
        total = x.new_zeros(level.runs[4].size(0), x.size(1)).index_add(0, run, x)
        return self.lin((total / level.runs[4].clamp(min=1)[:, None])[run])


def make(attention, **kwargs):
    torch.manual_seed(0)
    config = {"hidden_channels": [8, 16], "ball_sizes": 8, "mp_steps": 1}
    return Erwin(2, out_channels=3, attention=attention, **{**config, **kwargs})


def batch_for(model, sizes=SIZES, dtype=torch.float32):
    return model.tree_transform()(ragged(sizes, dtype=dtype))


@pytest.mark.parametrize("attention", [BallMean, RunMean, ["ball", BallMean]])
def test_trains_on_ragged_clouds(attention):
    model = make(attention)
    batch = batch_for(model)
    model(batch).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("attention", [BallMean, RunMean])
def test_a_cloud_alone_and_in_a_batch(attention):
    model = make(attention).double().eval()
    batch = batch_for(model, dtype=torch.float64)
    out = model(batch)
    for i, data in enumerate(batch.to_data_list()):
        own = out[batch.ptr[i] : batch.ptr[i + 1]]
        torch.testing.assert_close(model(data), own, rtol=0, atol=1e-12)


def test_means_are_those_of_balls():
    pos = torch.rand(41, 2, dtype=torch.float64)
    tree = ball_tree(pos, ptr=torch.tensor([0, 30, 30, 41]), ball_sizes=[8])
    (level,) = tree.levels(pos)
    mixer = BallMean(3, 1, 8, 2).double()
    x = torch.rand(41, 3, dtype=torch.float64)
    for view, rows in [
        (level, torch.arange(41)),
        (level.rotated(), tree.global_perm_rot(0)),
    ]:
        expected = torch.empty_like(x)
        for ball in rows.split(tree.ball_len[0].tolist()):
            expected[ball] = mixer.lin(x[ball].mean(0))
        torch.testing.assert_close(mixer(x, view), expected, rtol=0, atol=1e-12)


# The backend does not generate code, which would take longest and tests nothing here.
@pytest.mark.parametrize(
    "attention, backend",
    [
        (RunMean, "aot_eager"),
        pytest.param(RunMean, "inductor", marks=pytest.mark.slow),
        pytest.param(BallMean, "inductor", marks=pytest.mark.slow),
    ],
)
def test_compiled(attention, backend):
    model = make(attention)
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=backend)
    for sizes in (SIZES, [9, 2, 0, 55]):
        batch = batch_for(model, sizes)
        torch.testing.assert_close(compiled(batch), model(batch), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "attention", [pytest.param(BallMean, marks=pytest.mark.slow), RunMean]
)
def test_exported(attention):
    from torch_geometric_erwin import Tree

    model, rows = make(attention).eval(), {0: Dim.AUTO}

    def arguments(sizes):
        batch = batch_for(model, sizes)
        tree = Tree.from_data(batch, model.tree_config)
        return (batch.x, batch.pos, batch.edge_index), {"tree": tree}

    args, kwargs = arguments(SIZES)
    tree = kwargs["tree"]
    tables = [
        tuple(rows for _ in part)
        for part in (tree.ball_len, tree.group_len, tree.perm_rot)
    ]
    runs = [tuple(tuple(rows for _ in part) for part in tree.runs)] if tree.runs else []
    shapes = {
        "data": rows,
        "pos": rows,
        "edge_index": {1: Dim.AUTO},
        "tree": [rows, rows, rows, *tables, None, *runs],
    }
    program = torch.export.export(model, args, kwargs, dynamic_shapes=shapes)
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    buffer.seek(0)
    loaded = torch.export.load(buffer).module()
    for sizes in (SIZES, [21, 13, 0, 50, 1]):
        args, kwargs = arguments(sizes)
        torch.testing.assert_close(
            loaded(*args, **kwargs), model(*args, **kwargs), rtol=1e-4, atol=1e-5
        )


def test_runs_are_asked_of_the_tree():
    model = make([BallMean, RunMean])
    assert model.tree_config.runs == ((), (4,))
    with pytest.raises(ValueError, match=r"needed is '.* runs=\|4'"):
        model(make("ball").tree_transform()(ragged(SIZES, dtype=torch.float32)))


@pytest.mark.parametrize(
    ("attention", "error", "message"),
    [
        ("full", ValueError, r"'attention' must be one of \['ball'\] \(got 'full'\)"),
        (3, TypeError, "'attention' must be a name or a callable"),
        (BallMean(8, 1, 8, 3), TypeError, "one for every block"),
        (lambda *_: 3, TypeError, r"'attention' must make a module \(got 'int'\)"),
        (["ball"] * 3, ValueError, "one mixer or 2"),
    ],
)
def test_bad_mixers(attention, error, message):
    with pytest.raises(error, match=message):
        make(attention)


def test_a_conv_beside_the_mixer():
    pos = torch.rand(20, 3, dtype=torch.float64)
    edge_index = torch.randint(20, (2, 60))
    tree = ball_tree(pos, ball_sizes=[8])
    (level,) = tree.levels(pos, edge_index)
    block = Block(
        4, make_mixer("ball", 4, 1, 8, 3), SwiGLU(4, 8), GCNConv(4, 4), norm="graph"
    ).double()
    x = torch.rand(20, 4, dtype=torch.float64)
    # The same in node order, in which the edges are given.
    rows = tree.to_rows(x)
    normed = block.norm_attention(rows)
    messages = tree.to_rows(block.conv(tree.to_nodes(normed), edge_index))
    mixed = rows + block.attention(normed, level) + messages
    expected = mixed + block.mlp(block.norm_mlp(mixed))
    torch.testing.assert_close(block(rows, level), expected, rtol=0, atol=1e-12)
    (bare,) = tree.levels(pos)
    with pytest.raises(ValueError, match="its level has no edges"):
        block(rows, bare)


def test_any_module_in_any_place():
    model = make("ball", norm=None, block_norm=None).eval()
    batch = batch_for(model)
    model.pools[0].norm = torch.nn.Identity()
    block = model.encoder[0].blocks[0]
    block.attention.lin_pos = torch.nn.Sequential(block.attention.lin_pos)
    block.attention.lin_qkv = torch.nn.Sequential(block.attention.lin_qkv)
    block.norm_mlp, block.mlp = torch.nn.Identity(), torch.nn.Identity()
    assert model(batch).isfinite().all()
    block.attention = BallMean(8, 1, 8, 3)
    assert "BallMean" in repr(model.encoder[0])
    model.encoder[0] = torch.nn.Module.__new__(Skip)
    torch.nn.Module.__init__(model.encoder[0])
    assert model(batch).isfinite().all()


class Skip(torch.nn.Module):
    def forward(self, x, level):
        return x


@pytest.mark.parametrize("norm", ["batch", "graph", "layer", "rms", GraphNorm])
def test_norms_by_name(norm):
    model = make("ball", norm=norm, block_norm=norm)
    model(batch_for(model)).square().sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


class Flat(torch.nn.Module):
    def forward(self, x, level):
        return x.mean(0)


def test_a_mixer_that_returns_something_else():
    pos = torch.rand(20, 3)
    (level,) = ball_tree(pos, ball_sizes=[8]).levels(pos)
    block = Block(4, Flat(), SwiGLU(4, 8))
    with pytest.raises(ValueError, match=r"'attention\(x\)' must have shape \[20, 4\]"):
        block(torch.rand(20, 4), level)
    for arguments in (("ball", SwiGLU(4, 8)), (Flat(), None)):
        with pytest.raises(TypeError, match="must be a module"):
            Block(4, *arguments)
    with pytest.raises(ValueError, match="'drop_path' must be at least 0"):
        Block(4, Flat(), SwiGLU(4, 8), drop_path=2)


class Named(torch.nn.Module):
    """A mixer with random numbers, and with a parameter of an awkward name."""

    def __init__(self, channels, *_):
        super().__init__()
        self.p = torch.nn.Parameter(torch.ones(channels))

    def forward(self, x, level):
        return self.p * x * torch.rand_like(x)


def test_recomputed_mixers_draw_the_same_numbers():
    gradients = []
    for checkpoint in (False, True):
        model = make(Named, checkpoint=checkpoint)
        batch = batch_for(model)
        torch.manual_seed(1)
        model(batch).square().sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)
    with pytest.raises(ValueError, match="'checkpoint' computes blocks twice"):
        make("ball", block_norm="batch", checkpoint=True)


def test_a_tree_of_ones_own_has_runs():
    pos = torch.rand(20, 3)
    (level,) = ball_tree(pos, ball_sizes=[8], runs=[[4]]).levels(pos)
    assert RunMean(4)(torch.rand(20, 4), level).shape == (20, 4)
