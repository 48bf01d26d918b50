import pytest
import torch
from compiled import no_recompilation
from torch.autograd import gradcheck, gradgradcheck

from torch_geometric_erwin.utils.rows import (
    dense_width,
    from_dense,
    put_rows,
    row_mask,
    segment_ids,
    slots_of,
    take_rows,
    to_dense,
)

LENGTHS = [[2, 0, 3, 1], [0], [4], [0, 0, 5, 0], [1] * 7]


def rows(*shape, **kwargs):
    return torch.randn(*shape, dtype=torch.float64, **kwargs)


@pytest.mark.parametrize("lengths", LENGTHS)
def test_segment_ids(lengths):
    expected = [i for i, length in enumerate(lengths) for _ in range(length)]
    assert segment_ids(torch.tensor(lengths), sum(lengths)).tolist() == expected


def test_segment_ids_of_no_segments():
    assert segment_ids(torch.empty(0, dtype=torch.int64), 0).tolist() == []


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("width", [5, 8])
def test_slots_of(lengths, width):
    expected = [i * width + j for i, n in enumerate(lengths) for j in range(n)]
    assert slots_of(torch.tensor(lengths), sum(lengths), width).tolist() == expected


@pytest.mark.parametrize("shape", [(6,), (6, 3), (6, 2, 0), (6, 2, 4)])
def test_take_and_put_rows(shape):
    x, index = rows(*shape), torch.tensor([4, 0, 5, 2])
    taken = take_rows(x, index)
    assert torch.equal(taken, x[index])
    expected = torch.zeros(shape, dtype=x.dtype)
    expected[index] = taken
    assert torch.equal(put_rows(taken, index, 6), expected)


def test_take_and_put_no_rows():
    index = torch.empty(0, dtype=torch.int64)
    assert take_rows(rows(3, 2), index).shape == (0, 2)
    assert torch.equal(put_rows(rows(0, 2), index, 3), rows(3, 2) * 0)


@pytest.mark.parametrize("shape", [(6,), (6, 3)])
def test_take_and_put_rows_gradients(shape):
    index = torch.tensor([4, 0, 5, 2])
    x = rows(*shape, requires_grad=True)
    y = rows(4, *shape[1:], requires_grad=True)
    for check in [gradcheck, gradgradcheck]:
        # A product with the input itself makes the second derivative non-zero.
        assert check(lambda x: take_rows(x, index).pow(2) * take_rows(x, index), (x,))
        assert check(lambda y: put_rows(y, index, 6).pow(3), (y,))
    assert gradcheck(
        lambda x: take_rows(x, index),
        (x,),
        check_forward_ad=False,
        check_batched_grad=True,
    )


def test_gradient_of_rows_that_are_not_taken_is_zero():
    x = rows(4, 2, requires_grad=True)
    take_rows(x, torch.tensor([3, 1])).sum().backward()
    assert x.grad.tolist() == [[0, 0], [1, 1], [0, 0], [1, 1]]


def test_take_and_put_rows_under_vmap():
    x, index = rows(5, 6, 3), torch.tensor([4, 0, 5, 2])
    taken = torch.vmap(take_rows, (0, None))(x, index)
    assert torch.equal(taken, x[:, index])
    put = torch.vmap(lambda y: put_rows(y, index, 6))(taken)
    assert torch.equal(put[:, index], taken)


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("shape", [(), (3,), (2, 0)])
def test_dense_view(lengths, shape):
    width, x = 5, rows(sum(lengths), *shape)
    dense = to_dense(x, torch.tensor(lengths), width)
    mask = row_mask(torch.tensor(lengths), width)
    expected = torch.zeros(len(lengths), width, *shape, dtype=x.dtype)
    for i, part in enumerate(x.split(lengths)):
        expected[i, : len(part)] = part
        assert mask[i].tolist() == [j < len(part) for j in range(width)]
    assert torch.equal(dense, expected)
    # The values in slots without a row have no effect.
    dense[~mask] = torch.nan
    assert torch.equal(from_dense(dense, torch.tensor(lengths), sum(lengths)), x)


def test_full_dense_view_copies_nothing():
    x, lengths = rows(6, 2), torch.tensor([3, 3])
    dense = to_dense(x, lengths, 3)
    assert dense.data_ptr() == x.data_ptr()
    assert from_dense(dense, lengths, 6).data_ptr() == x.data_ptr()


def test_dense_view_gradients():
    lengths = torch.tensor([2, 0, 3])
    x = rows(5, 2, requires_grad=True)
    dense = rows(3, 4, 2, requires_grad=True)
    for check in [gradcheck, gradgradcheck]:
        assert check(lambda x: to_dense(x, lengths, 4).pow(3), (x,))
        assert check(lambda dense: from_dense(dense, lengths, 5).pow(3), (dense,))


def test_dense_width():
    assert dense_width(torch.tensor([3, 0, 2]), limit=256) == 3
    assert dense_width(torch.empty(0, dtype=torch.int64), limit=256) == 1


def test_compile():
    def function(x, lengths, index):
        dense = put_rows(x, slots_of(lengths, x.size(0), 8), lengths.size(0) * 8)
        return take_rows(dense, index) * segment_ids(lengths, x.size(0)).unsqueeze(1)

    torch.compiler.reset()
    compiled = torch.compile(
        function, fullgraph=True, dynamic=True, backend="aot_eager"
    )
    for step, lengths in enumerate([[3, 5, 1, 2], [8, 0, 4, 4, 1], [2, 2, 3]]):
        lengths = torch.tensor(lengths)
        n = int(lengths.sum())
        x = rows(n, 6, requires_grad=True)
        index = torch.randperm(lengths.numel() * 8)[:n]
        with no_recompilation(step):
            outs = [f(x, lengths, index) for f in (compiled, function)]
        assert torch.equal(*outs)
        grads = [torch.autograd.grad(out.pow(2).sum(), x)[0] for out in outs]
        assert torch.equal(*grads)


def test_take_rows_has_a_forward_derivative():
    x, tangent = torch.randn(2, 5, 3, dtype=torch.double).unbind()
    index = torch.tensor([4, 0, 2])
    out, derivative = torch.func.jvp(lambda x: take_rows(x, index), (x,), (tangent,))
    assert torch.equal(out, x[index])
    assert torch.equal(derivative, tangent[index])
