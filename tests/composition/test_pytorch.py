"""Models and data with trees go through what PyTorch offers for any other."""

import copy
import io
import pickle

import pytest
import torch
import torch.nn.functional as F
from compiled import no_recompilation
from composition.hybrids import TREE, B, C, WithTree, clouds
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn
from torch.utils.checkpoint import checkpoint
from torch_geometric.data import Batch
from torch_geometric.loader import DataLoader

from torch_geometric_erwin import Tree
from torch_geometric_erwin.nn import Erwin

# In the first batch no two tables have the same size, see `test_compile`, nor that of
# the channels.
BATCHES = [[40, 27, 0, 5, 61, 90, 17, 3, 12], [21, 13, 50], [80, 11, 7, 1], [9, 12]]


def erwin(seed=0, norm="graph"):
    torch.manual_seed(seed)
    kwargs = {"ball_sizes": B, "strides": 4, "mp_steps": 1, "norm": norm}
    return Erwin(C, [8, 8], 4, enc_depths=[2, 1], dec_depths=1, **kwargs)


def hybrid(seed=0, norm="graph"):
    return WithTree("gat", seed=seed, norm=norm)


MODELS = {"Erwin": erwin, "hybrid": hybrid}
every_model = pytest.mark.parametrize("make", MODELS.values(), ids=[*MODELS])


def transform_of(model):
    return model.tree_transform() if isinstance(model, Erwin) else TREE


def batch_for(model, sizes=(9, 0, 1, 30)):
    transform = transform_of(model)
    data = [transform(cloud) for cloud in clouds(sizes, torch.float32)]
    return Batch.from_data_list(data)


def loss_of(model, batch):
    return F.mse_loss(model(batch), batch.y)


def gradients(model, batch):
    return torch.autograd.grad(loss_of(model, batch), [*model.parameters()])


def trained(model, steps=3):
    batch = batch_for(model)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(steps):
        optimiser.zero_grad()
        loss_of(model, batch).backward()
        optimiser.step()
    return model


def assert_same(one, other):
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@every_model
def test_one_graph_for_all_batches(make):
    model = make()
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
    for step, sizes in enumerate(BATCHES):
        batch = batch_for(model, sizes)
        with no_recompilation(step):
            grads = gradients(compiled, batch)
        assert_same(grads, gradients(model, batch))


@every_model
@pytest.mark.parametrize("norm", ["batch", "graph", "layer"])
@pytest.mark.parametrize("sizes", [[0], [1], [0, 1, 0, 2]], ids=str)
def test_every_parameter_gets_a_gradient(make, norm, sizes):
    """Also from next to nothing: other processes wait for all gradients."""
    model = make(norm=norm)
    model(batch_for(model, sizes)).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def of_file(thing, weights_only):
    file = io.BytesIO()
    torch.save(thing, file)
    file.seek(0)
    return torch.load(file, weights_only=weights_only)


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda thing: pickle.loads(pickle.dumps(thing)),
    "torch.save": lambda thing: of_file(thing, weights_only=False),
}
every_copy = pytest.mark.parametrize("copied", COPIES.values(), ids=[*COPIES])


@every_copy
@every_model
def test_copies_of_models(make, copied):
    model = trained(make(norm="batch"))
    other, batch = copied(model), batch_for(model)
    assert_equal(gradients(other, batch), gradients(model, batch))
    assert_equal(other.state_dict().values(), model.state_dict().values())
    state = copy.deepcopy(model.state_dict())
    trained(other)  # leaves the original as it was
    assert_equal(model.state_dict().values(), state.values())


@every_copy
@every_model
def test_copies_of_data_trees_and_transforms(make, copied):
    model = make().eval()
    batch, transform = batch_for(model), copied(transform_of(model))
    out = model(batch)
    assert torch.equal(model(copied(batch)), out)
    assert torch.equal(model(transform(batch)), out)
    cloud = batch[3]
    assert torch.equal(model(copied(cloud)), model(cloud))
    tree = Tree.from_data(batch)
    assert copied(tree).config == tree.config
    assert torch.equal(copied(tree).global_perm_rot(0), tree.global_perm_rot(0))
    *_, level = tree.levels(batch.pos)
    x = torch.rand(level.num_rows, 8)
    assert torch.equal(copied(level).to_balls(x), level.to_balls(x))


