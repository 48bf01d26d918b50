r"""Measures the time and memory of implementations, in new processes.

A :class:`Case` has workloads, and a :class:`Workload` has named implementations, one of
which is the baseline. At every repeat all implementations get the same new input, one
after the other. The result is the median over repeats of the ratio to the baseline.
"""

import ctypes
import gc
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Optional

import numpy as np
import torch
from tqdm import tqdm

ROOT = Path(__file__).parents[1]

#: Settings of glibc's allocator. By default the memory of every large tensor is taken
#: from the kernel and returned to it; `tuned` keeps the pages.
ALLOCATORS: dict[str, dict[str, str]] = {
    "default": {},
    "tuned": {
        "MALLOC_MMAP_THRESHOLD_": str(2**32),
        "MALLOC_TRIM_THRESHOLD_": str(2**34),
        "MALLOC_TOP_PAD_": str(2**26),
    },
}

Run = Callable[[Any], Any]


def wall_seconds(run: Run, inputs: Any) -> float:
    r"""How long a call takes on the host.

    Args:
        run: The function.
        inputs: Its argument.
    """
    start = time.perf_counter()
    output = run(inputs)
    seconds = time.perf_counter() - start
    del output
    return seconds


def steady_seconds(run: Run, inputs: Any) -> float:
    r"""How long a call takes if it is repeated many times: the median.

    Args:
        run: The function.
        inputs: Its argument.
    """
    calls = [wall_seconds(run, inputs) for _ in range(120)]
    return float(np.median(calls[20:]))


def cuda_seconds(run: Run, inputs: Any) -> float:
    r"""How long the GPU works on a call.

    The GPU is kept busy until everything is launched, so that the time that the host
    needs, mainly for Python, is not measured.

    Args:
        run: The function.
        inputs: Its argument.
    """
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(10_000_000)  # cycles
    start.record()
    output = run(inputs)
    end.record()
    end.synchronize()
    del output
    return start.elapsed_time(end) / 1e3


def synchronised_seconds(run: Run, inputs: Any) -> float:
    r"""How long it takes until the GPU has finished a call, including the host's part.

    Args:
        run: The function.
        inputs: Its argument.
    """
    torch.cuda.synchronize()

    def until_done(inputs: Any) -> Any:
        output = run(inputs)
        torch.cuda.synchronize()
        return output

    return wall_seconds(until_done, inputs)


def host_peak(run: Run, inputs: Any) -> int:
    r"""The peak of the host's memory that a call adds, in bytes.

    Args:
        run: The function.
        inputs: Its argument.
    """
    before = _reset_peak()
    output = run(inputs)
    peak = _memory("VmHWM") - before
    del output
    return peak


def cuda_peak(run: Run, inputs: Any) -> int:
    r"""The peak of a GPU's memory that a second call adds, in bytes.

    The first call allocates memory that is kept, such as gradients of weights.

    Args:
        run: The function.
        inputs: Its argument.
    """
    run(inputs)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    output = run(inputs)
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - before
    del output
    return peak


class UnavailableError(Exception):
    r"""An implementation cannot run on this machine; the message says why."""


@dataclass(frozen=True)
class Workload:
    r"""What is measured at one size.

    Args:
        name: Its name in the case.
        make_inputs: Makes the inputs of a repeat from its seed.
        implementations: By name, functions that import and prepare an implementation
            and return the function of the inputs that is timed. They raise
            :class:`ImportError` or :class:`UnavailableError` if it is not available.
        baseline: The name of the implementation with which others are compared.
        compare: Called with the inputs, the outputs of the baseline and those of
            another implementation; raises :class:`AssertionError` if they disagree.
        params: The parameters that distinguish it, for tables and plots.
        apart: Implementations that compute something else and are not compared.
        seconds: Measures the time of a call, in seconds.
        peak: Measures the memory that a call adds, in bytes.
        calls: How many calls are timed while another process runs.
    """

    name: str
    make_inputs: Callable[[int], Any]
    implementations: Mapping[str, Callable[[], Run]]
    baseline: str
    compare: Callable[[Any, Any, Any], None]
    params: Mapping[str, Any] = field(default_factory=dict)
    apart: frozenset[str] = frozenset()
    seconds: Callable[[Run, Any], float] = wall_seconds
    peak: Callable[[Run, Any], int] = host_peak
    calls: int = 150


