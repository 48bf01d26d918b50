import pytest
import torch

from torch_geometric_erwin import ball_tree, knn_interpolate

SIZES_X, SIZES_Y = [30, 2, 1, 0, 17], [12, 5, 40, 3, 0]


def offsets(sizes):
    return torch.tensor([0, *sizes]).cumsum(0)


def pyg_formula(x, pos_x, pos_y, ptr_x, ptr_y, k):
    """The formula of `torch_geometric.nn.unpool.knn_interpolate`, cloud by cloud."""
    out = []
    for g in range(len(ptr_x) - 1):
        here, there = slice(*ptr_x[g : g + 2]), slice(*ptr_y[g : g + 2])
        offset = pos_y[there, None] - pos_x[None, here]
        squared = offset.square().sum(dim=-1)
        near = squared.detach().sort(dim=1, stable=True).indices[:, :k]
        weight = 1.0 / squared.gather(1, near).clamp(min=1e-16)
        total = weight.sum(dim=1, keepdim=True)
        out.append((weight[:, :, None] * x[here][near]).sum(dim=1) / total)
    # A cloud without features gives 0 / 0.
    return torch.cat(out).nan_to_num(0.0)


def case(dim=3, dtype=torch.float64):
    generator = torch.Generator().manual_seed(dim)
    ptr_x, ptr_y = offsets(SIZES_X), offsets(SIZES_Y)
    pos_x = torch.randn(sum(SIZES_X), dim, dtype=dtype, generator=generator)
    pos_y = torch.randn(sum(SIZES_Y), dim, dtype=dtype, generator=generator)
    pos_y[:4] = pos_x[:4]  # at features
    x = torch.randn(sum(SIZES_X), 5, dtype=dtype, generator=generator)
    return x, pos_x, pos_y, ptr_x, ptr_y


