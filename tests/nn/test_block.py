import pytest
import torch
from clouds import randomised
from oracles import erwin as plain
from torch_geometric.nn import GATv2Conv, GCNConv

from torch_geometric_erwin import Level
from torch_geometric_erwin.nn import (
    BallAttention,
    Block,
    ErwinBlock,
    ErwinStage,
    MPNNConv,
    SwiGLU,
)

B, BALLS = 4, [4, 1, 3]
PERM = torch.tensor([3, 7, 0, 5, 1, 2, 6, 4])


def inputs(channels=6, dim=3):
    generator = torch.Generator().manual_seed(0)
    n = sum(BALLS)
    x = torch.randn(n, channels, generator=generator, dtype=torch.float64)
    pos = torch.randn(n, dim, generator=generator, dtype=torch.float64)
    return x, pos


def level_of(pos, perm=None):
    """A level, with a second tree if its order is given."""
    return Level.build(pos, torch.tensor(BALLS), ball_size=B, perm_rot=perm)


def stage_of(depth):
    return randomised(ErwinStage(ErwinBlock(6, 2, B) for _ in range(depth)))


def expected(block, x, pos, order, heads=2):
    rows = plain.runs(BALLS, order.tolist())
    out = plain.block(block.state_dict(), list(x), list(pos), rows, heads)
    return torch.stack(out)


@pytest.mark.parametrize("dim", [1, 2, 3])
@pytest.mark.parametrize("mlp_ratio", [1, 4])
@pytest.mark.parametrize("rotated", [False, True])
def test_equals_oracle(dim, mlp_ratio, rotated):
    block = randomised(ErwinBlock(6, 2, B, mlp_ratio, dim))
    x, pos = inputs(dim=dim)
    level = level_of(pos, PERM)
    out = block(x, level.rotated() if rotated else level)
    order = PERM if rotated else torch.arange(len(x))
    wanted = expected(block, x, pos, order)
    torch.testing.assert_close(out, wanted, rtol=1e-12, atol=1e-12)


def test_no_rows():
    block = ErwinBlock(6, heads=2, ball_size=B)
    x = torch.rand(0, 6, requires_grad=True)
    none = torch.empty(0, dtype=torch.int64)
    out = block(x, Level.build(torch.rand(0, 3), none, ball_size=B))
    assert out.shape == (0, 6)
    out.sum().backward()


def test_every_parameter_gets_a_gradient():
    block = randomised(ErwinBlock(6, heads=2, ball_size=B))
    x, pos = inputs()
    out = block(x, level_of(pos))
    (out * torch.randn_like(out)).sum().backward()
    for name, parameter in block.named_parameters():
        # In the bias of (q, k, v), the part of k has no effect on a softmax.
        grad = (
            parameter.grad[:6] if name == "attention.lin_qkv.bias" else parameter.grad
        )
        assert (grad.abs() > 1e-9).all(), name


def test_arguments_reach_attention():
    block = ErwinBlock(6, 2, B, backend="reference")
    assert block.attention.backend == "reference"
    x, pos = (t.float() for t in inputs())
    block(x, level_of(pos.requires_grad_())).square().sum().backward()
    assert pos.grad.abs().max() > 0


def test_reset_parameters():
    block = randomised(ErwinBlock(64, heads=2, ball_size=B))
    torch.manual_seed(0)  # 192 numbers give a standard deviation to 5 %
    block.reset_parameters()
    for name, parameter in block.named_parameters():
        if name.startswith("norm"):
            assert (parameter == 1).all(), name
        elif name.endswith("bias"):
            assert (parameter == 0).all(), name
        elif name.endswith("weight"):
            assert 0.8 < parameter.std() * parameter.size(1) ** 0.5 < 0.96, name
        else:
            assert (parameter + 1).abs().max() < 0.06, name  # -1 + 0.01 N(0, 1)


def test_stage_alternates_between_trees():
    stage = stage_of(3)
    x, pos = inputs()
    out = x
    for block, order in zip(stage.blocks, [torch.arange(len(x)), PERM, None]):
        order = torch.arange(len(x)) if order is None else order
        out = expected(block, out, pos, order)
    actual = stage(x, level_of(pos, PERM))
    torch.testing.assert_close(actual, out, rtol=1e-11, atol=1e-11)


def test_stage_without_rotated_tree_uses_the_main_one():
    stage = stage_of(2)
    x, pos = inputs()
    identity = level_of(pos, torch.arange(len(x)))
    out = stage(x, level_of(pos))
    torch.testing.assert_close(out, stage(x, identity), rtol=0, atol=1e-12)
    assert not torch.allclose(out, stage(x, level_of(pos, PERM)))


def test_stage_needs_a_block():
    with pytest.raises(ValueError, match="'blocks' must hold at least one block"):
        ErwinStage([])


