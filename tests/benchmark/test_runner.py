"""Arithmetic, processes and files of the benchmark suite."""

import json
import os
import time

import pytest
import torch

from benchmark import machine, report, runner
from benchmark.__main__ import main
from benchmark.cases import all_cases
from benchmark.runner import Case, Job, UnavailableError, Workload


def test_ratio_is_the_median_over_repeats():
    # The machine becomes four times slower, for both. The ratios of pairs do not
    # change, but the ratio of the medians would be 3.
    values = {"baseline": [2.0, 3.0, 12.0], "ours": [1.0, 1.0, 4.0]}
    records = runner.summarise(values, "baseline")
    assert records["ours"]["ratio"] == {"median": 3.0, "quartiles": [2.5, 3.0]}
    assert records["ours"]["median"] == 1.0
    assert records["ours"]["quartiles"] == [1.0, 2.5]
    assert records["baseline"]["ratio"]["median"] == 1.0
    assert "ratio" not in runner.summarise({"ours": [1.0]}, "baseline")["ours"]


def test_ratio_of_pairs_is_not_that_of_medians():
    values = {"baseline": [1.0, 10.0, 3.0], "ours": [2.0, 2.0, 3.0]}
    ratio = runner.summarise(values, "baseline")["ours"]["ratio"]
    assert ratio["median"] == 1.0  # of 0.5, 5 and 1; that of medians is 3 / 2


def test_repeats_fill_a_budget():
    assert runner.repeats_for(0.5, None, budget=6) == 12
    assert runner.repeats_for(1e-9, None, budget=6) == 25
    assert runner.repeats_for(2.0, None, budget=6) == 5
    assert runner.repeats_for(60.0, None, budget=6) == 3
    assert runner.repeats_for(60.0, 7, budget=6) == 7


@pytest.mark.parametrize("exponent", [1.0, 2.0])
def test_fitted_exponent(exponent):
    sizes = [10**i for i in range(2, 8)]
    # At the first three sizes a constant cost of 1 s hides the growth.
    seconds = [1e-6 * n**exponent + (1.0 if n < 10**5 else 0.0) for n in sizes]
    assert report.fit_exponent(sizes, seconds) == pytest.approx(exponent, abs=1e-9)


def broken():
    raise UnavailableError("no such machine")


def explode(inputs):
    raise RuntimeError("out of luck\nand a long trace")


def equal(inputs, expected, actual):
    assert torch.equal(expected, actual), "other numbers"


def square(**more):
    implementations = {
        "baseline": lambda: lambda x: x * x,
        "ours": lambda: lambda x: x.square(),
        **more,
    }
    return Workload("square", inputs, implementations, "baseline", equal)


def inputs(seed):
    return torch.full((4,), float(seed + 2))


def measure(workload, **job):
    events = []
    job = Job("none", "tiny", "time", 1, repeats=4, **job)
    return runner.time_workload(workload, job, lambda **e: events.append(e)), events


def test_every_implementation_sees_every_input_once():
    seen = {name: [] for name in ("a", "b", "c")}

    def watch(name):
        return lambda: lambda x: seen[name].append((int(x[0]), time.monotonic())) or x

    work = Workload("watch", inputs, {n: watch(n) for n in seen}, "a", equal)
    measure(work)
    for name in seen:  # seed 0 is the warm-up
        assert [value for value, _ in seen[name]] == [2, 3, 4, 5, 6]
    # In a repeat one follows the other, and in turn each of them is the first.
    order = sorted((at, name) for name, calls in seen.items() for _, at in calls)
    rounds = [order[i : i + 3] for i in range(0, 15, 3)]
    assert [r[0][1] for r in rounds] == ["a", "a", "b", "c", "a"]
    assert all({name for _, name in r} == {"a", "b", "c"} for r in rounds)


