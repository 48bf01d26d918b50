"""Private names of PyTorch, PyG and Triton: all that are used, in one list.

Names that begin with an underscore may change in any release, so they are used only
where no public name does the same. If a release removes one, this test fails and tells
which, before an import fails for a user.
"""

import ast
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest
import torch
from torch.nn import Module
from torch_geometric.data import Batch, Data
from torch_geometric.nn import MessagePassing

ROOT = Path(__file__).parents[1]
LIBRARIES = ("torch", "torch_geometric", "triton")

# Last checked with PyTorch 2.13.0, PyG 2.8.1 and Triton 3.9.0: the names exist, and no
# public name does the same. The package needs these.
IN_PACKAGE = {
    # An assertion that the device checks, so that the host does not wait.
    "torch._assert_async",
    # Whether function transforms are active, and how to switch them off.
    "torch._C._are_functorch_transforms_active",
    "torch._C._DisableFuncTorch",
    "torch.autograd.forward_ad._current_level",
    # Whether a mode or the profiler observes calls of operators.
    "torch._C._len_torch_dispatch_stack",
    "torch._C._len_torch_function_stack",
    "torch.autograd._profiler_enabled",
    # The schema of an operator that was defined by text.
    "torch._C._get_schema",
    # Kinds of tensors that have no memory of their own.
    "torch._subclasses.FakeTensor",
    "torch._subclasses.functional_tensor.FunctionalTensor",
    "torch.utils._python_dispatch.is_traceable_wrapper_subclass",
    # Whether a call of a module runs more than its `forward`.
    "torch.nn.modules.module._has_any_global_hook",
    # oneDNN's matrix product, which PyTorch itself uses only on some processors.
    "torch.ops.mkldnn._linear_pointwise",
    # Trees and levels as inputs of `torch.compile` and `torch.export`. The public
    # `torch.export.register_dataclass` does not support fields that are not tensors.
    "torch.utils._pytree.SequenceKey",
    "torch.utils._pytree.register_pytree_node",
    "torch.utils._pytree.tree_leaves",
    "torch.utils._pytree.tree_map_only",
}

# Only tests, benchmarks and tools need these.
ELSEWHERE = {
    # Which operators and kernels are registered.
    "torch._C._dispatch_get_all_op_names",
    "torch._C._dispatch_has_kernel",
    "torch._C._dispatch_has_kernel_for_dispatch_key",
    # Kinds of tensors that a user may have.
    "torch.Tensor._make_wrapper_subclass",
    "torch._efficientzerotensor",
    "torch._neg_view",
    "torch._subclasses.FakeTensorMode",
    # Observes every operator, also in a backward pass.
    "torch.utils._python_dispatch.TorchDispatchMode",
    # Compiles an exported program ahead of time, as PyTorch documents it.
    "torch._inductor.aoti_compile_and_package",
    # Keeps a GPU busy while the next launches are queued.
    "torch.cuda._sleep",
    "torch.utils._pytree.keystr",
    "torch.utils._pytree.tree_flatten",
    "torch.utils._pytree.tree_leaves_with_path",
    "torch.utils._pytree.tree_map",
    "torch.utils._pytree.tree_unflatten",
    "torch.utils._pytree.treespec_dumps",
    "torch.utils._pytree.treespec_loads",
}

# Private attributes of objects of these packages.
ATTRIBUTES = {
    # What moves and converts a module, for a buffer that must stay in float32.
    "_apply",
    # The hooks that a call of a module runs.
    "_forward_pre_hooks",
    "_forward_hooks",
    "_backward_pre_hooks",
    "_backward_hooks",
    # How collation divided a batch, needed to separate attributes that are added later.
    "_slice_dict",
    "_inc_dict",
    "_num_graphs",
    # The data that a node store belongs to, which knows the number of clouds.
    "_parent",
    # The node type of a store.
    "_key",
    # A mask that PyG's explainers set on a layer.
    "_edge_mask",
    "_apply_sigmoid",
    # The module that `torch.compile` wrapped.
    "_orig_mod",
}


class Layer(MessagePassing):
    """Not the base class itself: making one changes every layer made after it."""


def objects():
    """One object of every type whose attributes are used."""
    batch = Batch.from_data_list([Data(pos=torch.zeros(1, 3))])
    modules = Module(), Layer(), torch.compile(Module())
    return batch, batch.stores[0], *modules, torch.zeros(1)


def is_private(name):
    return name.startswith("_") and not name.endswith("__")


def is_theirs(name):
    parts = name.split(".")
    return parts[0] in LIBRARIES and any(map(is_private, parts))


