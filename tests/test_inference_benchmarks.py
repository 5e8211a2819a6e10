"""The harness of the inference benchmarks: what a process costs, what is kept, what counts as held; no times."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # benchmarks are no part of the installed package

from benchmarks.inference.bars import ORIGINAL, Bar, bars_of  # noqa: E402
from benchmarks.inference.measure import Measured, measure, told  # noqa: E402
from benchmarks.inference.page import BEGIN, END, into, write_page  # noqa: E402
from benchmarks.inference.results import Results, look_up, run_all  # noqa: E402
from benchmarks.inference.tasks import FORWARD, GROUPS, PLAIN, SEGMENT, Setup, Task, tasks_of  # noqa: E402

from synthseg.errors import UsageError  # noqa: E402

HELD = 200 * 2**20  # bytes that a measured process touches


def python(code: str) -> tuple[str, ...]:
    return (sys.executable, "-c", code)


# What a process costs


def test_the_peak_is_what_the_process_held_and_nothing_of_its_neighbours() -> None:
    # From a process as small as the harness's own: what the parent holds counts towards the child's peak.
    commands = ("pass", f"x = bytearray({HELD}); x[::4096] = b'1' * len(x[::4096])")
    code = "import sys; from benchmarks.inference.measure import measure\nfor code in sys.argv[1:]: "
    code += "print(measure((sys.executable, '-c', code), threads=1).peak_gb)"
    done = subprocess.run((*python(code), *commands), cwd=ROOT, capture_output=True, text=True, check=True)
    small, large = map(float, done.stdout.split())
    assert large - small == pytest.approx(HELD / 2**30, rel=0.1)
    assert small < 0.05


def test_processor_seconds_count_children_that_were_waited_for() -> None:
    spin = "import time; d = time.process_time() + 0.4\nwhile time.process_time() < d: pass"
    alone = measure(python(spin), threads=1)
    child = measure(python(f"import subprocess, sys; subprocess.run([sys.executable, '-c', {spin!r}])"), threads=1)
    assert 0.4 <= alone.cpu_s < 5
    assert child.cpu_s >= 0.4


def test_what_a_process_says_of_itself_is_its_last_word() -> None:
    said = measure(python("print('result: {\"a\": 1}'); print('result: {\"a\": 2}'); print('bye')"), threads=1).said
    assert said == {"a": 2}
    assert told("nothing of the kind") == {}


def test_a_command_that_fails_says_its_last_complaint() -> None:
    found = measure(python("import sys; print('first', file=sys.stderr); sys.exit('the reason')"), threads=1)
    assert found.failed == "exit code 1: the reason"


def test_a_command_that_takes_too_long_is_stopped() -> None:
    assert measure(python("import time; time.sleep(60)"), threads=1, timeout_s=0.3).failed


def test_threads_reach_the_environment_of_the_process() -> None:
    code = "import os, json; print('result: ' + json.dumps({'n': os.environ['OMP_NUM_THREADS']}))"
    assert measure(python(code), threads=3).said == {"n": "3"}


def test_the_measuring_process_loads_nothing_heavy() -> None:
    # What it held when it started a process would count towards that process's peak.
    code = "import sys, benchmarks.inference.__main__; print({'torch', 'numpy', 'nibabel'} & set(sys.modules))"
    done = subprocess.run(python(code), cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


# Rounds, and what is kept


def counting(folder: Path, name: str, group: str = "forward", **options: bool) -> Task:
    """Adds its name to a list when it runs."""
    code = f"print('{name}', file=open({str(folder / 'ran')!r}, 'a')); print('result: {{\"value\": 3}}')"
    return Task(group, name, python(code), **options)  # type: ignore[arg-type]


def ran(folder: Path) -> list[str]:
    path = folder / "ran"
    return path.read_text().split() if path.is_file() else []


def run(tasks: list[Task], folder: Path, rounds: int = 2) -> Results:
    return run_all(tasks, {"forward": rounds, "scan": 1}, folder / "kept", threads=1, timeout_s=60)


def test_contenders_take_turns(tmp_path: Path) -> None:
    tasks = [counting(tmp_path, "a"), counting(tmp_path, "b"), counting(tmp_path, "once", once=True)]
    results = run([*tasks, counting(tmp_path, "scan", "scan")], tmp_path)
    assert ran(tmp_path) == ["a", "b", "once", "scan", "a", "b"]
    assert [len(runs) for runs in results.runs.values()] == [2, 2, 1, 1]


def test_a_second_run_measures_only_what_is_missing(tmp_path: Path) -> None:
    tasks = [counting(tmp_path, "a"), counting(tmp_path, "b")]
    first = run(tasks[:1], tmp_path, rounds=1)
    again = run(tasks, tmp_path)
    assert ran(tmp_path) == ["a", "b", "a", "b"]
    assert again.runs["forward/a"][0] == first.runs["forward/a"][0]


def test_a_failure_is_told_and_tried_again(tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    task = Task("forward", "x", python(f"import sys, os; sys.exit(0 if os.path.exists({str(flag)!r}) else 'not yet')"))
    assert run([task], tmp_path).failed == {"forward/x": "exit code 1: not yet"}
    flag.touch()
    results = run([task], tmp_path)
    assert not results.failed
    assert len(results.runs["forward/x"]) == 2


def test_a_task_that_cannot_be_run_here_says_why(tmp_path: Path) -> None:
    results = run([Task("peers", "x", ("nothing",), missing="no environment")], tmp_path)
    assert results.failed == {"peers/x": "no environment"}


def test_a_kept_result_whose_file_is_gone_is_measured_again(tmp_path: Path) -> None:
    out = tmp_path / "labels" / "out"
    code = f"open({str(out)!r}, 'w'); print('made', file=open({str(tmp_path / 'ran')!r}, 'a'))"
    task = Task("scan", "x", python(code), out)
    run([task], tmp_path)
    run([task], tmp_path)
    assert ran(tmp_path) == ["made"]
    out.unlink()
    run([task], tmp_path)
    assert ran(tmp_path) == ["made", "made"]


# Bars and page


def measured(cpu_s: float, peak_gb: float = 1.0, **said: object) -> dict[str, object]:
    return Measured(cpu_s, cpu_s, peak_gb, 0.1, dict(said)).to_dict()


def results_of(**runs: list[dict[str, object]]) -> Results:
    return Results({name.replace("__", "/"): each for name, each in runs.items()})


def test_medians_and_ratios_are_over_the_rounds() -> None:
    results = Results({"a": [measured(c) for c in (1.0, 9.0, 2.0)], "b": [measured(c) for c in (4.0, 4.0)]})
    assert results.median("a", "cpu_s") == 2
    assert results.ratio("a", "b") == 0.5
    assert results.spread("a", "cpu_s") == (1, 9)
    assert results.ratio("a", "c") is None


def test_numbers_are_found_among_costs_and_in_what_was_said() -> None:
    run = measured(2.0, again={"forward_cpu_s": 3}, forward_cpu_s=4)
    assert [look_up(run, key) for key in ("cpu_s", "again.forward_cpu_s", "forward_cpu_s")] == [2, 3, 4]
    assert look_up(run, "again.nothing") is None


def found(results: Results, *words: str) -> Bar:
    (bar,) = [bar for bar in bars_of(results, 192) if all(word in bar.what for word in words)]
    return bar


@pytest.mark.parametrize(("int8_s", "peak", "held"), [(10.0, 2.1, (True, True)), (10.1, 2.2, (False, False))])
def test_the_bars_of_the_forward_pass_compare_forward_seconds(int8_s: float, peak: float, held: tuple) -> None:
    runs = {
        f"forward/192/{PLAIN}": [measured(99.0, 6.0, forward_cpu_s=45.0)],
        "forward/192/openvino int8": [measured(20.0, peak, forward_cpu_s=int8_s)],
    }
    results = Results(runs)
    assert found(results, "int8, times faster").held is held[0]
    assert found(results, "peak memory, int8").held is held[1]
    assert found(results, "float32, times faster").verdict == "not measured"


@pytest.mark.parametrize(
    ("peaks", "chosen"), [((1.0, 3.0), "torch"), ((1.0, 2.0), "openvino"), ((3.0, 4.0), "openvino")]
)
def test_time_and_memory_are_one_contender_s_the_fastest_that_keeps_to_the_memory(peaks: tuple, chosen: str) -> None:
    runs = {
        f"forward/192/{PLAIN}": [measured(0, forward_cpu_s=40.0)],
        "forward/192/torch float32": [measured(0, peaks[0], forward_cpu_s=20.0)],
        "forward/192/openvino float32": [measured(0, peaks[1], forward_cpu_s=10.0)],
    }
    bars = [found(Results(runs), f"{what}float32{more}") for what, more in (("eager, ", ", times"), ("memory, ", ""))]
    assert all(f"({chosen} float32)" in bar.shown for bar in bars)
    assert [bar.held for bar in bars] == [True, min(peaks) < 2.2]


def test_whole_scans_are_held_against_plain_and_the_original() -> None:
    prefix = "scan/head/paper/fast"
    runs = {f"{prefix}/{PLAIN}": [measured(100.0)], f"{prefix}/openvino int8": [measured(15.7, 1.98)]}
    results = Results(runs)
    assert found(results, "paper's size", "`fast`", "int8", "plain's").shown == "0.16 (openvino int8)"
    assert found(results, "paper's size", "`fast`", "original's CPU s").held is (15.7 / ORIGINAL["fast"][0] <= 0.25)
    assert found(results, "paper's size", "`fast`", "original's memory").held is True


def test_a_loss_of_dice_and_disagreeing_labels_miss_their_bars() -> None:
    said = {"float32": (0.9, 1.0), "int8": (0.8965, 0.9949), "bfloat16": (0.9, 0.999)}
    runs = {f"accuracy/{name}": [measured(0, dice=dice, agreement=a)] for name, (dice, a) in said.items()}
    verdicts = [found(Results(runs), name, word).held for name in ("int8", "bfloat16") for word in ("labels", "loss")]
    assert verdicts == [False, False, True, True]


def test_the_page_holds_every_number_and_every_failure() -> None:
    runs = {
        f"forward/192/{PLAIN}": [measured(50.0, 6.123, forward_cpu_s=c) for c in (44.0, 46.0, 45.0)],
        "forward/192/torch float32": [measured(20.0, 1.234, forward_cpu_s=18.0)],
        "forward/192/answer of torch float32": [measured(20.0, largest_difference=3e-5, argmax_agreement=0.99999)],
        f"scan/head/paper/default/{PLAIN}": [measured(100.0, 7.0)],
        "scan/head/paper/default/torch float32": [measured(31.0, 1.5, as_plain={"same": 0.98765})],
        "peers/keras/default": [measured(90.0, 9.0, forward_cpu_s=80.0, shape=[192, 224, 192])],
        "many/4 scans/one process": [measured(33.3)],
    }
    facts = {"side": 192, "small": 0, "versions": {"torch": "2.0"}, "rounds": {"forward": 3}}
    words = {key: f"<{key}>" for key in ("date", "command", "machine", "threads", "load", "code", "paper")}
    page = write_page(Results(runs, {"peers/onnxruntime/forward": "no environment"}), facts | words)
    for text in ("45.0 (44.0 to 46.0)", "1.23", "3.0e-05", "0.31", "0.98765", "192 x 224 x 192", "33.3", "2.50"):
        assert text in page
    assert "peers/onnxruntime/forward: no environment" in page
    assert all(word in page for word in words.values())
    widths = {line.count("|") for line in page.splitlines() if line.startswith("| plain |")}
    assert len(widths) == 1


def test_the_page_goes_between_the_marks_of_a_document_and_nowhere_else() -> None:
    document = f"before\n{BEGIN}\nold\n{END}\nafter\n"
    once = into(document, "new\n", "x.md")
    assert once == f"before\n{BEGIN}\n\nnew\n\n{END}\nafter\n"
    assert into(once, "new\n", "x.md") == once
    for bad in ("", document.replace(END, ""), f"{END}{BEGIN}", document * 2):
        with pytest.raises(UsageError, match=r"x\.md: found no place"):
            into(bad, "new", "x.md")
    into((ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8"), "new", "docs/benchmarks.md")


# What is run


SETUP = Setup(work=Path("work"), data=Path("data"), peers=Path("peers"), compiled=True, small=96, memory="2G")


def test_every_task_has_a_name_of_its_own() -> None:
    tasks = tasks_of(SETUP, GROUPS)
    assert len({task.slug for task in tasks}) == len(tasks)
    outs = [task.out for task in tasks if task.out is not None]
    assert len(set(outs)) == len(outs)


def test_every_comparison_begins_with_plain() -> None:
    names = [task.name for task in tasks_of(SETUP, ("forward", "scan"))]
    for name in names:
        before, _, contender = name.rpartition("/")
        if contender.startswith("answer of ") or "conformed/shipped" in name or "conformed/compact" in name:
            continue
        assert names.index(f"{before}/{PLAIN}") <= names.index(name)
    assert names.index(f"192/answer of {PLAIN}") < names.index("192/answer of torch float32")


def test_without_room_for_it_the_plain_path_leaves_the_large_scan_out() -> None:
    names = [task.name for task in tasks_of(replace(SETUP, heavy=False), ("scan",))]
    assert not [name for name in names if name.startswith("conformed") and name.endswith(PLAIN)]
    assert "conformed/compact/default/as it comes" in names


def test_the_flags_of_the_product_exist(command) -> None:
    _, help_text, _ = command("segment", "--help")
    flags = {word for settings in SEGMENT.values() for word in settings if word.startswith("--")}
    for flag in flags | {"--memory", "--mode", "--weights", "--overwrite", "--threads"}:
        assert flag in help_text


def test_results_are_plain_json(tmp_path: Path) -> None:
    from benchmarks.inference.results import write_json

    results = results_of(forward__x=[measured(1.0)])
    write_json(results, {"side": 8}, tmp_path / "results.json")
    stored = json.loads((tmp_path / "results.json").read_text())
    assert stored["runs"]["forward/x"][0]["cpu_s"] == 1
    assert set(FORWARD) >= {PLAIN, "torch float32"}