@dataclass(frozen=True)
class Case:
    r"""A benchmark by name.

    Args:
        name: Its name on the command line.
        title: The question that it answers.
        workloads: Returns its workloads for ``full``, ``quick`` or ``tiny``.
        measures: What is measured: ``time``, ``memory`` or ``contention``.
        allocators: Names of :data:`ALLOCATORS`.
        serial: Whether it is also measured on one thread, not only on all cores.
        plot: How it is drawn: ``ratios`` or ``scaling``.
        environment: Environment variables of the measuring processes.
    """

    name: str
    title: str
    workloads: Callable[[str], Iterable[Workload]]
    measures: tuple[str, ...] = ("time",)
    allocators: tuple[str, ...] = ("default",)
    serial: bool = False
    plot: str = "ratios"
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Job:
    r"""What one process measures."""

    case: str
    size: str
    measure: str
    threads: int
    allocator: str = "default"
    repeats: Optional[int] = None
    seed: int = 1
    workloads: tuple[str, ...] = ()
    only: Optional[str] = None  # the only implementation to measure
    environment: Mapping[str, str] = field(default_factory=dict)
    failed: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


# ---- arithmetic


def summary(values: Iterable[float]) -> dict[str, Any]:
    r"""Median and quartiles.

    Args:
        values: At least one.
    """
    q1, median, q3 = np.percentile(np.asarray([*values], float), [25, 50, 75]).tolist()
    return {"median": median, "quartiles": [q1, q3]}


def summarise(
    values: Mapping[str, list[float]], baseline: str
) -> dict[str, dict[str, Any]]:
    r"""For every implementation, the median, and the median ratio to the baseline.

    A ratio is the baseline's value divided by the implementation's in the same repeat:
    above one, the implementation is better.

    Args:
        values: For every implementation, one value per repeat.
        baseline: The name of the baseline; without its values there are no ratios.
    """
    records: dict[str, dict[str, Any]] = {}
    for name, own in values.items():
        records[name] = {"status": "ok", "values": own, **summary(own)}
        if baseline in values:
            pairs = zip(values[baseline], own)
            records[name]["ratio"] = summary(b / max(v, 1e-12) for b, v in pairs)
    return records


def repeats_for(seconds: float, wanted: Optional[int], budget: float = 4.0) -> int:
    r"""How often to repeat: as often as the budget allows, but at least 5 times, or 3
    times if one repeat takes most of the budget.

    Args:
        seconds: The time of one repeat of everything.
        wanted: A number that overrides the budget.
        budget: Seconds.
    """
    least = 5 if seconds < 0.6 * budget else 3
    return wanted or min(max(int(budget / max(seconds, 1e-9)), least), 25)


# ---- in the measuring process


def load(workload: Workload, job: Optional[Job] = None) -> tuple[dict, dict]:
    r"""The implementations that can run, and for others a record with the reason.

    Args:
        workload: The workload.
        job: Says which implementations are wanted, and which have failed before.
    """
    runs: dict[str, Run] = {}
    records: dict[str, dict[str, Any]] = {}
    failed = job.failed.get(workload.name, {}) if job is not None else {}
    for name, loader in workload.implementations.items():
        if job is not None and job.only not in (None, name):
            continue
        if name in failed:
            records[name] = {"status": "failed", "reason": failed[name]}
            continue
        try:
            runs[name] = loader()
        except (ImportError, UnavailableError) as error:
            records[name] = {"status": "skipped", "reason": str(error)}
    return runs, records


