"""docs/migrating.md names commands, options, files and Python names that exist."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer.main

from synthseg.cli import build_app
from synthseg.cli.original.parser import build_parser, parse

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "migrating.md").read_text(encoding="utf-8")
FENCED = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
INLINE = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```$", "", PAGE, flags=re.MULTILINE | re.DOTALL))


def fenced(program: str) -> list[str]:
    """Whole command lines: those of blocks."""
    lines = [line for language, text in FENCED if not language for line in text.splitlines()]
    return [line for line in lines if line.startswith(f"{program} ")]


def inline(program: str) -> list[str]:
    """Mentioned command lines, whole or only named."""
    return sorted({text for text in INLINE if text.startswith(f"{program} ")})


def parsed(line: str) -> tuple[Any, dict[str, Any], list[str]]:
    """The command a line reaches, the values it sets, and what nobody takes; unknown options raise."""
    command: Any = typer.main.get_command(build_app())
    words = shlex.split(line)[1:]
    while hasattr(command, "commands"):  # down through the groups
        assert words, f"`{line}` names no command"
        assert words[0] in command.commands, f"no command {words[0]} in `{line}`"
        command = command.commands[words.pop(0)]
    context = command.make_context(command.name, [], resilient_parsing=True)
    values, leftover, _ = command.make_parser(context).parse_args(words)
    return command, values, leftover


def options_of(command: str) -> set[str]:
    found, _, _ = parsed(f"synthseg {command}")
    return {option for param in found.params for option in (*param.opts, *param.secondary_opts)}


@pytest.mark.parametrize("line", [*fenced("synthseg"), *inline("synthseg")])
def test_a_command_of_the_page_is_one_the_program_knows(line: str) -> None:
    command, values, leftover = parsed(line)
    assert not leftover, f"arguments nobody takes: {leftover}"
    if line in fenced("synthseg") or len(line.split()) > 3:
        required = {param.name for param in command.params if param.required}
        assert required <= {name for name, value in values.items() if value not in (None, ())}


@pytest.mark.parametrize("line", [*fenced("mri_synthseg"), *inline("mri_synthseg")])
def test_a_line_for_mri_synthseg_is_taken(line: str) -> None:
    parse(shlex.split(line)[1:])


def test_there_are_commands_to_check() -> None:
    assert len(fenced("synthseg")) > 10
    assert len(inline("mri_synthseg")) >= 2


def flag_rows() -> list[list[str]]:
    table = PAGE.split("| original | `mri_synthseg` | `synthseg segment` |")[1].split("\n\n")[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if "`--" in line]


def test_the_flag_table_names_flags_that_exist() -> None:
    ours = {option for action in build_parser()._actions for option in action.option_strings}
    segment = options_of("segment")
    assert len(flag_rows()) > 15
    for original, theirs, own in flag_rows():
        assert set(re.findall(r"--[\w-]+", original)) <= ours, original
        assert set(re.findall(r"--[\w-]+", theirs)) <= ours, theirs
        assert set(re.findall(r"--[\w-]+", own)) <= segment, own


def test_every_flag_of_the_original_has_its_row() -> None:
    # Reference 6.1, and FreeSurfer's.
    flags = "i o parc robust fast ct vol qc post resample crop threads cpu v1 keepgeom addctab noaddctab autocrop model"
    listed = {flag for row in flag_rows() for flag in re.findall(r"--([\w-]+)", row[0])}
    assert {*flags.split(), "photo"} <= listed


def test_flags_mentioned_beside_their_command_exist() -> None:
    known = options_of("segment") | options_of("train") | options_of("evaluate")
    for section, flags in (
        ("### What is better", ("--memory", "--repeat")),
        ("## Evaluating", ("--mapping",)),
        ("## Training", ("--init",)),
    ):
        text = PAGE.split(section)[1].split("\n## ")[0]
        assert all(flag in text and flag in known for flag in flags), section


@pytest.mark.parametrize("name", sorted({text for text in INLINE if re.fullmatch(r"synthseg(\.\w+)+", text)}))
def test_a_python_name_of_the_page_exists(name: str) -> None:
    home, _, last = name.rpartition(".")
    try:
        assert hasattr(importlib.import_module(home), last)
    except ModuleNotFoundError:
        pytest.fail(f"no module {home}")


@pytest.mark.parametrize("text", [text for language, text in FENCED if language == "python"])
def test_python_of_the_page_names_what_the_package_has(text: str) -> None:
    compile(text, "migrating.md", "exec")
    imports = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom)]
    assert imports
    for node in imports:
        module = importlib.import_module(node.module or "")
        assert all(hasattr(module, alias.name) for alias in node.names), ast.unparse(node)


def test_files_of_the_page_exist() -> None:
    named = set(re.findall(r"recipes/[\w./-]+\.toml", PAGE))
    assert len(named) >= 7
    assert [name for name in sorted(named) if not (ROOT / name).is_file()] == []
