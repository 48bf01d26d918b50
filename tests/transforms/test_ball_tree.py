import copy
import pickle

import pytest
import torch
import torch_geometric.transforms as T
from torch_geometric.data import Batch, Data, HeteroData, InMemoryDataset
from torch_geometric.data.datapipes import DatasetAdapter
from torch_geometric.loader import DataLoader

from torch_geometric_erwin import Tree, TreeConfig
from torch_geometric_erwin.transforms import BallTree
from torch_geometric_erwin.tree.builder import build_tree
from torch_geometric_erwin.tree.reading import store_ptr

SIZES = [37, 5, 0, 1, 64]
TRANSFORMS = [
    BallTree(8, [2, 2]),
    BallTree([8, 5], [3], rotate=0),
    BallTree([8, 8, 4], [4, 2], rotate=-30, layout="perfect"),
    BallTree(8, ties="coordinates"),
    BallTree([8, 4], [2], runs=[[16, 2], [3]]),
]
NAMES = ["balanced", "no rotation", "perfect", "flat", "runs"]
each_transform = pytest.mark.parametrize("transform", TRANSFORMS, ids=NAMES)


def cloud(n, seed=0):
    generator = torch.Generator().manual_seed(1000 * seed + n)
    edges = torch.randint(max(n, 1), (2, 2 * n), generator=generator)
    return Data(
        x=torch.randn(n, 4, generator=generator),
        pos=torch.randn(n, 3, generator=generator),
        edge_index=edges,
    )


def clouds():
    return [cloud(n) for n in SIZES]


def molecule(atoms, residues):
    data = HeteroData()
    data["atom"].pos = cloud(atoms).pos
    data["residue"].pos = cloud(residues, seed=1).pos
    data["residue"].x = cloud(residues).x
    data["element"].x = cloud(4).x  # without positions
    data["atom", "bond", "atom"].edge_index = cloud(atoms).edge_index
    return data


def molecules():
    return [molecule(13, 3), molecule(40, 8), molecule(1, 1)]


def values(data):
    """The attributes of every store, except those that only a batch has."""
    hidden = ("batch", "ptr")
    return [
        {key: value for key, value in store.items() if key not in hidden}
        for store in data.stores
    ]


def assert_same(a, b):
    for x, y in zip(values(a), values(b), strict=True):
        assert x.keys() == y.keys()
        for key, value in x.items():
            if isinstance(value, torch.Tensor):
                assert value.dtype == y[key].dtype, key
                assert torch.equal(value, y[key]), key
            else:
                assert value == y[key], key


def check(data, config):
    """Reads and checks a tree as a model does before it uses it."""
    tree = Tree.from_data(data, config)
    ptr = store_ptr(data)
    ptr = torch.tensor([0, data.num_nodes]) if ptr is None else ptr
    tree.validate(data.num_nodes, config, ptr)


@each_transform
def test_attributes(transform):
    config = transform.config
    data = transform(cloud(37))
    check(data, config)
    tree = build_tree(data.pos, None, config, transform.ties)
    expected = {"perm": tree.perm, "level": tree.level}
    expected["tree_node"] = torch.arange(37)
    # Without a rotated tree alone, groups cannot be told from the rest.
    for name in ["ball_len", "perm_rot" if config.rotate else "group_len"]:
        for l, tensor in enumerate(getattr(tree, name)):
            expected[f"{name}_{l}"] = tensor
    for l, sizes in enumerate(config.runs):
        for size, tensor in zip(sizes, tree.runs[l], strict=True):
            expected[f"run_len_{l}_{size}"] = tensor
    expected = {name: tensor.int() for name, tensor in expected.items()}
    expected["tree_config"] = str(config)
    expected["tree_code"] = torch.tensor([[*config.numbers, 37]])
    if config.layout == "perfect":
        expected["perm_mask"] = tree.mask
    assert_same(data, Data(**cloud(37).to_dict(), **expected))
    assert data.level.shape == (1, config.num_levels)


@pytest.mark.parametrize("layout", ["balanced", "perfect"])
@pytest.mark.parametrize("rotate", [0.0, 45.0])
@pytest.mark.parametrize("strides", [[], [2], [2, 2, 2, 2]])
def test_number_of_tensors(strides, rotate, layout):
    # Attributes that a loader must collate, move and separate; the text is not one.
    levels = len(strides) + 1
    for data in [cloud(37), Batch.from_data_list(clouds())]:
        out = BallTree(8, strides, rotate, layout)(data)
        new = [out[name] for name in {*out.keys()} - {*data.keys()}]
        count = sum(isinstance(value, torch.Tensor) for value in new)
        assert count == len(new) - 1  # the text
        assert count - (layout == "perfect") <= 2 * levels + 4
        expected = levels + (levels if rotate else levels - 1) + 4
        assert count == expected + (layout == "perfect")


