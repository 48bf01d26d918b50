import copy

import pytest
import torch
from clouds import ragged
from compiled import no_recompilation
from torch_geometric.data import Batch

from torch_geometric_erwin import Tree
from torch_geometric_erwin.nn import Erwin

# The compiler treats sizes of 0 and 1 as constants, and assumes that sizes that are
# equal in the first batch stay equal. So in the first batch no two tables have the same
# size.
BATCHES = [[40, 27, 0, 5, 61], [21, 13, 50], [80, 11, 7, 1], [9, 12]]


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def make(hidden=(8, 16), ball_sizes=8, **kwargs):
    torch.manual_seed(0)
    # One block on the rotated tree and one of every other kind; compiling one takes 1
    # s.
    depths = {"enc_depths": [2, 1], "dec_depths": 1}
    kwargs = {"out_channels": 3, "mp_steps": 1, "norm": "batch", **depths, **kwargs}
    return Erwin(2, [*hidden], ball_sizes=ball_sizes, **kwargs)


def batches(model):
    """A batch with trees that are built before collation, as in a data loader."""
    transform = model.tree_transform()
    for sizes in BATCHES:
        clouds = ragged(sizes, dtype=torch.float32).to_data_list()
        yield Batch.from_data_list([transform(data) for data in clouds])


def tensors_of(model, batch):
    tree = Tree.from_data(batch, model.tree_config)
    return (batch.x, batch.pos, batch.edge_index), {"ptr": batch.ptr, "tree": tree}


def data_of(model, batch):
    return (batch,), {}


def rows_of(out):
    return out[0] if isinstance(out, tuple) else out


def assert_close(actual, expected):
    """Compares in the Euclidean norm, because float32 sums have another order."""
    assert actual.shape == expected.shape
    assert (actual - expected).norm() <= 1e-5 * expected.norm()


CONFIGS = {
    "balanced": {},
    "perfect": {"layout": "perfect"},
    "coarse": {"strides": 3, "decode": False},
}


@pytest.mark.parametrize(
    "config, arguments",
    [
        ("balanced", tensors_of),
        pytest.param("perfect", data_of, marks=pytest.mark.slow),
        pytest.param("coarse", data_of, marks=pytest.mark.slow),
    ],
)
def test_one_graph_for_all_batches(config, arguments):
    model = make(**CONFIGS[config]).eval()
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
    for step, batch in enumerate(batches(model)):
        args, kwargs = arguments(model, batch)
        with no_recompilation(step):
            out = compiled(*args, **kwargs)
        assert_close(rows_of(out), rows_of(model(batch)))


def check_training(model, backend):
    eager = copy.deepcopy(model)
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=backend)
    for step, batch in enumerate(batches(model)):
        with no_recompilation(step):
            out = compiled(batch)
            out.square().mean().backward()
        expected = eager(batch)
        expected.square().mean().backward()
        assert_close(out, expected)
    assert_same_gradients(model, eager)
    for buffer, expected in zip(model.buffers(), eager.buffers(), strict=True):
        assert_close(buffer.double(), expected.double())


def test_training_is_one_graph_for_all_batches():
    check_training(make().train(), "aot_eager")


def test_inductor_trains():
    model = make((8, 8), enc_depths=1, dec_depths=1, rotate=0.0, norm="layer")
    check_training(model, "inductor")


def assert_same_gradients(model, eager):
    largest = max(parameter.grad.norm() for parameter in eager.parameters())
    for (name, parameter), expected in zip(
        model.named_parameters(), eager.parameters(), strict=True
    ):
        error = (parameter.grad - expected.grad).norm()
        # If terms cancel, the sum still has the rounding errors of the terms.
        assert error <= 1e-5 * expected.grad.norm() + 1e-6 * largest, name


def test_data_without_tree_is_refused():
    model = make().eval()
    batch = ragged(BATCHES[0], dtype=torch.float32)
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
    message = r"Explanation:.*\(reason: a compiled model needs the tree; apply"
    with pytest.raises(Exception, match=message):
        compiled(batch)
    with pytest.raises(ValueError, match="a compiled model needs the tree; apply"):
        torch.export.export(model, (batch.x, batch.pos, batch.edge_index))


def test_a_compiler_that_may_leave_the_graph_builds_the_tree():
    model = make((8, 8), enc_depths=1, dec_depths=1).eval()
    batch = ragged(BATCHES[0], dtype=torch.float32)
    compiled = torch.compile(model, backend="eager")
    torch.testing.assert_close(compiled(batch), model(batch))


WRONG_TREES = {
    "other ball sizes": lambda model, data: make(ball_sizes=4).tree_transform()(data),
    "larger balls": lambda model, data: make(ball_sizes=16).tree_transform()(data),
    "other angle": lambda model, data: make(rotate=30.0).tree_transform()(data),
    "reordered nodes": lambda model, data: model.tree_transform()(data).subgraph(
        torch.arange(data.num_nodes).flip(0)
    ),
}


@pytest.mark.parametrize(
    "whole", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["read", "model"]
)
@pytest.mark.parametrize("attach", WRONG_TREES.values(), ids=[*WRONG_TREES])
def test_a_tree_that_does_not_fit_is_refused(attach, whole):
    model = make(mp_steps=0).eval()

    def rows(batch):
        return Tree.from_data(batch, model.tree_config).to_rows(batch.x)

    function = model if whole else rows
    compiled = torch.compile(
        function, fullgraph=True, dynamic=True, backend="aot_eager"
    )
    clouds = ragged(BATCHES[0], dtype=torch.float32).to_data_list()
    compiled(Batch.from_data_list([model.tree_transform()(c) for c in clouds]))
    wrong = Batch.from_data_list([attach(model, c) for c in clouds])
    with pytest.raises(RuntimeError, match=r"the tree was not built for|does not fit"):
        compiled(wrong)


def test_a_given_tree_of_another_model_is_refused():
    model, other = make(mp_steps=0).eval(), make(mp_steps=0, ball_sizes=4)
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
    batch = next(batches(other))
    args, kwargs = tensors_of(other, batch)
    with pytest.raises(Exception, match="the tree was built for 'balls=4,4"):
        compiled(*args, **kwargs)