def check(workload: Workload, inputs: Any, outputs: Mapping[str, Any]) -> dict:
    r"""Compares all outputs with the baseline's or, without it, with the first ones.

    Args:
        workload: The workload.
        inputs: The inputs.
        outputs: The outputs by implementation.

    Returns:
        The message for every implementation that disagrees.
    """
    same = [name for name in outputs if name not in workload.apart]
    if not same:
        return {}
    expected = workload.baseline if workload.baseline in same else same[0]
    errors = {}
    for name in same:
        try:
            workload.compare(inputs, outputs[expected], outputs[name])
        except AssertionError as error:
            errors[name] = f"disagrees with '{expected}': {_first_line(error)}"
    return errors


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def time_workload(
    workload: Workload, job: Job, say: Callable[..., None]
) -> dict[str, dict[str, Any]]:
    r"""Times all implementations in turn, with a new input at every repeat.

    Args:
        workload: The workload.
        job: The number of repeats, if it is fixed.
        say: Reports progress.
    """
    runs, records = load(workload, job)
    inputs, outputs, first = workload.make_inputs(0), {}, 0.0
    for name in [*runs]:
        say(running=name)
        start = time.perf_counter()
        try:
            outputs[name] = runs[name](inputs)
        except (RuntimeError, ValueError, MemoryError) as error:
            records[name] = {"status": "failed", "reason": _first_line(error)}
            del runs[name]
        first += time.perf_counter() - start
    for name, reason in check(workload, inputs, outputs).items():
        records[name] = {"status": "failed", "reason": reason}
        del runs[name]
    del outputs
    values: dict[str, list[float]] = {name: [] for name in runs}
    names, repeats = [*runs], repeats_for(first, job.repeats)
    for repeat in range(repeats):
        gc.collect()
        inputs = workload.make_inputs(repeat + 1)
        # The first one changes, so that no implementation always finds inputs in the
        # cache.
        shift = repeat % max(len(names), 1)
        for name in names[shift:] + names[:shift]:
            say(running=name, done=repeat, of=repeats)
            values[name].append(workload.seconds(runs[name], inputs))
    measured = summarise(values, workload.baseline)
    return {n: {**measured, **records}[n] for n in workload.implementations}


def measure_memory(
    workload: Workload, job: Job, say: Callable[..., None]
) -> dict[str, dict[str, Any]]:
    r"""The peak of the memory that a single call adds, in bytes.

    Args:
        workload: The workload.
        job: Names the implementation and the seed.
        say: Reports progress.
    """
    runs, records = load(workload, job)
    inputs = workload.make_inputs(job.seed)
    for name, run in runs.items():
        say(running=name)
        peak = workload.peak(run, inputs)
        records[name] = {"status": "ok", "values": [float(peak)]}
    return records


def _memory(entry: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(l.split()[1]) * 1024 for l in lines if l.startswith(entry))


def _reset_peak() -> int:
    # Not `ru_maxrss`, because a child process inherits the value of its parent.
    if not Path("/proc/self/clear_refs").exists():
        raise UnavailableError("the peak memory is read from Linux's /proc")
    gc.collect()
    with suppress(AttributeError):  # otherwise free pages would be reused
        ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return _memory("VmRSS")


def time_alone(
    workload: Workload, job: Job, say: Callable[..., None]
) -> dict[str, dict[str, Any]]:
    r"""Times calls of one implementation, starting when standard input is closed.

    Args:
        workload: The workload.
        job: Names the implementation.
        say: Reports progress.
    """
    runs, records = load(workload, job)
    repeats = workload.calls // 3 * (job.repeats or 3)
    inputs = [workload.make_inputs(job.seed + i) for i in range(repeats + 3)]
    for name, run in runs.items():
        for item in inputs[:3]:
            run(item)
        say(ready=name)
        sys.stdin.read()
        values = [workload.seconds(run, item) for item in inputs[3:]]
        records[name] = {"status": "ok", "values": values}
    return records


_MEASURES = {
    "time": time_workload,
    "memory": measure_memory,
    "contention": time_alone,
}


