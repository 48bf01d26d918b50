import pytest
import torch

from torch_geometric_erwin.utils.checks import (
    batch_to_ptr,
    check_pos,
    check_ptr,
    given_ptr,
)

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("dtype", "key"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_check_pos(dtype, key):
    pos = torch.tensor([[0.1, -3.0], [1e-3, 7.0]], dtype=dtype, requires_grad=True)
    checked = check_pos(pos)
    assert checked.dtype == key
    assert not checked.requires_grad
    assert torch.equal(checked.to(dtype), pos.detach())


@pytest.mark.parametrize("shape", [(0, 3), (4, 1), (2, 7)])
def test_check_pos_takes_any_size(shape):
    assert check_pos(torch.zeros(shape)).shape == shape


@pytest.mark.parametrize(
    ("pos", "error", "message"),
    [
        ([[0.0, 1.0]], TypeError, r"'pos' must be a tensor \(got 'list'\)"),
        (None, TypeError, r"'pos' must be a tensor \(got 'NoneType'\)"),
        (torch.zeros(3), ValueError, r"'pos' must have shape \[N, D\] \(got \[3\]\)"),
        (torch.zeros(3, 0), ValueError, r"shape \[N, D\] .*\(got \[3, 0\]\)"),
        (torch.zeros(1, 2, 3), ValueError, r"shape \[N, D\] \(got \[1, 2, 3\]\)"),
        (torch.zeros(3, 2).long(), TypeError, r"floating-point \(got torch.int64\)"),
        (torch.zeros(3, 2).cfloat(), TypeError, r"floating-point \(got torch.complex"),
        (
            torch.tensor([[0.0, 1.0], [2.0, float("nan")], [float("inf"), 0.0]]),
            ValueError,
            r"'pos' must be finite \(row 1 is \[2.0, nan\]\)",
        ),
        (
            torch.tensor([[1.0], [-torch.inf]], dtype=torch.float16),
            ValueError,
            r"'pos' must be finite \(row 1 is \[-inf\]\)",
        ),
    ],
)
def test_bad_pos(pos, error, message):
    with pytest.raises(error, match=message):
        check_pos(pos)


def test_check_ptr():
    assert check_ptr(None, 5, CPU).tolist() == [0, 5]
    assert check_ptr(None, 0, CPU).tolist() == [0, 0]
    for offsets in [[0], [0, 0], [0, 5], [0, 0, 2, 2, 5]]:
        ptr = torch.tensor(offsets)
        assert check_ptr(ptr, offsets[-1], CPU) is ptr


@pytest.mark.parametrize(
    ("ptr", "error", "message"),
    [
        ([0, 5], TypeError, r"'ptr' must be an int64 tensor \(got 'list'\)"),
        (torch.tensor([0, 5]).int(), TypeError, r"int64 tensor \(got torch.int32\)"),
        (torch.tensor([[0, 5]]), ValueError, r"shape \[G \+ 1\] \(got \[1, 2\]\)"),
        (torch.tensor(5), ValueError, r"shape \[G \+ 1\] \(got \[\]\)"),
        (torch.empty(0).long(), ValueError, r"shape \[G \+ 1\] \(got \[0\]\)"),
        (torch.tensor([1, 5]), ValueError, r"'ptr' must start at 0 \(got 1\)"),
        (
            torch.tensor([0, 4, 3, 5]),
            ValueError,
            r"'ptr' must not descend \(entry 1 is 4, entry 2 is 3\)",
        ),
        (
            torch.tensor([0, 4]),
            ValueError,
            r"'ptr' must end at the number of rows 5 \(got 4\)",
        ),
        (
            torch.tensor([0, 5], device="meta"),
            ValueError,
            "'ptr' is on meta, the positions are on cpu",
        ),
    ],
)
def test_bad_ptr(ptr, error, message):
    with pytest.raises(error, match=message):
        check_ptr(ptr, 5, CPU)


@pytest.mark.parametrize(
    ("batch", "num_clouds", "ptr"),
    [
        ([0, 0, 1, 1, 1], None, [0, 2, 5]),
        ([2, 2, 5], None, [0, 0, 0, 2, 2, 2, 3]),  # ids that do not start at 0
        ([0, 2], 4, [0, 1, 1, 2, 2]),
        ([], None, [0]),
        ([], 2, [0, 0, 0]),
    ],
)
def test_batch_to_ptr(batch, num_clouds, ptr):
    batch = torch.tensor(batch, dtype=torch.int64)
    assert batch_to_ptr(batch, num_clouds).tolist() == ptr
    strided = batch.repeat_interleave(2)[::2]
    assert batch_to_ptr(strided, num_clouds).tolist() == ptr


@pytest.mark.parametrize(
    ("batch", "error", "message"),
    [
        ([0, 1], TypeError, r"'batch' must be an int64 tensor \(got 'list'\)"),
        (torch.zeros(2), TypeError, r"int64 tensor \(got torch.float32\)"),
        (torch.zeros(2, 1).long(), ValueError, r"shape \[N\] \(got \[2, 1\]\)"),
        (
            torch.tensor([0, 1, 0]),
            ValueError,
            r"'batch' must be sorted \(entry 2 is 0 after 1\); sort the nodes by cloud",
        ),
        (torch.tensor([-1, 0]), ValueError, r"must not be negative \(got -1\)"),
        (torch.tensor([0, 3]), ValueError, "'batch' names cloud 3 of only 3 clouds"),
    ],
)
def test_bad_batch(batch, error, message):
    with pytest.raises(error, match=message):
        batch_to_ptr(batch, num_clouds=3)


@pytest.mark.parametrize("suffix", ["", "_x"])
def test_given_ptr(suffix):
    pos = torch.zeros(3, 2)
    batch, ptr = torch.tensor([0, 2, 2]), torch.tensor([0, 3])
    assert given_ptr(None, None, pos, suffix=suffix) is None
    assert given_ptr(None, ptr, pos, suffix=suffix) is ptr
    assert given_ptr(batch, None, pos, suffix=suffix).tolist() == [0, 1, 1, 3]
    for at_least, more in [(2, []), (3, []), (5, [3, 3])]:
        padded = given_ptr(batch, None, pos, at_least, suffix)
        assert padded.tolist() == [0, 1, 1, 3, *more]
    none = torch.zeros(0, 2), torch.empty(0, dtype=torch.int64)
    assert given_ptr(none[1], None, none[0], suffix=suffix).tolist() == [0]


@pytest.mark.parametrize("suffix", ["", "_x"])
@pytest.mark.parametrize(
    ("batch", "ptr", "error", "message"),
    [
        ([0, 0, 1], [0, 3], ValueError, "'batch{0}' and 'ptr{0}' say the same"),
        ([0, 3], None, ValueError, "each of 3 rows .got 2.; .* given as 'ptr{0}='"),
        ([0, 0, 1, 1], None, ValueError, "'batch{0}' must have an entry for each of 3"),
        ([1, 0, 0], None, ValueError, "'batch{0}' must be sorted .entry 1 is 0 after"),
        ([-1, 0, 0], None, ValueError, "'batch{0}' must not be negative"),
        ([[0], [0], [1]], None, ValueError, r"'batch{0}' .*shape \[N\] .got \[3, 1\]"),
        ([0.0, 1.0, 1.0], None, TypeError, "'batch{0}' must be an int64 tensor"),
    ],
)
def test_bad_given_ptr(batch, ptr, error, message, suffix):
    batch, ptr = torch.tensor(batch), None if ptr is None else torch.tensor(ptr)
    with pytest.raises(error, match=message.format(suffix)):
        given_ptr(batch, ptr, torch.zeros(3, 2), suffix=suffix)