def test_repr():
    assert str(BallTree(8, [2], rotate=30)) == (
        "BallTree(ball_sizes=[8, 8], strides=[2], rotate=30.0, layout='balanced', "
        "ties='index')"
    )
    assert str(BallTree([4], layout="perfect", ties="coordinates")) == (
        "BallTree(ball_sizes=[4], strides=[], rotate=45.0, layout='perfect', "
        "ties='coordinates')"
    )
    assert str(BallTree([8, 4], [2], runs=[[16, 2], []])) == (
        "BallTree(ball_sizes=[8, 4], strides=[2], rotate=45.0, layout='balanced', "
        "ties='index', runs=[[2, 16], []])"
    )
    for transform in TRANSFORMS:
        assert vars(eval(repr(transform))) == vars(transform)


def test_functional_name():
    pipe = DatasetAdapter(clouds()).ball_tree(8, strides=[2])
    for data, expected in zip(pipe, map(BallTree(8, [2]), clouds()), strict=True):
        assert_same(data, expected)
    (batch,) = DatasetAdapter(clouds()).batch_graphs(len(SIZES)).ball_tree(8, [2])
    assert_same(batch, BallTree(8, [2])(Batch.from_data_list(clouds())))


@each_transform
def test_input_is_not_changed(transform):
    for data in [cloud(37), Batch.from_data_list(clouds()), molecule(13, 3)]:
        before = copy.deepcopy(data)
        slices = list(data._slice_dict) if isinstance(data, Batch) else None
        transform(data)
        assert_same(data, before)
        assert slices is None or list(data._slice_dict) == slices


@each_transform
@pytest.mark.parametrize("make", [clouds, molecules])
def test_before_batching_equals_after_batching(make, transform):
    single = [transform(data) for data in make()]
    before = Batch.from_data_list(single)
    after = transform(Batch.from_data_list(make()))
    assert_same(before, after)
    for batch in [before, after]:
        for a, b in zip(batch.to_data_list(), single, strict=True):
            assert_same(a, b)
        for i, data in zip([2, 0], batch.index_select([2, 0]), strict=True):
            assert_same(data, single[i])
        again = Batch.from_data_list(batch.to_data_list())
        assert_same(again, before)


@each_transform
@pytest.mark.parametrize("make", [clouds, molecules])
def test_batch_of_one(make, transform):
    for data in make():
        before = Batch.from_data_list([transform(data)])
        after = transform(Batch.from_data_list([data]))
        assert_same(before, after)
        assert_same(after.to_data_list()[0], transform(data))


@each_transform
def test_hetero_data(transform):
    data = transform(molecule(40, 8))
    for kind in ["atom", "residue"]:
        expected = transform(Data(pos=data[kind].pos))
        check(Data(**data[kind].to_dict()), transform.config)
        for key, value in expected.to_dict().items():
            same = torch.equal if isinstance(value, torch.Tensor) else str.__eq__
            assert same(data[kind][key], value)
    assert list(data["element"].keys()) == ["x"]


class Clouds(InMemoryDataset):
    @property
    def raw_file_names(self):
        return []

    @property
    def processed_file_names(self):
        return ["data.pt"]

    def __init__(self, root, make=clouds, **kwargs):
        self.make = make
        super().__init__(root, **kwargs)
        self.load(self.processed_paths[0], data_cls=type(make()[0]))

    def process(self):
        self.save(list(map(self.pre_transform, self.make())), self.processed_paths[0])


@each_transform
@pytest.mark.parametrize("make", [clouds, molecules, lambda: [cloud(9)]])
def test_in_memory_dataset(make, transform, tmp_path):
    for _ in range(2):  # processed, then loaded
        dataset = Clouds(tmp_path, make, pre_transform=transform, log=False)
        expected = [transform(data) for data in make()]
        for a, b in zip(dataset, expected, strict=True):
            assert_same(a, b)
        (batch,) = DataLoader(dataset, batch_size=len(expected))
        assert_same(batch, Batch.from_data_list(expected))


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # Python >= 3.12
def test_data_loader_with_workers():
    transform = BallTree(8, [2])
    loader = DataLoader(
        DatasetOf([cloud(n) for n in (30, 5, 64, 7)], transform),
        batch_size=2,
        num_workers=2,
        timeout=120,  # seconds; a deadlock would hang
    )
    for batch, sizes in zip(loader, [(30, 5), (64, 7)], strict=True):
        expected = transform(Batch.from_data_list([cloud(n) for n in sizes]))
        assert_same(batch, expected)
        check(batch, transform.config)


class DatasetOf(torch.utils.data.Dataset):
    def __init__(self, data, transform):
        self.data, self.transform = data, transform

    def __len__(self):
        return len(self.data)

    def __getitem__(self, i):
        return self.transform(self.data[i])


