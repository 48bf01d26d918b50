"""A model as an ONNX graph, which ONNX Runtime runs on batches of other sizes."""

import pytest
import torch
from clouds import ragged
from torch.export import Dim
from torch.utils import _pytree as pytree

from torch_geometric_erwin import Tree
from torch_geometric_erwin.nn import Erwin, choose_backend
from torch_geometric_erwin.ops import dispatch
from torch_geometric_erwin.ops.ball_attention import sdpa
from torch_geometric_erwin.ops.registry import explain
from torch_geometric_erwin.utils import rows

LENGTHS = [[], [0], [1], [3], [2, 0, 1], [0, 0, 4], [3, 0, 0], [0, 1, 0, 1, 0]]


@pytest.fixture
def exporting(monkeypatch):
    """Makes the package choose what it chooses while a model is exported."""
    for module in (dispatch, sdpa, rows):
        monkeypatch.setattr(module, "is_onnx_export", lambda: True)


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_segments_without_searchsorted(lengths, exporting):
    expected = [i for i, n in enumerate(lengths) for _ in range(n)]
    found = rows.segment_ids(torch.tensor(lengths, dtype=torch.int64), sum(lengths))
    assert found.tolist() == expected
    assert found.dtype == torch.int64


def test_only_operators_of_pytorch_are_chosen(exporting):
    q, pos = torch.rand(8, 2, 4), torch.rand(8, 3)
    assert choose_backend(q, pos) == "reference"
    large = torch.rand(2000, 32), torch.rand(512, 32), torch.rand(512)
    assert explain("linear", *large)["onednn"] == "ONNX has no such operator"
    assert dispatch.why_not(q) == "ONNX has no such operator"


CONFIGS = {
    "messages": {"hidden_channels": [8], "enc_depths": 2, "mp_steps": 1},
    "two levels": {"hidden_channels": [8, 8], "layout": "perfect", "rotate": 0.0},
    "relative": {"hidden_channels": [8], "distance": "relative", "rotate": 0.0},
}


@pytest.mark.slow
# PyTorch's own, and one that an empty list in a graph of onnxscript causes.
@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")
@pytest.mark.parametrize("name", CONFIGS)
def test_runs_in_onnx_runtime(name, tmp_path):
    pytest.importorskip("onnxscript", reason="the extra 'onnx' is not installed")
    runtime = pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    sizes = {"ball_sizes": 8, "enc_depths": 1, "dec_depths": 1, "mp_steps": 0}
    model = Erwin(2, out_channels=3, **{**sizes, **CONFIGS[name]}).eval()

    def inputs(*sizes):
        batch = model.tree_transform()(ragged(sizes, dtype=torch.float32))
        edges = batch.edge_index if model.mp_steps else None
        args = (batch.x, batch.pos, edges)
        return args, {"tree": Tree.from_data(batch)}, batch

    args, kwargs, batch = inputs(30, 17, 41)
    shapes = torch.export.ShapesCollection()
    for tensor in (batch.x, batch.pos, *kwargs["tree"].tensors()):
        shapes[tensor] = {0: Dim.AUTO}
    if model.mp_steps:
        shapes[batch.edge_index] = {1: Dim.AUTO}
    shapes = shapes.dynamic_shapes(model, args, kwargs)
    path = tmp_path / "model.onnx"
    torch.onnx.export(
        model, args, path, kwargs=kwargs, dynamic_shapes=shapes, verbose=False
    )
    session = runtime.InferenceSession(path)
    names = [value.name for value in session.get_inputs()]
    for sizes in ((30, 17, 41), (21, 13, 0, 50, 1), (9, 2), (1,), (0, 3)):
        args, kwargs, batch = inputs(*sizes)
        tensors = [t for t in pytree.tree_leaves((args, kwargs)) if t is not None]
        feed = {n: t.numpy() for n, t in zip(names, tensors, strict=True)}
        (out,) = session.run(None, feed)
        expected = model(batch).detach()
        # float32 sums have another order.
        error = (torch.from_numpy(out) - expected).norm()
        assert error <= 1e-5 * expected.norm()
