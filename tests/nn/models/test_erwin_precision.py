"""Erwin in every dtype, and far from the origin."""

import copy

import pytest
import torch
from clouds import ragged
from erwins import (
    assert_close,
    make,
    small_weights,
    tree_of,
)


def test_far_from_origin_in_float64():
    model, data = make(), ragged([13, 1, 22])
    tree = tree_of(model, data)
    moved = model(data.x, data.pos + 1000, data.edge_index, ptr=data.ptr, tree=tree)
    # Positions at 1000 are rounded to 1e-13.
    assert_close(moved, model(data), 1e-12)


def test_far_from_origin_in_float32():
    model, data = make(rotate=0.0), ragged([13, 1, 22], dtype=torch.float32)
    data.pos += 1000
    exact = model(data.x.double(), data.pos.double(), data.edge_index, ptr=data.ptr)
    out = model.float()(data)
    # Coarse positions are float32 numbers near 1000, with rounding errors of 3e-5.
    assert_close(out, exact, 1e-4)


def test_float32():
    model, data = make(), ragged([13, 1, 22], dtype=torch.float32)
    exact = model(data.x.double(), data.pos.double(), data.edge_index, ptr=data.ptr)
    out = model.float()(data)
    assert out.dtype == torch.float32
    assert_close(out, exact, 1e-5)


def test_autocast():
    model, data = small_weights(), ragged([13, 1, 22], dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        out = model(data)
        out.float().square().sum().backward()
    assert out.dtype == torch.bfloat16
    expected = model(data).detach()
    # About ten layers in sequence, each with a relative rounding error of 2^-8.
    assert (out - expected).norm() <= 10 * 2**-8 * expected.norm()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.parametrize("pos_dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("training", [False, True])
def test_half_precision_model(pos_dtype, training):
    model, data = small_weights(), ragged([13, 1, 22], dtype=torch.bfloat16)
    data.pos = data.pos.to(pos_dtype)
    tree = tree_of(model, data)
    exact = copy.deepcopy(model).double().train(training)
    expected = exact(
        *(data.x.double(), data.pos.double(), data.edge_index), ptr=data.ptr, tree=tree
    )
    model = model.bfloat16().train(training)
    out = model(data)
    assert out.dtype == torch.bfloat16
    assert (out - expected).norm() <= 10 * 2**-8 * expected.norm()
    out.float().square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