def test_what_does_not_run_is_recorded():
    workload = square(
        absent=broken,
        failing=lambda: explode,
        wrong=lambda: lambda x: x + x + 1,
    )
    records, _ = measure(workload)
    assert [*records] == ["baseline", "ours", "absent", "failing", "wrong"]
    assert records["ours"]["status"] == "ok"
    assert len(records["ours"]["values"]) == 4
    assert records["absent"] == {"status": "skipped", "reason": "no such machine"}
    assert records["failing"] == {"status": "failed", "reason": "out of luck"}
    reason = "disagrees with 'baseline': other numbers"
    assert records["wrong"] == {"status": "failed", "reason": reason}


def test_a_missing_baseline_leaves_no_ratios():
    records, _ = measure(square(baseline=broken))
    assert records["ours"]["status"] == "ok"
    assert "ratio" not in records["ours"]


def test_what_killed_its_process_before_is_left_out():
    failed = {"square": {"ours": "killed by SIGKILL"}}
    records, events = measure(square(), failed=failed)
    assert records["ours"] == {"status": "failed", "reason": "killed by SIGKILL"}
    assert {event["running"] for event in events} == {"baseline"}


def test_a_process_that_dies_costs_one_implementation(monkeypatch):
    started = []

    def start(job):
        started.append(job)
        if len(started) == 1:
            lines = ['{"workload": "a", "result": {}}', '{"workload": "b"']
            lines[1] += ', "running": "bad"}'
            command = f"printf '%s\\n' '{lines[0]}' '{lines[1]}'; kill -9 $$"
        else:
            result = json.dumps({"workload": "b", "result": dict(job.failed)})
            command = f"echo '{result}'"
        return popen(["sh", "-c", command], text=True, stdout=-1, stdin=-1)

    popen = runner.subprocess.Popen
    monkeypatch.setattr(runner, "start", start)
    job = Job("none", "tiny", "time", 1, workloads=("a", "b"))
    results = dict(runner.run_job(job, limit=60))
    assert results["b"] == {"b": {"bad": "killed by SIGKILL"}}
    assert [job.workloads for job in started] == [("a", "b"), ("b",)]


def test_a_silent_process_is_killed(monkeypatch):
    def start(job):
        event = '{"workload": "a", "running": "slow"}'
        if job.failed:
            event = json.dumps({"workload": "a", "result": dict(job.failed["a"])})
        command = f"echo '{event}'; exec sleep {0 if job.failed else 60}"
        return popen(["sh", "-c", command], text=True, stdout=-1, stdin=-1)

    popen = runner.subprocess.Popen
    monkeypatch.setattr(runner, "start", start)
    job = Job("none", "tiny", "time", 1, workloads=("a",))
    ((_, result),) = runner.run_job(job, limit=0.5)
    assert result == {"slow": "out of time: more than 0.5 s"}


