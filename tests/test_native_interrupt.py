"""Long calls end when their caller asks for it, for example by Ctrl-C."""

import ctypes
import signal
import subprocess
import sys
import threading

import pytest
import torch

from torch_geometric_erwin import _native

INTERRUPTED = 6
POINTS = 1_500_000  # a call takes much longer than 20 ms, the time until it asks
THREADS = pytest.mark.parametrize("threads", [1, 3])


class Asked:
    """The function that a call asks: it answers yes from the n-th time on."""

    def __init__(self, yes_from=0):
        self.threads, self.yes_from = [], yes_from
        self.callback = ctypes.CFUNCTYPE(ctypes.c_int32)(self.answer)

    def answer(self):
        self.threads.append(threading.get_ident())
        return int(len(self.threads) > self.yes_from)

    def context(self, threads):
        address = ctypes.cast(self.callback, ctypes.c_void_p).value
        return _native.Context(_native.HOST, threads, None, address)


def build(context, sizes, dim=3, rotated=False, dtype=torch.float32):
    """The status of a build, and the order that it computes."""
    points = sum(sizes)
    pos = torch.rand(points, dim, dtype=dtype, generator=torch.Generator())
    ptr = torch.tensor([0, *sizes]).cumsum(0)
    layout = _native.layout([16, 16], [2], "balanced")
    shape = (layout, _native.DTYPES[dtype])
    clouds = (ptr.data_ptr(), len(sizes), dim)
    size = _native.size_of("erwin_tree_workspace", *shape, *clouds)
    space, perm = torch.empty(size, dtype=torch.uint8), torch.empty(points).long()
    perm_rot = [torch.empty(points).long() for _ in range(2)]
    rotation = torch.eye(dim, dtype=dtype)
    status = _native._function("erwin_tree_build")(
        *(context, *shape, pos.data_ptr(), *clouds),
        rotation.data_ptr() if rotated else None,
        *(space.data_ptr(), size, perm.data_ptr(), None, _native.pointers(perm_rot)),
    )
    return status, perm


def assert_asked_by_the_caller(asked, times):
    assert asked.threads == [threading.get_ident()] * times