@cache
def sources():
    folders = ("torch_geometric_erwin", "tests", "benchmark", "tools", "examples")
    paths = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    return {path: ast.parse(path.read_text()) for path in sorted(paths)}


@cache
def own_names():
    """The names that the project itself defines, and those of a named tuple."""
    names = {"_asdict", "_fields", "_replace"}
    for node in (node for tree in sources().values() for node in ast.walk(tree)):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            names.add(node.attr)
    # An attribute that their objects have is not the project's, even if it is set here.
    theirs = {name for sample in objects() for name in dir(sample)}
    return names - theirs


def imported(tree):
    """The meanings of imported names in a file, and everything that is imported."""
    names, whole = {}, set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                first = alias.name.split(".")[0]
                names[alias.asname or first] = alias.name if alias.asname else first
                whole.add(alias.name)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                names[alias.asname or alias.name] = f"{node.module}.{alias.name}"
                whole.add(f"{node.module}.{alias.name}")
    return names, whole


def chain(node):
    """The expression at the start of ``a.b.c``, and the names after it."""
    names = []
    while isinstance(node, ast.Attribute):
        names.append(node.attr)
        node = node.value
    return node, names[::-1]


def used(tree):
    """The private names in a file that the project does not define."""
    names, whole = imported(tree)
    attributes = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    inner = {node.value for node in attributes}  # `a.b.c` counts once, as a whole
    found = set()
    for node in attributes:
        first, rest = chain(node)
        if isinstance(first, ast.Name) and first.id in names:
            if node not in inner:
                found.add(".".join([names[first.id], *rest]))
        elif is_private(node.attr):
            found.add(node.attr)
    # For an imported module, the names count that are used from it.
    found |= {
        name
        for name in whole
        if not any(other.startswith(f"{name}.") for other in found)
    }
    strings = {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant)}
    for node in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        name = getattr(node.func, "id", getattr(node.func, "attr", ""))
        if name in ("getattr", "hasattr", "setattr", "delattr") and len(node.args) > 1:
            text = getattr(node.args[1], "value", None)
            if isinstance(text, str) and is_private(text):
                found.add(text)
    found |= ATTRIBUTES & strings
    return {n for n in found if is_theirs(n) or ("." not in n and is_private(n))}


def all_used(*folders):
    return {
        name: path
        for path, tree in sources().items()
        if path.relative_to(ROOT).parts[0] in folders and path != Path(__file__)
        for name in used(tree)
    }


OTHERS = ("tests", "benchmark", "tools", "examples")


@pytest.mark.parametrize("folder", ["torch_geometric_erwin", *OTHERS])
def test_names_are_in_the_list(folder):
    listed = IN_PACKAGE | ATTRIBUTES | own_names()
    if folder != "torch_geometric_erwin":
        listed = listed | ELSEWHERE
    listed = listed | {name.rpartition(".")[2] for name in listed}
    for name, path in all_used(folder).items():
        assert name in listed, f"{name}, used in {path.relative_to(ROOT)}"


def test_what_is_listed_is_used():
    package, others = all_used("torch_geometric_erwin"), all_used(*OTHERS)
    assert package.keys() >= IN_PACKAGE
    assert others.keys() >= ELSEWHERE
    assert package.keys() | others.keys() >= ATTRIBUTES
    assert not IN_PACKAGE & ELSEWHERE


@pytest.mark.parametrize("name", sorted(IN_PACKAGE | ELSEWHERE))
def test_names_are_there(name):
    library, *rest = name.split(".")
    found = pytest.importorskip(library)
    for i, part in enumerate(rest):
        if not hasattr(found, part):  # a module that nothing has imported yet
            found = import_module(".".join([library, *rest[: i + 1]]))
        else:
            found = getattr(found, part)


@pytest.mark.parametrize("name", sorted(ATTRIBUTES))
def test_attributes_are_there(name):
    assert any(hasattr(sample, name) for sample in objects())


SAMPLE = """
import torch
import torch._inductor.config
from torch import _utils
from torch.utils import _pytree as pytree
from torch._guards import detect_fake_mode as detect
from os import _exit

pytree.tree_map(torch._C._get_schema, detect)
getattr(detect, "_version")
_exit(detect()._base)
torch.__version__, _utils
"""


def test_every_way_to_name_something_is_seen():
    assert used(ast.parse(SAMPLE)) == {
        *("torch._inductor.config", "torch._utils", "torch._guards.detect_fake_mode"),
        *("torch.utils._pytree.tree_map", "torch._C._get_schema", "_version", "_base"),
    }