def test_settings_of_a_process(monkeypatch):
    monkeypatch.setenv("MALLOC_ARENA_MAX", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    seen = {}
    monkeypatch.setattr(
        runner.subprocess, "Popen", lambda command, env, **_: seen.update(env)
    )
    for allocator, settings in runner.ALLOCATORS.items():
        seen.clear()
        runner.start(Job("tree", "tiny", "time", 3, allocator))
        own = {k: v for k, v in seen.items() if k.startswith("MALLOC_")}
        assert own == settings
        assert seen["OMP_NUM_THREADS"] == "3"


SCHEMA = {
    "workload": str,
    "params": dict,
    "measure": str,
    "threads": int,
    "allocator": str,
    "baseline": str,
    "apart": list,
    "implementations": dict,
}


def check_result(result, case, measures):
    assert result["case"] == case
    about = result["machine"]
    assert {"cpu", "cores", "isa", "packages", "commit", "date", "libc"} <= {*about}
    assert about["packages"]["torch"] == torch.__version__
    assert {r["measure"] for r in result["records"]} == measures
    for record in result["records"]:
        assert {key: type(value) for key, value in record.items()} == SCHEMA
        for own in record["implementations"].values():
            if own["status"] == "ok":
                low, high = own["quartiles"]
                assert 0 < low <= own["median"] <= high
                assert len(own["values"]) >= 2
            else:
                assert own["status"] in ("skipped", "failed")
                assert own["reason"]


def test_a_case_with_nothing_to_measure_writes_nothing(tmp_path, monkeypatch, capsys):
    empty = Case("empty", "What this machine has not", lambda size: [])
    monkeypatch.setattr("benchmark.__main__.all_cases", lambda: {"empty": empty})
    monkeypatch.setattr("sys.argv", ["benchmark", "empty", "--out", str(tmp_path)])
    main()
    said = "What this machine has not (empty): nothing to measure here\n\n"
    assert said in "".join(capsys.readouterr())
    assert not [*tmp_path.iterdir()]


def test_the_table_shows_bytes_moved_a_second():
    own = {"status": "ok", **runner.summarise({"ours": [2e-4]}, "baseline")["ours"]}
    record = {"measure": "time", "baseline": "baseline", "params": {"bytes": 10**9}}
    text = report._cells({**record, "apart": []}, "ours", own, None)
    assert text.split() == [
        "200",
        "µs",
        "(200",
        "µs",
        "to",
        "200",
        "µs)",
        "5000",
        "GB/s",
    ]


# End to end: processes, a table, a file and, with matplotlib, a picture.
@pytest.mark.parametrize(
    "name", ["tree_scaling", pytest.param("checkpoint", marks=pytest.mark.slow)]
)
def test_command_line(name, tmp_path, monkeypatch, capsys):
    cases = all_cases()
    arguments = ["benchmark", name, "--quick", "--repeats", "2", "--threads", "1"]
    monkeypatch.setattr("sys.argv", [*arguments, "--out", str(tmp_path)])
    start = runner.start

    def tiny(job):
        return start(runner.replace(job, size="tiny"))

    monkeypatch.setattr(runner, "start", tiny)
    case = cases[name]
    small = runner.replace(case, workloads=lambda size: case.workloads("tiny"))
    monkeypatch.setattr("benchmark.__main__.all_cases", lambda: {name: small})
    main()
    path = tmp_path / f"{name}-{machine.slug()}.json"
    result = json.loads(path.read_text())
    check_result(result, name, {*case.measures})
    table = capsys.readouterr().out
    assert case.title in table
    assert all(record["workload"] in table for record in result["records"])
    drawn = report.draw(result, case.plot, tmp_path / "again")
    assert (tmp_path / f"{name}.svg").exists() == (drawn is not None)
    if name == "tree_scaling":
        pytest.importorskip("matplotlib")
        assert drawn is not None
        assert drawn.read_text().startswith("<?xml")
        assert all(v == v for v in result["exponents"].values())


def test_memory_of_a_call():
    keep = 32 * 2**20

    def allocate(inputs):  # every page is written
        return torch.ones(keep // 4), torch.ones(keep // 4).sum()

    work = Workload("memory", inputs, {"ours": lambda: allocate}, "ours", equal)
    job = Job("none", "tiny", "memory", 1, only="ours")
    try:
        record = runner.measure_memory(work, job, lambda **event: None)["ours"]
    except UnavailableError as error:
        pytest.skip(str(error))
    (peak,) = record["values"]
    assert 2 * keep - 2**20 <= peak < 2 * keep + 8 * 2**20


def test_contention_is_relative_to_running_alone(monkeypatch):
    started = []

    # Alone a call takes 2 s; beside another process 3 s and 5 s.
    def start(job):
        started.append(job)
        values = [[2.0], [3.0], [5.0]][(len(started) - 1) % 3]
        result = {"status": "ok", "values": values}
        if job.only == "dead":
            return popen(["sh", "-c", "kill -9 $$"], text=True, stdout=-1, stdin=-1)
        ready = json.dumps({"workload": "square", "ready": job.only})
        last = json.dumps({"workload": "square", "result": {job.only: result}})
        command = f"echo '{ready}'; read line; echo '{last}'"
        return popen(["sh", "-c", command], text=True, stdout=-1, stdin=-1)

    popen = runner.subprocess.Popen
    monkeypatch.setattr(runner, "start", start)
    work = square(dead=broken)
    case = Case("none", "", lambda size: [work], measures=("contention",))
    (record,) = runner.run_case(case, "tiny", [1])
    ours = record["implementations"]["ours"]
    assert ours["values"] == [1.5, 2.5]
    assert ours["alone"]["median"] == 2.0
    assert ours["ratio"]["median"] == 1.0
    reason = {"status": "failed", "reason": "killed by SIGKILL"}
    assert record["implementations"]["dead"] == reason


def test_calls_wait_for_the_signal(monkeypatch):
    said = []

    class Stdin:
        def read(self):
            said.append("go")

    monkeypatch.setattr(runner.sys, "stdin", Stdin())
    job = Job("none", "tiny", "contention", 1, repeats=1, only="ours")
    records = runner.time_alone(square(), job, lambda **event: said.append(event))
    assert said == [{"ready": "ours"}, "go"]
    assert len(records["ours"]["values"]) == 50


def test_unknown_case_is_refused(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["benchmark", "trees"])
    with pytest.raises(SystemExit):
        main()
    assert "there is no case 'trees'; choose from attention" in capsys.readouterr().err


def test_cases_are_listed(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["benchmark", "--list"])
    main()
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert names == [*all_cases()]


@pytest.mark.parametrize(
    "model, name",
    [
        ("AMD EPYC", "amd-epyc-3-cores"),
        ("Intel(R) Xeon(R) CPU E5-2690 v4 @ 2.60GHz", "intel-xeon-e5-2690-v4-3-cores"),
        ("AMD Ryzen 9 7950X 16-Core Processor", "amd-ryzen-9-7950x-3-cores"),
    ],
)
def test_name_of_a_machine(model, name, monkeypatch):
    monkeypatch.setattr(machine, "cpu_model", lambda: model)
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    assert machine.slug() == name


@pytest.mark.parametrize(
    "value, measure, text",
    [
        (0.0123, "time", "12.3 ms"),
        (12.345, "time", "12.3 s"),
        (3 * 2**20, "memory", "3.0 MiB"),
        (1.5, "contention", "1.50 x"),
    ],
)
def test_values_with_units(value, measure, text):
    assert report.format_value(value, measure) == text


def test_peak_grows_with_the_loop():
    one = machine.fma_peak(1, rounds=100_000)
    if one is None:
        pytest.skip("there is no C compiler")
    assert 1e8 < one < 1e13


def test_case_needs_a_name_of_its_own():
    assert all(isinstance(case, Case) for case in all_cases().values())
    assert all(name == case.name for name, case in all_cases().items())


def test_name_of_a_gpu(monkeypatch):
    cpu = machine.slug()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert machine.slug(gpu=True) == cpu
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100 80GB HBM3")
    assert machine.slug(gpu=True) == "nvidia-h100-80gb-hbm3"
    assert machine.slug() == cpu


def test_a_failure_of_ours_is_an_error(monkeypatch, tmp_path):
    def records(*args):
        failed = {"status": "failed", "reason": "disagrees"}
        return [
            {
                "workload": "2 x 2",
                "measure": "time",
                "threads": 1,
                "allocator": "default",
                "params": {},
                "baseline": "peer",
                "implementations": {"peer": failed, "ours, new": failed},
            }
        ]

    monkeypatch.setattr("benchmark.__main__.run_case", records)
    monkeypatch.setattr(
        "sys.argv", ["benchmark", "tree", "--threads", "1", "--out", str(tmp_path)]
    )
    with pytest.raises(SystemExit, match=r"failed: tree, 2 x 2: ours, new$"):
        main()
