"""docs/conventions.md is true: each of its python blocks runs on its own."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).resolve().parents[1] / "docs" / "conventions.md"
TEXT = PAGE.read_text(encoding="utf-8")
BLOCKS = list(re.finditer(r"^```python\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL))


def _title(block: re.Match[str]) -> str:
    """The heading above a block, with its line number: what a failing test is called."""
    line = TEXT.count("\n", 0, block.start(1)) + 1
    heading = re.findall(r"^## (.*)$", TEXT[: block.start()], re.MULTILINE)[-1]
    return f"{heading} (line {line})"


def test_the_page_states_every_convention_with_asserts() -> None:
    assert len(BLOCKS) == TEXT.count("```") // 2, "a block that is not python would go unchecked"
    for block in BLOCKS:
        assert re.search(r"^(assert |\w+\.testing\.assert_)", block[1], re.MULTILINE), _title(block)


@pytest.mark.parametrize("block", BLOCKS, ids=_title)
def test_a_block_of_the_page_runs(block: re.Match[str]) -> None:
    line = TEXT.count("\n", 0, block.start(1))
    code = compile("\n" * line + block[1], PAGE.name, "exec")  # so that a failure names the page's own line
    namespace: dict[str, Any] = {"__name__": "conventions"}
    exec(code, namespace)
