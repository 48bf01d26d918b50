"""The kernels of message passing in Triton's interpreter, on CPU tensors.

Only `test_interpreter.py` collects this file, in a process that interprets kernels.
"""

import pytest
import torch
from messages import EPS, GRAPHS, WIDTHS, assert_close, inputs, reference

from torch_geometric_erwin.ops.edges import Edges
from torch_geometric_erwin.ops.message import mean_message
from torch_geometric_erwin.ops.triton import message

pytestmark = pytest.mark.usefixtures("fill")


def arguments(rows, edge_index, sender=0):
    edges = Edges(edge_index, rows[0].size(0))
    ends = (edge_index[sender], edge_index[1 - sender])
    return (*rows, EPS, *ends, *edges.by(1 - sender), *edges.by(sender))


def results(rows, edge_index, grad, sender=0):
    args = arguments(rows, edge_index, sender)
    return [message.forward(*args), *message.backward(*args, grad)]


@pytest.mark.parametrize("channels, dim", WIDTHS)
@pytest.mark.parametrize("n, num_edges", GRAPHS)
def test_equals_reference(n, num_edges, channels, dim):
    args = inputs(n, num_edges, channels, dim)
    assert_close(results(*args), reference(*args), channels)


def test_equals_the_kernel_of_the_cpu():
    rows, edge_index, grad = inputs(20, 150, 32, 3)
    rows = [t.requires_grad_() for t in rows]
    out = mean_message(*rows, EPS, Edges(edge_index, 20))
    leaves = [*rows[:2], *rows[3:]]
    expected = [out.detach(), *torch.autograd.grad(out, leaves, grad)]
    actual = results([t.detach() for t in rows], edge_index, grad)
    assert_close(actual, [t.double() for t in expected], 32)


def test_flow():
    rows, edge_index, grad = inputs(9, 60, 20, 2)
    expected = results(rows, edge_index, grad)
    for a, e in zip(results(rows, edge_index.flip(0), grad, 1), expected, strict=True):
        assert torch.equal(a, e)


def test_hubs_and_lone_nodes():
    rows, edge_index, grad = inputs(30, 100, 16, 3)
    edge_index[1, :40], edge_index[0, 40:80] = 7, 8
    edge_index[:, 80:] = edge_index[:, 80:] % 9
    actual = results(rows, edge_index, grad)
    assert_close(actual, reference(rows, edge_index, grad), 16)
    into = torch.bincount(edge_index[1], minlength=30) > 0
    out_of = torch.bincount(edge_index[0], minlength=30) > 0
    assert not into.all()
    assert not out_of.all()
    for t, nodes in ((actual[0], into), (actual[1], out_of), (actual[2], into)):
        assert torch.equal((t != 0).any(dim=1), nodes)


def test_differences_of_float64_positions_are_taken_before_rounding():
    # float32 has a spacing of 0.06 at a million.
    rows, *rest = inputs(9, 60, 20, 3, torch.float64)
    rows[2] += 1e6
    assert_close(results(rows, *rest), reference(rows, *rest), 20)


def test_what_is_not_a_number_stays_at_its_edges():
    rows, edge_index, grad = inputs(9, 60, 16, 3)
    edge_index %= 8  # nothing touches the last node
    expected = results(rows, edge_index, grad)
    for t in (*rows[:3], grad):
        t[8] = float("nan")
    for a, e in zip(results(rows, edge_index, grad), expected, strict=True):
        assert torch.equal(a, e)
    lone = torch.tensor([[0, 1, 2, 8], [4, 5, 6, 7]])
    out = message.forward(*arguments(rows, lone))
    assert out[7].isnan().all()
    assert out[:7].isfinite().all()


def test_gelu():
    # The other channel is very negative, so its GELU is zero. With h half of the value
    # and eps = 1, the output is h / sqrt(h^2 + 1).
    z = torch.linspace(-7, 7, 301)
    rows = torch.stack([z, torch.full_like(z, -50.0)], dim=1)
    zeros = (torch.zeros_like(rows), torch.zeros(301, 1), torch.zeros(2, 1))
    norm = (torch.tensor([1.0, 0.0]), torch.zeros(2))
    edges = Edges(torch.arange(301).expand(2, -1), 301)
    args = (rows, *zeros, *norm, 1.0, *edges.edge_index, *edges.by(1), *edges.by(0))
    grad = torch.tensor([1.0, 0.0]).repeat(301, 1)
    out, slope = message.forward(*args), message.backward(*args, grad)[0]
    x = z.double().requires_grad_()
    half = torch.nn.functional.gelu(x) / 2
    expected = half / (half.square() + 1).sqrt()
    (derivative,) = torch.autograd.grad(expected.sum(), x)
    torch.testing.assert_close(out[:, 0].double(), expected.detach(), rtol=0, atol=6e-7)
    torch.testing.assert_close(slope[:, 0].double(), derivative, rtol=0, atol=6e-7)


def guarded(t):
    """The same values between rows of NaN."""
    guard = torch.full_like(t[:1], float("nan"))
    return torch.cat([guard, t, guard])[1:-1]


@pytest.mark.parametrize("place", range(6))
@pytest.mark.parametrize("value", [-1, 9, 1000])
def test_wrong_indices_do_not_lead_out_of_the_tensors(place, value):
    rows, edge_index, grad = inputs(9, 60, 16, 2)
    rows[:3], grad = map(guarded, rows[:3]), guarded(grad)
    args = [*arguments(rows, edge_index)]
    args[7 + place] = args[7 + place].clone()
    args[7 + place][5] = value
    assert message.forward(*args).isfinite().all()
    grads = message.backward(*args, grad)
    if place in (0, 2, 3):  # what the kernel over targets reads; others miss its slopes
        assert all(t.isfinite().all() for t in grads[1:])
    if place == 1:
        assert grads[0].isfinite().all()


def test_any_strides():
    rows, edge_index, grad = inputs(9, 60, 16, 3)
    expected = results(rows, edge_index, grad)
    strided = [t.t().contiguous().t() if t.dim() == 2 else t for t in (*rows, grad)]
    actual = results(strided[:-1], edge_index.t().contiguous().t(), strided[-1])
    for a, e in zip(actual, expected, strict=True):
        assert torch.equal(a, e)
