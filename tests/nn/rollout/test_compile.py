import pytest
import torch
from compiled import no_recompilation
from torch_geometric.data import Batch, Data

from torch_geometric_erwin.nn import Erwin, Rollout


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def batch_of(model, sizes):
    transform = model.tree_transform()
    clouds = [Data(pos=torch.rand(n, 3), states=torch.rand(n, 3, 3)) for n in sizes]
    return Batch.from_data_list([transform(data) for data in clouds])


def test_a_compiled_model_gets_what_others_get():
    class Linear(torch.nn.Module):
        def forward(self, x, pos, edge_index=None, edge_attr=None, *, ptr, tree=None):
            return 0.1 * x - pos * ptr.size(0)

    compiled = torch.compile(Linear(), fullgraph=True, dynamic=True, backend="eager")
    data = Data(states=torch.rand(9, 2, 3), ptr=torch.tensor([0, 4, 9]))
    expected = Rollout(Linear(), moving=True).rollout(data, 3)
    assert torch.allclose(Rollout(compiled, moving=True).rollout(data, 3), expected)


@pytest.mark.slow
@pytest.mark.parametrize("moving", [False, True], ids=["fixed", "moving"])
def test_one_graph_of_the_model_serves_all_steps_and_batches(moving):
    torch.manual_seed(0)
    model = Erwin(3, [8], 3, ball_sizes=8, enc_depths=1, mp_steps=0)
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
    eager, fast = (Rollout(m, moving=moving).eval() for m in (model, compiled))
    with torch.no_grad():
        for i, sizes in enumerate([[40, 27, 0, 5, 61], [21, 13, 50], [9, 12]]):
            data = batch_of(model, sizes)
            expected = eager.rollout(data, 3)
            with no_recompilation(i):
                fast.rollout(data, 1)
            with no_recompilation(1):  # the second step of the first rollout neither
                path = fast.rollout(data, 3)
            assert (path - expected).norm() <= 1e-5 * expected.norm()
