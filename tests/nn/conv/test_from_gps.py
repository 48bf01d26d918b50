"""Layers that are converted from PyG's, compared with these."""

import copy
import warnings

import pytest
import torch
from clouds import cloud, randomised
from hybrid_layers import LAYERS, B, C, args_of, batch_of, given
from torch_geometric.nn import GCNConv, GPSConv

from torch_geometric_erwin.nn import HybridConv


def gps(norm, conv=None, **kwargs):
    torch.manual_seed(0)
    return randomised(GPSConv(C, conv, heads=2, norm=norm, **kwargs))


NORMS = ["batch_norm", "graph_norm", "layer_norm", "instance_norm", None]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(
    "name, kwargs",
    [
        ("gcn", {}),
        ("gine", {"act": "elu", "act_kwargs": {"alpha": 0.5}}),
        (None, {"attn_kwargs": {"bias": False}}),
    ],
)
def test_converted_layer_equals_the_original(name, kwargs, norm, training):
    conv = LAYERS[name][0]() if name else None
    original = gps(norm, conv, **kwargs).train(training)
    layer = HybridConv.from_gps(original, ball_size=64)
    batch = batch_of([20, 7, 1, 33] if norm != "instance_norm" else [20, 7, 33])
    batch.x.requires_grad_()
    more = given(batch, name) if name else {}
    outs = [
        original(batch.x, batch.edge_index, batch.batch, **more),
        layer(*args_of(batch), batch.batch, **more),
    ]
    torch.testing.assert_close(outs[1], outs[0], rtol=1e-9, atol=1e-9)
    weights = torch.randn_like(outs[0])
    grads = [torch.autograd.grad((o * weights).sum(), batch.x) for o in outs]
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-8, atol=1e-8)
    # Training statistics are the same too.
    args = batch.x, batch.edge_index, batch.batch
    original, layer = original.eval(), layer.eval()
    torch.testing.assert_close(
        layer(*args_of(batch), batch.batch, **more),
        original(*args, **more),
        rtol=1e-9,
        atol=1e-9,
    )


def test_a_one_row_cloud_of_pygs_instance_norm_is_pygs():
    original = gps("instance_norm", GCNConv(C, C)).eval()
    layer = HybridConv.from_gps(original)
    data = cloud(1, channels=C)
    out = original(data.x, data.edge_index, torch.zeros(1, dtype=torch.int64))
    torch.testing.assert_close(layer(*args_of(data)), out)


def test_gradients_of_converted_weights():
    original = gps("graph_norm", GCNConv(C, C))
    layer = HybridConv.from_gps(original, ball_size=64)
    batch = batch_of([20, 33])
    original(batch.x, batch.edge_index, batch.batch).square().sum().backward()
    layer(*args_of(batch), batch.batch).square().sum().backward()
    attention, given = layer.attention, original.attn
    for own, right in (
        (layer.conv.lin.weight, original.conv.lin.weight),
        (attention.lin_qkv.weight, given.in_proj_weight),
        (attention.lin_qkv.bias, given.in_proj_bias),
        (attention.lin_out.weight, given.out_proj.weight),
        (attention.lin_out.bias, given.out_proj.bias),
        (layer.mlp[0].weight, original.mlp[0].weight),
        (layer.norm3.norm.weight, original.norm3.weight),
    ):
        torch.testing.assert_close(own.grad, right.grad, rtol=1e-8, atol=1e-8)
    assert attention.sigma.grad.abs().min() > 0
    assert attention.lin_pos.weight.grad.abs().min() > 0


def test_a_converted_layer_is_a_copy():
    original = gps("batch_norm", GCNConv(C, C)).eval()
    layer = HybridConv.from_gps(original, B, 2, True)
    assert not layer.training
    assert (layer.ball_size, layer.dim, layer.rotated) == (B, 2, True)
    before = copy.deepcopy(original.state_dict())
    with torch.no_grad():
        for tensor in layer.state_dict().values():
            tensor.zero_()
    for name, value in original.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_what_cannot_be_converted():
    with pytest.raises(TypeError, match="'conv' must be a GPSConv"):
        HybridConv.from_gps(GCNConv(C, C))
    with pytest.raises(ValueError, match="must have attn_type='multihead'"):
        HybridConv.from_gps(GPSConv(C, None, heads=2, attn_type="performer"))
    for name in ("add_bias_kv", "add_zero_attn"):
        with pytest.raises(ValueError, match=f"'conv' must not have .*{name}"):
            HybridConv.from_gps(GPSConv(C, None, attn_kwargs={name: True}))
    dropped = GPSConv(C, None, dropout=0.1, attn_kwargs={"dropout": 0.5})
    with pytest.warns(UserWarning, match="no dropout of its weights: the 0.5"):
        layer = HybridConv.from_gps(dropped)
    assert layer.dropout == layer.mlp[2].p == 0.1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        HybridConv.from_gps(GPSConv(C, None, norm=None, dropout=0.1))