@each_transform
@pytest.mark.parametrize("make", [clouds, molecules])
def test_copies(make, transform):
    single, batch = transform(make()[0]), transform(Batch.from_data_list(make()))
    for twin in [copy.copy, copy.deepcopy, lambda d: pickle.loads(pickle.dumps(d))]:
        assert_same(twin(single), single)
        for a, b in zip(twin(batch).to_data_list(), make(), strict=True):
            assert_same(a, transform(b))
    assert_same(pickle.loads(pickle.dumps(transform))(make()[0]), single)


@each_transform
@pytest.mark.parametrize("before", TRANSFORMS, ids=NAMES)
@pytest.mark.parametrize("make", [clouds, molecules])
def test_another_tree_replaces_the_first(make, before, transform):
    for data in make():
        assert_same(transform(before(data)), transform(data))
    expected = transform(Batch.from_data_list(make()))
    for batch in [
        transform(before(Batch.from_data_list(make()))),
        transform(Batch.from_data_list([before(data) for data in make()])),
    ]:
        assert_same(batch, expected)
        for a, b in zip(batch.to_data_list(), make(), strict=True):
            assert_same(a, transform(b))


def test_sorted_batch_without_ptr():
    batch = Batch.from_data_list(clouds())
    data = BallTree(8, [2])(Data(pos=batch.pos, batch=batch.batch))
    expected = BallTree(8, [2])(batch)
    for name in ["perm", "level", "ball_len_1", "perm_rot_1"]:
        assert torch.equal(data[name], expected[name])


def test_ptr_without_batch():
    data = BallTree(8)(Data(pos=torch.rand(10, 3), ptr=torch.tensor([0, 4, 4, 10])))
    assert data.level.tolist() == [[4], [0], [6]]


@each_transform
@pytest.mark.parametrize(
    "change",
    [
        lambda data: data.subgraph(torch.arange(20)),
        lambda data: data.subgraph(torch.arange(37).flip(0)[:36]),
        lambda data: data.subgraph(torch.rand(37) > 1.0),
        T.FixedPoints(20, replace=False),
        T.FixedPoints(74, replace=True),
        T.FixedPoints(37, replace=True),
        lambda data: data.subgraph(torch.arange(37).roll(1)),
    ],
    ids=["subgraph", "filtered", "emptied", "sampled", "repeated", "same", "reordered"],
)
def test_a_stale_tree_is_refused(change, transform):
    data = change(transform(cloud(37)))
    with pytest.raises(
        ValueError, match=r"does not fit its data.*apply 'BallTree' again"
    ):
        check(data, transform.config)
    check(transform(data), transform.config)


def test_a_stale_tree_in_a_batch_is_refused():
    transform = BallTree(8, [2])
    data = [transform(cloud(n)) for n in (20, 30)]
    batch = Batch.from_data_list([data[0], data[1].subgraph(torch.arange(25))])
    with pytest.raises(ValueError, match="does not fit its data"):
        check(batch, transform.config)


def test_nodes_removed_from_a_batch():
    transform = BallTree(8, [2])
    batch = transform(Batch.from_data_list(clouds()))
    fewer = batch.subgraph(torch.arange(50))
    with pytest.raises(ValueError, match="does not fit its data"):
        check(fewer, transform.config)


def test_positions_replaced_by_fewer():
    transform = BallTree(8, [2])
    data = transform(Data(pos=torch.rand(20, 3)))
    data.pos = data.pos[:19]
    with pytest.raises(ValueError, match="does not fit its data"):
        check(data, transform.config)


def test_a_tree_for_other_ball_sizes_is_refused():
    data = BallTree(8, [2])(cloud(37))
    with pytest.raises(
        ValueError, match=r"built for 'balls=8,8 .*'model.tree_transform"
    ):
        Tree.from_data(data, TreeConfig(16, (2,)))


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (Data(x=torch.rand(3, 2)), ValueError, "needs node positions: 'data.pos'"),
        (HeteroData(), ValueError, "needs node positions: 'data.pos'"),
        (Data(pos=torch.zeros(3)), ValueError, r"'pos' must have shape \[N, D\]"),
        (Data(pos=torch.zeros(3, 2).long()), TypeError, "'pos' must be floating-point"),
        (Data(pos=torch.full((3, 2), torch.nan)), ValueError, "finite .row 0"),
        (
            Data(pos=torch.zeros(3, 2), batch=torch.tensor([0, 1, 0])),
            ValueError,
            "'batch' must be sorted",
        ),
    ],
)
def test_bad_data(data, error, message):
    with pytest.raises(error, match=message):
        BallTree(8)(data)


def test_bad_arguments_are_refused_at_construction():
    with pytest.raises(ValueError, match="'ball_sizes' must be at least 1"):
        BallTree(0)
    with pytest.raises(ValueError, match="'ball_sizes' has 2 values and 'strides' 2"):
        BallTree([8, 8], [2, 2])
    with pytest.raises(ValueError, match="'ties' must be one of"):
        BallTree(8, ties="random")