def work(cases: Mapping[str, Case], text: str) -> None:
    r"""Does a job and writes one line of JSON per event.

    Args:
        cases: The cases by name.
        text: The job as JSON.
    """
    job = Job(**json.loads(text))
    events = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # so that printed text does not mix with events
    torch.set_num_threads(job.threads)
    gc.disable()  # garbage is collected between repeats only
    gc.freeze()
    for workload in cases[job.case].workloads(job.size):
        if workload.name not in job.workloads:
            continue

        def say(name: str = workload.name, **event: Any) -> None:
            events.write(json.dumps({"workload": name, **event}) + "\n")

        say(running=None)
        say(result=_MEASURES[job.measure](workload, job, say))


# ---- in the main process


def start(job: Job) -> "subprocess.Popen[str]":
    r"""Starts a process with the job's threads and allocator.

    Args:
        job: The job.
    """
    threads = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    clean = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    env = {
        **clean,
        **dict.fromkeys(threads, str(job.threads)),
        **ALLOCATORS[job.allocator],
        **job.environment,
    }
    command = [sys.executable, "-m", "benchmark", "--worker", json.dumps(asdict(job))]
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command, env=env, cwd=ROOT, stdin=pipe, stdout=pipe, text=True
    )


def events(process: "subprocess.Popen[str]", limit: float) -> Iterator[dict[str, Any]]:
    r"""The events of a process, which is killed if it reports nothing for too long.

    Args:
        process: The process.
        limit: Seconds.
    """
    assert process.stdout is not None
    while True:
        timer = threading.Timer(limit, process.kill)
        timer.start()
        line = process.stdout.readline()
        timer.cancel()
        if not line:
            return
        yield json.loads(line)


def run_job(
    job: Job, limit: float, bar: "Optional[tqdm[Any]]" = None
) -> Iterator[tuple[str, dict[str, Any]]]:
    r"""Runs a job; if an implementation ends the process, runs it again without that.

    Args:
        job: The job.
        limit: Seconds that a single call may take.
        bar: Shows the progress.
    """
    pending = [*job.workloads]
    failed: dict[str, dict[str, str]] = {}
    while pending:
        current, running, began = pending[0], None, time.monotonic()
        with start(replace(job, workloads=tuple(pending), failed=failed)) as process:
            for event in events(process, limit):
                current = event["workload"]
                if "result" in event:
                    yield current, event["result"]
                    pending.remove(current)
                    continue
                running, began = event["running"], time.monotonic()
                part = f"{event['done'] + 1}/{event['of']} " if "of" in event else ""
                if bar is not None:
                    bar.set_postfix_str(f"{current}: {part}{running or 'inputs'}")
        if not pending:
            return
        reason = _reason(process.returncode, time.monotonic() - began, limit)
        if running is None:  # its inputs or imports failed, so nothing can be measured
            yield current, {"inputs": {"status": "failed", "reason": reason}}
            pending.remove(current)
        else:
            failed.setdefault(current, {})[running] = reason


def _reason(status: int, seconds: float, limit: float) -> str:
    if seconds >= limit:
        return f"out of time: more than {limit:g} s"
    if status < 0:
        with suppress(ValueError):
            return f"killed by {signal.Signals(-status).name}"
    return f"its process ended with status {status}"


def _run_apart(
    job: Job, workloads: Mapping[str, Workload], limit: float, bar: "tqdm[Any]"
) -> Iterator[tuple[str, dict[str, Any]]]:
    # One process per call, because the peak of memory can be read only once.
    for name in job.workloads:
        values: dict[str, list[float]] = {}
        records: dict[str, dict[str, Any]] = {}
        for own in workloads[name].implementations:
            for seed in range(1, (job.repeats or 2) + 1):
                bar.set_postfix_str(f"{name}: {seed} {own}")
                one = replace(job, workloads=(name,), only=own, seed=seed)
                ((_, result),) = run_job(one, limit)
                records[own] = result.get(own) or result["inputs"]
                if records[own]["status"] != "ok":
                    values.pop(own, None)
                    break
                values.setdefault(own, []).extend(records[own]["values"])
        bar.update()
        yield name, records | summarise(values, workloads[name].baseline)