class OwnAttention(torch.nn.Module):
    """A user's layer in place of attention: it needs no offset."""

    def forward(self, x, level):
        return torch.cat([level.pos, level.pos], dim=1)


def test_a_stage_with_another_layer_for_attention():
    stage = stage_of(3)
    x, pos = inputs()
    level, expected = level_of(pos, PERM), x
    for i, block in enumerate(stage.blocks):
        if i == 1:
            block.attention = OwnAttention()
        expected = block(expected, level.rotated() if i % 2 == 1 else level)
    out = stage(x, level)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-14)
    for block in stage.blocks:
        block.attention = OwnAttention()
    assert stage(x, level).shape == x.shape


@pytest.mark.parametrize("step", ["forward", "forward_pre"])
@pytest.mark.parametrize(
    "name",
    [
        "norm_attention",
        "attention",
        "attention.lin_pos",
        "attention.lin_qkv",
        "attention.lin_out",
        "norm_mlp",
        "mlp",
        "mlp.lin_in",
        "mlp.lin_out",
    ],
)
def test_hooks_of_parts_are_called(name, step):
    block, calls = randomised(ErwinBlock(6, 2, B)), []
    part = block.get_submodule(name)
    getattr(part, f"register_{step}_hook")(lambda *_: calls.append(name))
    x, pos = inputs()
    expected = randomised(ErwinBlock(6, 2, B))(x, level_of(pos))
    out = block(x, level_of(pos))
    assert calls == [name]
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)


class Spread(torch.nn.Module):
    """Forgets to declare the runs that it looks up."""

    def forward(self, x, level):
        return x + level.runs[4].sum()


class Broken(torch.nn.Module):
    def forward(self, x, level):
        return {}["key of its own"]


def test_swapped_parts_are_named():
    mixer, mlp = BallAttention(8, 2, 4), SwiGLU(8, 8)
    with pytest.raises(TypeError, match=r"'attention' must take rows and their level"):
        Block(8, mlp, mixer)
    with pytest.raises(TypeError, match=r"'mlp' must take rows alone \(got BallAtt"):
        Block(8, mixer, mixer)
    with pytest.raises(TypeError, match=r"\(got Linear: too many positional"):
        Block(8, torch.nn.Linear(8, 8), mlp)
    compiled = torch.compile(mixer, backend="eager")
    assert isinstance(Block(8, compiled, torch.jit.script(torch.nn.ReLU())), Block)


def test_runs_that_were_not_declared_are_named():
    level = Level.build(torch.rand(6, 3), torch.tensor([4, 2]), ball_size=4)
    with pytest.raises(ValueError, match=r"'Spread' needs runs of 4 rows.*= \(4,\)'"):
        Block(8, Spread(), SwiGLU(8, 8))(torch.rand(6, 8), level)
    with pytest.raises(KeyError, match="key of its own"):
        Block(8, Broken(), SwiGLU(8, 8))(torch.rand(6, 8), level)


def test_a_block_passes_what_its_layer_takes():
    edge_index, attr = torch.tensor([[0, 1, 5], [1, 0, 4]]), torch.rand(3, 2)
    level = Level.build(
        *(torch.rand(6, 3), torch.tensor([4, 2])),
        ball_size=4,
        ptr=torch.tensor([0, 4, 6]),
        edge_index=edge_index,
        edge_attr=attr,
    )
    x = torch.rand(6, 8)

    class Layer(torch.nn.Module):
        def forward(self, x, edge_index, edge_attr, batch, pos):
            self.seen = (edge_index, edge_attr, batch, pos)
            return x

    layer = Layer()
    Block(8, BallAttention(8, 2, 4), SwiGLU(8, 8), layer)(x, level)
    expected = (edge_index, attr, level.batch, level.pos)
    assert all(map(torch.equal, layer.seen, expected))
    for conv in (GCNConv(8, 8), GATv2Conv(8, 8, edge_dim=2), MPNNConv(8, 3, 2)):
        block = Block(8, BallAttention(8, 2, 4), SwiGLU(8, 8), conv).eval()
        normed = block.norm_attention(x)
        takes = {} if isinstance(conv, GCNConv) else {"edge_attr": attr}
        if isinstance(conv, MPNNConv):
            takes["pos"] = level.pos
        mixed = x + block.attention(normed, level)
        mixed = mixed + conv(normed, edge_index=edge_index, **takes)
        expected = mixed + block.mlp(block.norm_mlp(mixed))
        torch.testing.assert_close(block(x, level), expected)


def test_messages_on_a_level_without_edges_name_the_way_out():
    level = Level.build(torch.rand(6, 3), torch.tensor([4, 2]), ball_size=4)
    block = Block(8, BallAttention(8, 2, 4), SwiGLU(8, 8), GCNConv(8, 8))
    with pytest.raises(ValueError, match=r"its level has no edges.*edges=True\)' or"):
        block(torch.rand(6, 8), level)