@pytest.mark.parametrize("k", [1, 3, 100])
@pytest.mark.parametrize("dim", [1, 2, 3, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_formula_of_pyg(dtype, dim, k):
    x, pos_x, pos_y, ptr_x, ptr_y = case(dim, dtype)
    expected = pyg_formula(x, pos_x, pos_y, ptr_x, ptr_y, k)
    actual = knn_interpolate(x, pos_x, pos_y, k=k, ptr_x=ptr_x, ptr_y=ptr_y)
    torch.testing.assert_close(actual, expected)
    clouds = torch.arange(len(SIZES_X))
    batch = [clouds.repeat_interleave(ptr.diff()) for ptr in (ptr_x, ptr_y)]
    assert torch.equal(knn_interpolate(x, pos_x, pos_y, *batch, k), actual)
    tree = ball_tree(pos_x, ptr=ptr_x, ball_sizes=4, strides=[2])
    assert torch.equal(
        knn_interpolate(x, pos_x, pos_y, k=k, ptr_y=ptr_y, tree=tree), actual
    )


def test_gradients_of_features_and_positions():
    x, pos_x, pos_y, ptr_x, ptr_y = case()
    pos_y[:4] += 0.01  # weights have no gradient where points coincide
    inputs = [t.requires_grad_() for t in (x, pos_x, pos_y)]
    actual = knn_interpolate(*inputs, ptr_x=ptr_x, ptr_y=ptr_y)
    expected = pyg_formula(*inputs, ptr_x, ptr_y, 3)
    grad = torch.randn(actual.shape, dtype=actual.dtype)
    for a, b in zip(
        torch.autograd.grad(actual, inputs, grad),
        torch.autograd.grad(expected, inputs, grad),
        strict=True,
    ):
        torch.testing.assert_close(a, b)
        assert bool(a.abs().sum() > 0)

    def function(x, pos_x, pos_y):
        return knn_interpolate(x, pos_x, pos_y, k=2)

    small = x[:6, :2], pos_x[:6], pos_y[6:9]
    assert torch.autograd.gradcheck(function, small)
    assert torch.autograd.gradgradcheck(function, small)


@pytest.mark.parametrize("k", [2, 3, 9, 16, 31, 32, 33, 100])
@pytest.mark.parametrize("channels", [1, 5, 16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_cloud_has_the_same_bits_alone_and_beside_others(dtype, channels, k):
    generator = torch.Generator().manual_seed(k)
    # Clouds of all sizes around the vector widths of a CPU and around k.
    sizes = [5, 1, 0, 9, 13, 17, 33, 70, 110]
    ptr = offsets(sizes)
    pos = torch.randn(sum(sizes), 3, dtype=dtype, generator=generator)
    grid = torch.randn(len(pos), 3, dtype=dtype, generator=generator)
    x = torch.randn(len(pos), channels, dtype=dtype, generator=generator)
    x.requires_grad_()
    out = knn_interpolate(x, pos, grid, k=k, ptr_x=ptr, ptr_y=ptr)
    (grad,) = torch.autograd.grad(out.sum(), x)
    for start, end in zip(ptr[:-1].tolist(), ptr[1:].tolist(), strict=True):
        own = x[start:end].detach().requires_grad_()
        alone = knn_interpolate(own, pos[start:end], grid[start:end], k=k)
        assert torch.equal(alone, out[start:end])
        assert torch.equal(torch.autograd.grad(alone.sum(), own)[0], grad[start:end])


def test_gradients_have_the_same_bits_in_every_call():
    """Many points read the same rows, whose gradients are sums in a fixed order."""
    generator = torch.Generator().manual_seed(0)
    x, pos_x = torch.rand(2_000, 35, generator=generator).split([32, 3], dim=1)
    pos_y = torch.rand(50_000, 3, generator=generator)
    inputs = [t.contiguous().requires_grad_() for t in (x, pos_x, pos_y)]
    grad = torch.rand(50_000, 32, generator=generator)
    threads, found = torch.get_num_threads(), []
    for count in (1, 2, 2, 4):
        torch.set_num_threads(count)
        found.append(torch.autograd.grad(knn_interpolate(*inputs), inputs, grad))
    torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(map(torch.equal, found[0], other))


def test_positions_get_no_gradient_unasked_and_coincident_points_none():
    x, pos_x, pos_y, ptr_x, ptr_y = case()
    out = knn_interpolate(x, pos_x, pos_y, ptr_x=ptr_x, ptr_y=ptr_y)
    assert not out.requires_grad
    pos = pos_x[:1].clone().requires_grad_()
    (grad,) = torch.autograd.grad(knn_interpolate(x[:1], pos, pos_x[:1]).sum(), pos)
    assert bool(grad.eq(0).all())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_result_has_the_dtype_of_the_features(dtype):
    x, pos_x, pos_y, ptr_x, ptr_y = case()
    clouds = {"ptr_x": ptr_x, "ptr_y": ptr_y}
    expected = knn_interpolate(x, pos_x, pos_y, **clouds)
    mixed = knn_interpolate(x.to(dtype), pos_x, pos_y, **clouds)
    assert mixed.dtype == dtype
    torch.testing.assert_close(mixed.double(), expected, rtol=0.02, atol=0.02)
    half = [t.to(dtype) for t in (x, pos_x, pos_y)]
    exact = [half[0].float(), *[t.float() for t in half[1:]]]
    torch.testing.assert_close(
        knn_interpolate(*half, **clouds).float(),
        knn_interpolate(*exact, **clouds),
        rtol=0.02,
        atol=0.02,
    )


@pytest.mark.parametrize(("n", "m"), [(0, 4), (4, 0), (0, 0)])
def test_sets_without_points(n, m):
    x = torch.rand(n, 2, requires_grad=True)
    out = knn_interpolate(x, torch.rand(n, 3), torch.rand(m, 3))
    assert out.shape == (m, 2)
    assert bool(out.eq(0).all())
    out.sum().backward()


@pytest.mark.parametrize(
    ("error", "match", "kwargs"),
    [
        (ValueError, r"'x' must have shape \[4, C\] \(got \[3, 2\]\)", {"x": 3}),
        (TypeError, "'x' must be floating-point", {"x": torch.zeros(4, 2).long()}),
        (ValueError, r"'x' must have shape \[4, C\]", {"x": torch.zeros(4)}),
        (ValueError, "'pos_x' must be finite", {"pos_x": torch.zeros(4, 3) / 0}),
        (
            ValueError,
            "'pos_x' and 'pos_y' .* same number",
            {"pos_y": torch.zeros(5, 2)},
        ),
        (ValueError, "'pos_x' has 2 clouds", {"ptr_x": torch.tensor([0, 4, 4])}),
        (ValueError, "'k' must be at least 1", {"k": 0}),
    ],
)
def test_bad_input(error, match, kwargs):
    valid = {"x": torch.zeros(4, 2), "pos_x": torch.zeros(4, 3)}
    kwargs = {**valid, "pos_y": torch.zeros(5, 3), **kwargs}
    if isinstance(kwargs["x"], int):
        kwargs["x"] = torch.zeros(kwargs["x"], 2)
    with pytest.raises(error, match=match):
        knn_interpolate(**kwargs)