def _run_pairs(
    job: Job, workloads: Mapping[str, Workload], limit: float, bar: "tqdm[Any]"
) -> Iterator[tuple[str, dict[str, Any]]]:
    # How much slower a call is while a second process makes the same calls.
    for name in job.workloads:
        values: dict[str, list[float]] = {}
        records: dict[str, dict[str, Any]] = {}
        for own in workloads[name].implementations:
            bar.set_postfix_str(f"{name}: {own}")
            one = replace(job, workloads=(name,), only=own)
            alone, *_ = _run_together([one], limit)
            pair = _run_together([one, replace(one, seed=10**6)], limit)
            bad = next((r for r in (alone, *pair) if r["status"] != "ok"), None)
            if bad is not None:
                records[own] = bad
                continue
            base = summary(alone["values"])
            values[own] = [v / base["median"] for r in pair for v in r["values"]]
            records[own] = {"alone": base}
        bar.update()
        measured = summarise(values, workloads[name].baseline)
        yield name, {n: {**r, **measured.get(n, {})} for n, r in records.items()}


def _run_together(jobs: list[Job], limit: float) -> list[dict[str, Any]]:
    with ExitStack() as stack:
        processes = [stack.enter_context(start(job)) for job in jobs]
        streams = [events(process, limit) for process in processes]
        # Wait until each is ready or has nothing to run.
        first = [_until(stream, ("ready", "result")) for stream in streams]
        for process in processes:
            assert process.stdin is not None
            process.stdin.close()  # this starts them
        last = [
            event if event is None or "result" in event else _until(stream, ("result",))
            for event, stream in zip(first, streams)
        ]
    return [
        event["result"][job.only]
        if event is not None
        else {"status": "failed", "reason": _reason(process.returncode, 0, limit)}
        for job, process, event in zip(jobs, processes, last)
    ]


def _until(
    stream: Iterator[dict[str, Any]], kinds: tuple[str, ...]
) -> Optional[dict[str, Any]]:
    return next((e for e in stream if any(kind in e for kind in kinds)), None)


def run_case(
    case: Case,
    size: str,
    threads: Iterable[int],
    repeats: Optional[int] = None,
    limit: float = 60.0,
    only: str = "",
) -> list[dict[str, Any]]:
    r"""Measures a case under all its settings.

    Args:
        case: The case.
        size: ``full``, ``quick`` or ``tiny``.
        threads: The numbers of threads.
        repeats: The number of repeats. (default: what a budget of time allows)
        limit: Seconds that a single call may take.
        only: A text that the names of the wanted workloads contain.

    Returns:
        A record per workload and setting.
    """
    workloads = {w.name: w for w in case.workloads(size) if only in w.name}
    settings = [
        Job(
            *(case.name, size, measure, n, allocator, repeats),
            workloads=(*workloads,),
            environment=case.environment,
        )
        for measure in case.measures
        for n in threads
        for allocator in (case.allocators if measure == "time" else ("default",))
    ]
    records = []
    total = len(settings) * len(workloads)
    with tqdm(total=total, desc=case.name, disable=None) as bar:
        for job in settings:
            for name, result in _results(job, workloads, limit, bar):
                records.append(
                    {
                        "workload": name,
                        "params": dict(workloads[name].params),
                        "measure": job.measure,
                        "threads": job.threads,
                        "allocator": job.allocator,
                        "baseline": workloads[name].baseline,
                        "apart": sorted(workloads[name].apart),
                        "implementations": result,
                    }
                )
    return records


def _results(
    job: Job, workloads: Mapping[str, Workload], limit: float, bar: "tqdm[Any]"
) -> Iterator[tuple[str, dict[str, Any]]]:
    if job.measure == "memory":
        yield from _run_apart(job, workloads, limit, bar)
    elif job.measure == "contention":
        yield from _run_pairs(job, workloads, limit, bar)
    else:
        for result in run_job(job, limit, bar):
            yield result
            bar.update()
