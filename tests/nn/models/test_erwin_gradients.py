"""Gradients of Erwin, of first and second order, and checkpoints."""

import copy

import pytest
import torch
from clouds import ragged
from erwins import (
    MIXED,
    assert_close,
    every_tree,
    make,
    tree_of,
)


@every_tree
def test_every_parameter_gets_a_gradient(kwargs):
    model = make(**kwargs)
    out = model(ragged([13, 1, 22]))
    (out * torch.randn_like(out)).sum().backward()
    for name, parameter in model.named_parameters():
        grad = parameter.grad
        if name.endswith("lin_qkv.bias"):
            query, key, value = grad.chunk(3)
            # A constant added to all keys shifts all scores of a query by the same
            # number.
            assert key.abs().max() <= 1e-9 * grad.abs().max(), name
            grad = torch.cat([query, value])
        if name == "unpools.0.lin.weight" and model.strides == (1,):
            # A single child lies at the centre of its row.
            assert (grad[:, -3:] == 0).all()
            grad = grad[:, :-3]
        assert (grad != 0).all(), name


@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_every_parameter_gets_a_gradient_in_training(norm):
    model = make(norm=norm).train()
    out = model(ragged([13, 1, 22]))
    (out * torch.randn_like(out)).sum().backward()
    largest = max(p.grad.abs().max() for p in model.parameters())
    for name, parameter in model.named_parameters():
        cancels = name.startswith("pools.") and name.endswith("lin.bias")
        if cancels and norm == "batch":
            # A batch norm removes a constant that is added to all rows.
            assert parameter.grad.abs().max() <= 1e-12 * largest, name
        else:
            assert parameter.grad.abs().max() > 1e-9 * largest, name


@pytest.mark.parametrize("sizes", [[], [0], [0, 0], [1], [1, 0], [2], [1, 1], [5]])
@pytest.mark.parametrize("strides", [(2, 2), (1,), (3,)], ids=str)
@pytest.mark.parametrize("decode", [True, False])
@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_tiny_batches_in_training(sizes, strides, decode, norm):
    # Down to one row, or none, in the norms.
    model = make(strides, decode=decode, norm=norm).train()
    data, ptr = ragged(sizes or [0]), torch.tensor([0, *sizes]).cumsum(0)
    out = model(data.x, data.pos, data.edge_index, ptr=ptr)
    out = out if decode else out[0]
    out.sum().backward()
    assert torch.isfinite(out).all()
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    assert grads
    assert all(torch.isfinite(grad).all() for grad in grads)
    buffers = [b for b in model.buffers() if b.is_floating_point()]
    assert all(torch.isfinite(buffer).all() for buffer in buffers)


def forces(model, data, create_graph=False):
    """Forces as the negative gradient of an energy, and the energy."""
    pos = data.pos.detach().requires_grad_()
    tree = tree_of(model, data)
    energy = model(data.x, pos, data.edge_index, ptr=data.ptr, tree=tree).square().sum()
    (grad,) = torch.autograd.grad(energy, pos, create_graph=create_graph)
    return -grad, energy


DIFFERENTIABLE = [
    {"strides": (2, 2)},
    {"strides": (1,), "rotate": 0.0},
    {"strides": (2,), "layout": "perfect"},  # with coincident rows
]


@pytest.mark.parametrize("kwargs", DIFFERENTIABLE, ids=str)
def test_forces_equal_finite_differences(kwargs):
    model, data = make(**kwargs), ragged([13, 1, 5])
    force, _ = forces(model, data)
    tree, step = tree_of(model, data), 1e-5
    direction = torch.randn(3, *data.pos.shape, dtype=torch.float64)
    for d in direction:
        energies = [
            model(
                data.x, data.pos + s * d, data.edge_index, ptr=data.ptr, tree=tree
            ).square()
            for s in (step, -step)
        ]
        slope = (energies[0] - energies[1]).sum() / (2 * step)
        # A central difference has an error of order step².
        torch.testing.assert_close(-(force * d).sum(), slope, rtol=1e-6, atol=0)
    # Moving a whole cloud changes nothing, so the forces on it sum to zero.
    for total in torch.stack([f.sum(0) for f in force.split([13, 1, 5])]):
        assert total.abs().max() <= 1e-12 * force.abs().max()


@pytest.mark.parametrize("kwargs", DIFFERENTIABLE, ids=str)
def test_second_gradient_through_forces(kwargs):
    model, data = make(**kwargs), ragged([13, 1, 5])
    force, energy = forces(model, data, create_graph=True)
    (energy + force.square().sum()).backward()
    unused = [name for name, p in model.named_parameters() if p.grad is None]
    assert not unused
    step = 1e-6
    for name in ("encoder.0.blocks.1.attention.sigma", "embed.start.weight"):
        parameter, losses = model.get_parameter(name), []
        for sign in (1, -1):
            other = copy.deepcopy(model)
            with torch.no_grad():
                other.get_parameter(name).view(-1)[0] += sign * step
            force, energy = forces(other, data)
            losses.append(energy.detach() + force.square().sum())
        slope = (losses[0] - losses[1]) / (2 * step)
        actual = parameter.grad.view(-1)[0]
        torch.testing.assert_close(actual, slope, rtol=1e-5, atol=0)


EVERY_CHECKPOINT = [True, [True, False, False], [False, True, True]]


@pytest.mark.parametrize("checkpoint", EVERY_CHECKPOINT, ids=str)
def test_checkpoint_changes_no_result(checkpoint):
    runs = []
    for flag in (False, checkpoint):
        model, data = make(checkpoint=flag).train(), ragged(MIXED)
        out = model(data)
        out.square().sum().backward()
        runs.append((out, [p.grad for p in model.parameters()], [*model.buffers()]))
    torch.testing.assert_close(*runs, rtol=0, atol=0)


def test_checkpoint_keeps_what_leads_to_second_derivatives():
    runs = []
    for flag in (False, True):
        model = make(checkpoint=flag)
        force, energy = forces(model, ragged([13, 1, 5]), create_graph=True)
        (energy + force.square().sum()).backward()
        runs.append([p.grad for p in model.parameters()])
    torch.testing.assert_close(*runs, rtol=1e-12, atol=1e-12)


def test_checkpoint_keeps_less():
    def kept(checkpoint):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t: sizes.append(t.numel()) or t, lambda t: t
        ):
            make(checkpoint=checkpoint).train()(ragged(MIXED))
        return sum(sizes)

    none, fine, coarse = kept(False), *map(kept, EVERY_CHECKPOINT[1:])
    assert kept(True) < min(fine, coarse)
    assert max(fine, coarse) < none


def test_positions_that_ask_for_a_gradient_do_not_change_the_output():
    data = ragged([13, 1, 22])
    expected = make()(data)
    data.pos.requires_grad_()
    assert_close(make()(data), expected, 1e-12)


@pytest.mark.parametrize("layout", ["balanced", "perfect"])
def test_coincident_points(layout):
    model = make(layout=layout)
    data = ragged([22])
    data.pos[:] = data.pos[0].clone()
    out = model(data)
    force, _ = forces(model, data)
    assert torch.isfinite(out).all()
    assert torch.isfinite(force).all()
