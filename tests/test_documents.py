"""What the outer documents say is so: commands, links, versions, the table of decision 0001."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

from synthseg.cli import build_app
from synthseg.generation.config import PRESETS
from synthseg.training.recipe import recipe_from_dict

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
README = (ROOT / "README.md").read_text(encoding="utf-8")
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]


def _blocks(language: str) -> list[str]:
    return re.findall(rf"^ *```{language}\n(.*?)^ *```$", README, re.MULTILINE | re.DOTALL)


def _commands(program: str) -> list[str]:
    """Lines of the README's unlabelled blocks that call ``program``, continued lines joined, comments gone."""
    lines = "\n".join(_blocks("")).replace("\\\n", " ").splitlines()
    return [line.split(" #")[0].strip() for line in lines if line.strip().startswith(f"{program} ")]


def _flat(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from _flat(value, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, value


@pytest.mark.parametrize("line", _commands("synthseg"))
def test_a_command_of_the_readme_is_one_the_program_knows(line: str) -> None:
    command: Any = typer.main.get_command(build_app())
    words = shlex.split(line)[1:]
    while hasattr(command, "commands"):  # down through the groups
        assert set(words[:1]) & set(command.commands), f"no command {words[:1]} in `{line}`"
        command = command.commands[words.pop(0)]
    context = command.make_context(command.name, [], resilient_parsing=True)
    values, leftover, _ = command.make_parser(context).parse_args(words)  # raises for unknown options
    assert not leftover, f"arguments nobody takes: {leftover}"
    required = {param.name for param in command.params if param.required}
    assert required <= {name for name, value in values.items() if value not in (None, ())}


def test_recipes_of_the_readme_are_recipes() -> None:
    recipes = [recipe_from_dict(tomllib.loads(text), where="README.md") for text in _blocks("toml")]
    assert [recipe.generation for recipe in recipes] == [PRESETS["paper"]()]


def test_the_targets_of_make_that_documents_name_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = {name for page in PAGES for name in re.findall(r"`?\bmake ([a-z]+)[`\s]", _code_of(page))}
    assert {"demo", "test", "lint"} <= named
    assert named <= targets


def _code_of(page: Path) -> str:
    """The code of a page: its blocks and its inline code."""
    text = page.read_text(encoding="utf-8")
    found = re.findall(r"```.*?\n(.*?)```|`([^`\n]+)`", text, re.DOTALL)
    return "\n".join(f"{block}{inline} " for block, inline in found)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_between_the_pages_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    broken = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert broken == []


def test_python_of_the_readme_names_what_the_package_has() -> None:
    blocks = _blocks("python")
    assert blocks
    for block in blocks:
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("synthseg"):
                module = importlib.import_module(node.module)
                assert all(hasattr(module, alias.name) for alias in node.names), ast.unparse(node)


def test_decision_0001_lists_the_keys_in_which_the_presets_differ() -> None:
    page = (ROOT / "docs" / "decisions" / "0001-paper-or-code.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([\w.]+)` \| `(.+?)` \| `(.+?)` \|$", page, re.MULTILINE)
    written = {key: (json.loads(paper), json.loads(original)) for key, paper, original in rows}
    paper, original = (dict(_flat(PRESETS[name]())) for name in ("paper", "original"))
    expected = {key: (_plain(paper[key]), _plain(original[key])) for key in paper if paper[key] != original[key]}
    assert written == expected


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_a_recipe_that_names_a_preset_gets_exactly_that_preset(name: str) -> None:
    tables = {"data": {"bank": "bank.safetensors"}, "generation": {"preset": name}}
    assert recipe_from_dict(tables, where="recipe.toml").generation == PRESETS[name]()


def _plain(value: Any) -> Any:
    return round(value, 4) if isinstance(value, float) else json.loads(json.dumps(value))


def test_the_citation_file_is_valid_and_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= citation.keys()
    assert str(citation["version"]) == VERSION
    assert [reference["doi"] for reference in citation["references"]] == [
        "10.1016/j.media.2023.102789",
        "10.1073/pnas.2216399120",
    ]


def test_the_changelog_knows_this_version() -> None:
    assert f"## [{VERSION}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
