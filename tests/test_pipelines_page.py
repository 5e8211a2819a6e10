"""docs/pipelines.md: every call is one the program takes, and the Python of the page works."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer.main

from synthseg.cli import build_app

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "pipelines.md").read_text(encoding="utf-8")
FENCES: list[tuple[str, str]] = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
PYTHON = [text for language, text in FENCES if language == "python"]
# Called as a program, or through an image: what follows is for synthseg.
CALL = re.compile(
    r"(?:^|[\s\"'`])synthseg(?::[\d.]+(?:-gpu)?|(?:-gpu)?\.sif)? ((?:segment|bids|cohort|report) [^`\n]*)"
)


def _calls() -> list[str]:
    """Arguments of all calls of the page, in fences and in the text."""
    fences = "\n".join(text for _, text in FENCES).replace("\\\n", " ")
    inline = "\n".join(re.findall(r"`(synthseg [^`]*)`", re.sub(r"^```.*?^```$", "", PAGE, flags=re.M | re.S)))
    found = [call.split(" #")[0].strip() for call in CALL.findall(f"{fences}\n{inline}")]
    # Nextflow and Snakemake put a number for these.
    found = [call.replace("${task.cpus}", "4").replace("{threads}", "4") for call in found]
    return [call.removesuffix('"') if call.count('"') % 2 else call for call in found]


def _command(words: list[str]) -> tuple[Any, list[str]]:
    command: Any = typer.main.get_command(build_app())
    while hasattr(command, "commands"):
        assert words[0] in command.commands, f"no command {words[0]}"
        command, words = command.commands[words[0]], words[1:]
    return command, words


def _complete(call: str) -> bool:
    """Calls in the text may only name a command: `synthseg cohort run`."""
    return len(shlex.split(call)) > 2 and not call.startswith("bids --")


def test_the_page_calls_what_it_is_about() -> None:
    assert len([call for call in _calls() if _complete(call)]) >= 11


@pytest.mark.parametrize("call", sorted({call for call in _calls() if _complete(call)}))
def test_a_call_of_the_page_is_one_the_program_takes(call: str) -> None:
    command, words = _command(shlex.split(call))
    with command.make_context(command.name, words) as context:  # raises for unknown options and bad values
        assert all(context.params[p.name] not in (None, ()) for p in command.params if p.required)


@pytest.mark.parametrize("number", range(len(PYTHON)))
def test_python_of_the_page_compiles(number: int) -> None:
    compile(PYTHON[number], f"pipelines.md, Python {number}", "exec")


def _interface() -> str:
    return next(text for text in PYTHON if "CommandLineInputSpec" in text)


def test_flags_of_the_nipype_interface_exist_and_take_what_it_gives() -> None:
    command, _ = _command(["segment", "x"])
    options = {name: param for param in command.params for name in getattr(param, "opts", [])}
    calls = [node for node in ast.walk(ast.parse(_interface())) if isinstance(node, ast.Call)]
    given = [
        ast.literal_eval(word.value)
        for call in calls
        for word in call.keywords
        if word.arg == "argstr" and ast.literal_eval(word.value) != "%s"
    ]
    assert len(given) >= 8
    for argstr in given:
        flag, *value = argstr.split()
        assert flag in options
        assert bool(value) != bool(options[flag].is_flag)
    assert '_cmd = "synthseg segment"' in _interface()


def test_modes_of_the_nipype_interface_are_modes() -> None:
    from synthseg.inference.modes import find_mode

    enum = next(n for n in ast.walk(ast.parse(_interface())) if isinstance(n, ast.Call) and "Enum" in ast.dump(n.func))
    assert [find_mode(ast.literal_eval(value)) is not None for value in enum.args] == [True] * 4  # raises for others


def test_nipype_makes_the_command_line_that_the_page_promises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("nipype", reason="nipype is not installed")
    monkeypatch.chdir(tmp_path)
    scan = tmp_path / "sub-01_T1w.nii.gz"
    scan.touch()
    names: dict[str, Any] = {}
    exec(compile(_interface(), "pipelines.md", "exec"), names)
    line = names["SynthSeg"](in_file=str(scan), mode="fast", parc=True, num_threads=2).cmdline
    command, words = _command(shlex.split(line)[1:])
    params = command.make_context("segment", words).params
    assert [Path(path).name for path in params["scans"]] == ["sub-01_T1w.nii.gz"]
    assert (params["mode"], params["parc"], params["threads"]) == ("fast", True, 2)
    assert Path(params["out"]).name == "sub-01_T1w_synthseg.nii.gz"


def test_masks_get_the_names_that_fmriprep_looks_for(tmp_path: Path) -> None:
    names: dict[str, Any] = {}
    exec(compile(next(text for text in PYTHON if "masks_for_fmriprep" in text), "pipelines.md", "exec"), names)
    anat = [tmp_path / "in/sub-01/anat", tmp_path / "in/sub-02/ses-a/anat"]
    for folder, entities in zip(anat, ("sub-01", "sub-02_ses-a"), strict=True):
        folder.mkdir(parents=True)
        for kind in (
            "desc-synthseg_mask",
            "res-1mm_desc-synthseg_mask",
            "desc-synthsegFLAIR_mask",
            "desc-synthseg_dseg",
        ):
            (folder / f"{entities}_{kind}.nii.gz").write_bytes(entities.encode())
    copied = names["masks_for_fmriprep"](tmp_path / "in", tmp_path / "out")
    assert [path.relative_to(tmp_path / "out").as_posix() for path in copied] == [
        "sub-01/anat/sub-01_desc-brain_mask.nii.gz",
        "sub-02/ses-a/anat/sub-02_ses-a_desc-brain_mask.nii.gz",
    ]
    assert copied[1].read_bytes() == b"sub-02_ses-a"
    assert (tmp_path / "out/dataset_description.json").is_file()
