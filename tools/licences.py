"""The page of licences, docs/licences.md: ``python -m tools.licences`` writes it, ``--check`` compares it."""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterable
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "licences.md"
DEVELOPMENT = "dev"  # the extra that nobody needs to run anything
HEAD = """\
# Licences

Written by `make licences` from `pyproject.toml` and `tools/licences.toml`; do not edit.

synthseg itself is under the Apache License 2.0 ([LICENSE](../LICENSE)); where methods, label maps and atlases come
from is in [NOTICE](../NOTICE). Nothing below is under the GPL or AGPL. What is copyleft in any way is marked
with a note. Tools of development (the extra `dev`) are not listed: they are not passed on, and nothing runs them.

## What synthseg asks for

"""


def name_of(text: str) -> str:
    """A package's name as indexes normalise it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", text).lower()


def declared() -> dict[str, tuple[str, str]]:
    """Every package that pyproject.toml asks for at run time: version range, and the extra ("" for none)."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found: dict[str, tuple[str, str]] = {}
    for extra, lines in [("", project["dependencies"]), *project["optional-dependencies"].items()]:
        for line in lines if extra != DEVELOPMENT else ():
            asked = Requirement(line)
            if name_of(asked.name) != "synthseg":
                found.setdefault(name_of(asked.name), (str(asked.specifier), extra))
    return found


def closure(names: Iterable[str]) -> dict[str, Distribution]:
    """What is installed of these packages and of all that they need here, by name."""
    found: dict[str, Distribution] = {}
    waiting = [name_of(name) for name in names]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        try:
            found[name] = distribution(name)
        except PackageNotFoundError:
            continue
        asked = [Requirement(line) for line in found[name].requires or ()]
        waiting += [name_of(one.name) for one in asked if one.marker is None or one.marker.evaluate({"extra": ""})]
    return dict(sorted(found.items()))


def told(package: Distribution) -> str:
    """The licence as the package's own metadata say it: expression, first line, classifiers."""
    expression, text = ((package.metadata.get_all(key) or [""])[0] for key in ("License-Expression", "License"))
    classes = [c for c in package.metadata.get_all("Classifier") or () if c.startswith("License ::")]
    lines = [expression, *text.strip().splitlines()[:1], *(c.rpartition("::")[2].strip() for c in classes)]
    return "; ".join(dict.fromkeys(filter(None, lines)))


def table() -> dict[str, Any]:
    return tomllib.loads((ROOT / "tools" / "licences.toml").read_text(encoding="utf-8"))


def render() -> str:
    """The page's text, the same on every machine: of what is installed only the test speaks."""
    given = table()
    lines = ["| package | versions | extra | licence | what for |", "|:--|:--|:--|:--|:--|"]
    for name, (versions, extra) in declared().items():
        licence, purpose = given["direct"][name]
        lines.append(f"| {name} | {versions} | {extra or 'always'} | {licence} | {purpose} |")
    notes = [f"- {name}: {note}" for name, note in given["notes"].items()]
    bundled = ["| file | what it is | licence | its text, in the package |", "|:--|:--|:--|:--|"]
    for one in given["bundled"]:
        files = ", ".join(f"`{file}`" for file in one["files"])
        bundled.append(f"| {files} | {one['name']} | {one['licence']} | `{one['text']}` |")
    return (
        HEAD
        + "\n".join(lines)
        + "\n\n## Notes\n\n"
        + "\n".join(notes)
        + "\n\nWhat these packages bring themselves is permissive (MIT, BSD, Apache, ISC, PSF, zlib and the like) but\n"
        "for what is noted: a test compares it with what is installed. `make sbom` lists every package of a machine.\n"
        "\n## Files of others in the package\n\nPaths are in `src/synthseg`.\n\n" + "\n".join(bundled) + "\n"
    )


def main(arguments: list[str]) -> int:
    if arguments == ["--check"]:
        same = PAGE.is_file() and PAGE.read_text(encoding="utf-8") == render()
        print("docs/licences.md is up to date" if same else "docs/licences.md is out of date: run `make licences`")
        return 0 if same else 1
    PAGE.write_text(render(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