@THREADS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("sizes", "dim"),
    [([POINTS], 3), ([20_000] * (POINTS // 20_000), 2), ([POINTS // 4], 5)],
)
@pytest.mark.parametrize("rotated", [False, True])
def test_builds_stop(sizes, dim, rotated, dtype, threads):
    asked = Asked()
    status, _ = build(asked.context(threads), sizes, dim, rotated, dtype)
    assert status == INTERRUPTED
    assert_asked_by_the_caller(asked, 1)


@THREADS
def test_a_rotated_tree_stops(threads):
    # Most of the time is spent in a matrix product for each point.
    asked = Asked(yes_from=1)
    status, _ = build(asked.context(threads), [4000], 700, rotated=True)
    assert status == INTERRUPTED
    assert_asked_by_the_caller(asked, 2)


@THREADS
@pytest.mark.parametrize("name", ["erwin_knn", "erwin_radius_count"])
@pytest.mark.parametrize("clouds", [1, 100])
def test_searches_stop(name, clouds, threads):
    points = POINTS // 3
    pos, perm = torch.rand(points, 3), torch.arange(points // clouds).repeat(clouds)
    ptr = torch.arange(clouds + 1) * (points // clouds)
    layout, asked = _native.layout([16], [], "balanced"), Asked()
    first = (asked.context(threads), layout, 0)
    sizes = (ptr.data_ptr(), clouds, 3)
    size = _native.size_of("erwin_neighbors_workspace", *first, *sizes, None)
    space, edges = torch.empty(size, dtype=torch.uint8), torch.empty(2, 3 * points)
    edges = edges.long()
    scalars, outputs, found = {
        "erwin_knn": ((3,), edges, []),
        "erwin_radius_count": ((0.1, -1), edges[:1], [ctypes.c_void_p()]),
    }[name]
    args = (*first, pos.data_ptr(), *sizes, perm.data_ptr(), None, None, *scalars, 0)
    out = [x.data_ptr() for x in outputs]
    call = _native._function(name)
    assert call(*args, space.data_ptr(), size, *out, *found) == INTERRUPTED
    assert not any(found)  # nothing is left to be freed
    assert_asked_by_the_caller(asked, 1)


@THREADS
def test_no_is_no_end(threads):
    asked = Asked(yes_from=10**9)
    status, perm = build(asked.context(threads), [POINTS])
    assert status == 0
    assert asked.threads
    assert torch.equal(perm.sort().values, torch.arange(POINTS))


def test_a_short_call_does_not_ask():
    asked = Asked()
    assert build(asked.context(2), [50])[0] == 0
    assert not asked.threads


def test_contexts_ask_python():
    context = _native.context(torch.empty(0))
    callback = ctypes.CFUNCTYPE(ctypes.c_int32)(context.interrupted)
    assert callback() == 0


@pytest.fixture
def interrupted_once(monkeypatch):
    """Makes entry points return ERWIN_INTERRUPTED at their first call."""
    statuses = [0, INTERRUPTED]
    monkeypatch.setattr(_native, "_function", lambda name: lambda: statuses.pop())
    # A program that a shell starts in the background ignores the signal, and so do its
    # children.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield statuses
    signal.signal(signal.SIGINT, before)


def test_a_handler_that_raises_leaves_the_call(interrupted_once):
    with pytest.raises(KeyboardInterrupt):
        _native.call("erwin_knn")
    assert interrupted_once == [0]


def test_after_a_handler_that_returns_the_call_is_made_again(interrupted_once):
    signals = []
    before = signal.signal(signal.SIGINT, lambda *args: signals.append(args[0]))
    try:
        _native.call("erwin_knn")
    finally:
        signal.signal(signal.SIGINT, before)
    assert (interrupted_once, signals) == ([], [signal.SIGINT])


SCRIPT = """
import os, signal, threading, torch
from torch_geometric_erwin import ball_tree, knn_graph
signal.signal(signal.SIGINT, signal.default_int_handler)  # not ignored, as by parents
pos = torch.rand(2_000_000, 3)
for threads in (1, 3):
    torch.set_num_threads(threads)
    for call in (lambda: ball_tree(pos, ball_sizes=16), lambda: knn_graph(pos, 16)):
        result = None
        timer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT))
        try:
            timer.start()
            result = call()
            timer.join()
        except KeyboardInterrupt:
            print("stopped", result is None)
    print(knn_graph(torch.tensor([[0.0], [1.0], [3.0]]), 1).tolist())
"""


def test_ctrl_c():
    args = [sys.executable, "-c", SCRIPT]
    result = subprocess.run(args, capture_output=True, text=True, timeout=100)
    assert result.returncode == 0, result.stderr
    lines = ["stopped True", "stopped True", "[[1, 0, 1], [0, 1, 2]]"]
    assert result.stdout.splitlines() == 2 * lines


BUILD = """
import threading, time
import torch
from torch_geometric_erwin import ball_tree

pos = torch.rand(2_000_000, 3)
thread = threading.Thread(target=ball_tree, args=(pos,), kwargs={"ball_sizes": 16})
thread.start()
time.sleep(0.1)  # it is in the library now
"""


def test_the_interpreter_ends_while_another_thread_builds():
    command = [sys.executable, "-c", BUILD]
    child = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (child.returncode, child.stderr) == (0, "")


def test_a_call_that_goes_on_asks_no_more(monkeypatch):
    """If each signal started the call again, a signal every second could keep it from
    ending."""
    seen, handler = [], signal.signal(signal.SIGINT, lambda *_: None)
    try:
        context = _native.context(torch.zeros(1))

        def entry(context):
            seen.append(context.interrupted is None)
            return INTERRUPTED if len(seen) == 1 else 0

        monkeypatch.setattr(_native, "_function", lambda name: entry)
        _native.call("erwin_knn", context)
    finally:
        signal.signal(signal.SIGINT, handler)
    assert seen == [False, True]


def test_another_thread_asks_nobody():
    contexts = []
    thread = threading.Thread(
        target=lambda: contexts.append(_native.context(torch.zeros(1)))
    )
    thread.start()
    thread.join()
    contexts.append(_native.context(torch.zeros(1)))
    assert [c.interrupted is None for c in contexts] == [True, False]
