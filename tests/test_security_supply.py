"""What comes from others: every package and file named with its licence, listed for audits, looked up honestly."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tools import audit
from tools.licences import PAGE, ROOT, closure, declared, render, table, told

from synthseg.report.html import NIIVUE

PACKAGE = ROOT / "src" / "synthseg"
OURS = (".py", ".pyc", ".j2", ".css", ".tsv", ".toml", ".typed", ".safetensors", "cohort.js", "scan.js")
PERMISSIVE = re.compile(
    r"\b(MIT|BSD|Apache|ISC|PSF|Python Software Foundation|Zlib|CC0|0BSD|Unlicense|HPND|MIT-CMU|BSL-1\.0|matplotlib)",
    re.I,
)
COPYLEFT = re.compile(r"\b(A?GPL|LGPL|MPL|EPL|CDDL|EUPL|Mozilla|GNU)", re.I)


def test_the_page_of_licences_is_what_the_project_asks_for() -> None:
    assert PAGE.read_text(encoding="utf-8") == render(), "run `make licences`"


def test_every_package_that_is_asked_for_has_a_licence_and_a_purpose_and_no_other() -> None:
    direct = table()["direct"]
    assert set(direct) == set(declared())
    assert all(len(entry) == 2 and all(entry) for entry in direct.values())
    text = PAGE.read_text(encoding="utf-8")
    for name, (versions, _) in declared().items():
        assert f"| {name} | {versions} |" in text


def test_licences_are_those_that_the_packages_themselves_state() -> None:
    """By the family: packages spell one licence in many ways."""
    families = ("LGPL", "MIT", "BSD", "Apache", "Matplotlib")
    installed = closure(declared())
    assert len(installed) > 20
    for name in set(table()["direct"]) & set(installed):
        stated = told(installed[name])
        ours = [family for family in families if family.lower() in table()["direct"][name][0].lower()]
        if "different authors" in stated:  # dcm2niix: the text of the licence stands in place of its name
            stated = str(installed[name].metadata["License"]).replace("Redistribution and use in source", "BSD")
        if stated.startswith("Copyright") or not stated:
            continue  # a text whose first line says nothing
        assert any(family.lower() in stated.lower() for family in ours), (name, stated, ours)


def test_what_packages_bring_is_permissive_or_noted_and_never_gpl() -> None:
    given = table()
    for name, package in closure(declared()).items():
        stated = " ".join([told(package), given["transitive"].get(name, ""), str(given["direct"].get(name, [""])[0])])
        assert not re.search(r"(?<!L)\bA?GPL|GNU General|GNU Affero", stated), (name, stated)
        assert PERMISSIVE.search(stated) or COPYLEFT.search(stated), (name, stated)
        if COPYLEFT.search(stated):
            assert name in given["notes"], f"{name}: {stated} without a note in tools/licences.toml"
            assert f"- {name}: " in PAGE.read_text(encoding="utf-8")


def test_files_of_others_are_listed_and_come_with_their_licences() -> None:
    bundled = table()["bundled"]
    listed = {file for one in bundled for file in one["files"]} | {one["text"] for one in bundled}
    theirs = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and not path.name.endswith(OURS)
    }
    assert theirs - {"report/static/niivue-BUILD.md"} == listed  # how it was built is ours
    for one in bundled:
        text = (PACKAGE / one["text"]).read_text(encoding="utf-8")
        for part in re.split(r"[(),]", one["name"])[1:]:
            assert part.strip().replace("-", "").lower() in text.replace("-", "").lower(), part
        for licence in one["licence"].split(", "):
            assert licence in text


def test_the_viewer_is_the_file_whose_making_is_described() -> None:
    described = (PACKAGE / "report" / "static" / "niivue-BUILD.md").read_text(encoding="utf-8")
    assert hashlib.sha256((PACKAGE / "report" / "static" / NIIVUE).read_bytes()).hexdigest() in described


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("cyclonedx_py") is None, reason="no cyclonedx-bom")
def test_the_bill_of_materials_holds_every_package_that_is_needed(tmp_path: Path) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    command = re.search(r"^\t@\$\(BIN\)/cyclonedx-py (.*) -o \$\(SBOM\)$", makefile, re.MULTILINE)
    assert command is not None
    arguments = (
        command[1].replace("$(BIN)/python", sys.executable).replace("pyproject.toml", str(ROOT / "pyproject.toml"))
    )
    made = tmp_path / "sbom.json"
    subprocess.run([sys.executable, "-m", "cyclonedx_py", *arguments.split(), "-o", str(made)], check=True)
    said = json.loads(made.read_text(encoding="utf-8"))
    assert said["bomFormat"] == "CycloneDX"
    assert said["metadata"]["component"]["name"] == "synthseg"
    versions = {re.sub(r"[-_.]+", "-", one["name"]).lower(): one["version"] for one in said["components"]}
    assert {n: p.version for n, p in closure(declared()).items() if versions.get(n) != p.version} == {}


PINNED = ["a==1.0", "b==2.0"]
FINE = {"name": "a", "version": "1.0", "vulns": []}
SKIPPED = {"name": "b", "skip_reason": "Dependency not found on PyPI and could not be audited: b (2.0)"}
FLAWED = {"name": "b", "version": "2.0", "vulns": [{"id": "PYSEC-1", "fix_versions": ["2.1"]}]}


@pytest.mark.parametrize(
    ("answer", "code", "says"),
    [
        (json.dumps({"dependencies": [FINE, FINE | {"name": "b"}]}), 0, "2 packages looked up, none with a known"),
        (json.dumps({"dependencies": [FINE, FLAWED]}), 1, "VULNERABLE: b 2.0: PYSEC-1, fixed in: 2.1"),
        (json.dumps({"dependencies": [FINE, SKIPPED]}), 3, "NO AUDIT of 1 of 2 packages"),
        (json.dumps({"dependencies": [FINE]}), 3, "NO AUDIT of 1 of 2 packages"),
        (json.dumps({"dependencies": [SKIPPED | {"name": "a"}, FLAWED]}), 1, "NO AUDIT of 1 of 2 packages"),
        ("", 3, "NO AUDIT: pip-audit gave no answer (ConnectionError: no route)"),
        ("[]", 3, "NO AUDIT: pip-audit gave no answer"),
    ],
)
def test_an_audit_without_an_answer_never_passes(
    answer: str, code: int, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert audit.judge(PINNED, answer, "Traceback\nConnectionError: no route") == code
    out, err = capsys.readouterr()
    assert says in out + err
    assert ("none with a known" in out) == (code == 0)


def test_the_audit_asks_for_exactly_what_is_needed_at_run_time() -> None:
    asked = {line.partition("==")[0] for line in audit.requirements()}
    assert {"torch", "numpy", "nibabel"} <= asked
    assert not asked & {"synthseg", "pytest", "ruff"}
    assert not any("+" in line for line in audit.requirements())
