"""Norms by name: spellings of PyG's resolver, and PyG's own norms on levels."""

import pytest
import torch
from clouds import ragged
from torch_geometric import nn as pyg

from torch_geometric_erwin import ball_tree
from torch_geometric_erwin.nn import BatchNorm, GraphNorm
from torch_geometric_erwin.nn.norm import make_norm, normalise
from torch_geometric_erwin.nn.norm.resolver import NORMS


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (("batch", "batch_norm", "BatchNorm", "batch-norm", "Batch Norm"), BatchNorm),
        (("graph", "graph_norm", "GraphNorm", "graphnorm"), GraphNorm),
        (("layer", "layer_norm", "LayerNorm"), torch.nn.LayerNorm),
        (("rms", "rms_norm", "RMSNorm"), torch.nn.RMSNorm),
    ],
)
def test_spellings(names, kind):
    for name in names:
        assert type(make_norm(name, 8)) is kind, name


def test_arguments_of_norms():
    assert make_norm("batch_norm", 8, kwargs={"momentum": 0.3}).momentum == 0.3
    assert make_norm("layer", 8, kwargs={"eps": 0.1}).eps == 0.1
    assert make_norm(torch.nn.LayerNorm, 8, kwargs={"bias": False}).bias is None
    with pytest.raises(TypeError, match=r"'norm' takes no 'size', .*eps"):
        make_norm("graph", 8, kwargs={"size": 3})
    with pytest.raises(TypeError, match=r"'norm_kwargs' must be a dict \(got 3\)"):
        make_norm("graph", 8, kwargs=3)


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("instance_norm", lambda: pyg.InstanceNorm(4)),
        ("pair", lambda: pyg.PairNorm()),
        ("PairNorm", lambda: pyg.PairNorm()),
        ("mean_subtraction", lambda: pyg.MeanSubtractionNorm()),
        ("graph_size", lambda: pyg.GraphSizeNorm()),
        (pyg.LayerNorm, lambda: pyg.LayerNorm(4)),
        (pyg.GraphNorm, lambda: pyg.GraphNorm(4)),
    ],
)
def test_norms_of_pyg_get_the_clouds(name, make):
    batch = ragged([9, 4, 21], channels=4)
    (level,) = ball_tree(batch.pos, ptr=batch.ptr, ball_sizes=8).levels(batch.pos)
    norm = make_norm(name, 4).double()
    expected = make().double()(batch.x, batch.batch)
    assert not torch.allclose(expected, make().double()(batch.x))
    torch.testing.assert_close(normalise(norm, batch.x, level), expected)


def test_every_name_makes_a_norm():
    more = {"diffgroup": {"groups": 2}}
    for name in NORMS:
        assert isinstance(make_norm(name, 8, kwargs=more.get(name)), torch.nn.Module)