def assert_equal(one, other):
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a, b)


def test_trees_are_loaded_without_code():
    batch = batch_for(hybrid())
    tree = Tree.from_data(batch)
    assert torch.equal(of_file(tree, weights_only=True).perm, tree.perm)
    state = of_file(hybrid().state_dict(), weights_only=True)
    assert hybrid(seed=1).load_state_dict(state)


@every_model
def test_state_dict(make):
    model, other = trained(make(norm="batch")), make(seed=1, norm="batch")
    batch = batch_for(model)
    assert not torch.equal(other.eval()(batch), model.eval()(batch))
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(batch), model(batch))


@every_model
def test_functional_call(make):
    model = make()
    batch, weights = batch_for(model), dict(model.named_parameters())

    def loss(weights):
        return F.mse_loss(torch.func.functional_call(model, weights, batch), batch.y)

    grads = torch.func.grad(loss)({n: w.detach() for n, w in weights.items()})
    assert_same(grads.values(), gradients(model, batch))
    other = make(seed=1)
    out = torch.func.functional_call(other, model.state_dict(), batch)
    assert torch.equal(out, model(batch))


@every_model
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoint(make, reentrant):
    model = make()
    batch = batch_for(model)
    wanted = gradients(model, batch)
    batch.x.requires_grad_()  # the reentrant variant needs an input that does

    def recomputed(x):
        return model(copy.copy(batch).update({"x": x}))

    out = checkpoint(recomputed, batch.x, use_reentrant=reentrant)
    F.mse_loss(out, batch.y).backward()
    assert_equal([p.grad for p in model.parameters()], wanted)


@every_model
def test_averaged_weights(make):
    model = make(norm="batch")
    mean = AveragedModel(model)
    ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    states = []
    for _ in range(2):
        trained(model)
        mean.update_parameters(model)
        ema.update_parameters(model)
        states.append(copy.deepcopy([*model.parameters()]))
    wanted = [(a + b) / 2 for a, b in zip(*states)]
    for average in (mean, ema):  # the same, for two states and this rate
        assert_same(average.module.parameters(), wanted)
    # The statistics of the averaged model are those of its own rows.
    data = batch_for(model).to_data_list()
    update_bn(DataLoader(data, batch_size=len(data)), mean)
    batch = Batch.from_data_list(data)
    other = copy.deepcopy(mean).train()
    for norm in other.modules():
        if isinstance(norm, torch.nn.BatchNorm1d):
            norm.reset_running_stats()
            norm.momentum = 1.0
    other(batch)
    assert_same(mean.state_dict().values(), other.state_dict().values())


@every_model
def test_autocast(make):
    model = make()
    batch = batch_for(model)
    wanted = model(batch)
    with torch.autocast("cpu", torch.bfloat16):
        out = model(batch)
        loss = F.mse_loss(out.float(), batch.y)
    assert (out.float() - wanted).norm() < 0.03 * wanted.norm()
    assert not torch.equal(out.float(), wanted)
    loss.backward()
    assert all(p.grad.dtype == torch.float32 for p in model.parameters())
    for p, right in zip(model.parameters(), gradients(model, batch), strict=True):
        assert (p.grad - right).norm() < 0.2 * right.norm() + 0.02


@every_model
def test_synchronised_batch_norm(make):
    """Statistics over processes take the place of ours, with the same weights."""
    model = trained(make(norm="batch")).eval()
    batch = batch_for(model)
    other = torch.nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(model))
    assert any(isinstance(m, torch.nn.SyncBatchNorm) for m in other.modules())
    assert_same([other(batch)], [model(batch)])


@every_model
def test_freezing_and_other_modes(make):
    """Frozen parts get no gradient; inference mode needs no graph."""
    model = make()
    batch = batch_for(model)
    wanted = gradients(model, batch)[-1]
    model.requires_grad_(False)
    model.head.requires_grad_()
    loss_of(model, batch).backward()
    assert torch.equal([*model.parameters()][-1].grad, wanted)
    assert sum(p.grad is not None for p in model.parameters()) == len(
        [*model.head.parameters()]
    )
    with torch.inference_mode():
        assert torch.equal(model(batch), model(batch))
    with torch.inference_mode():
        made_inside = batch_for(model)
        assert torch.equal(model(made_inside), model(batch))
