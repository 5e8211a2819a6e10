"""What the sources must not contain, whatever anybody adds: pickles, evaluated text, shells, links into the network."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src" / "synthseg"
FILES = sorted(SOURCE.rglob("*.py"))
MODULES = frozenset(
    # run what is in a file
    {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "yaml", "runpy", "code"}
    # talk to the network
    | {
        "urllib",
        "http",
        "requests",
        "httpx",
        "aiohttp",
        "ftplib",
        "smtplib",
        "telnetlib",
        "xmlrpc",
        "socketserver",
        "ssl",
    }
    # unpack without looking, run through a shell
    | {"tarfile", "pty", "commands", "huggingface_hub", "webbrowser"}
)
NAMES = frozenset({"eval", "exec", "compile", "__import__", "input", "breakpoint"})
FUNCTIONS = frozenset(
    {"os.system", "os.popen", "os.startfile", "subprocess.getoutput", "subprocess.getstatusoutput", "tempfile.mktemp"}
    | {"torch.load", "torch.save", "torch.hub.load", "torch.jit.load", "torch.export.load", "shutil.unpack_archive"}
    | {"pandas.read_pickle", "pd.read_pickle", "Markup", "markupsafe.Markup", "logging.config.fileConfig", "os.chmod"}
)
METHODS = frozenset({"extract", "extractall", "enable_load_extension", "read_pickle", "to_pickle"})
ARRAYS = {"np.load": "allow_pickle", "np.save": "allow_pickle", "np.savez": "", "np.savez_compressed": "allow_pickle"}
SOCKET = frozenset({"socket.gethostname"})  # all that is used of it


def _dotted(node: ast.expr) -> str:
    """``a.b.c`` of a name or attribute; "" of anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        before = _dotted(node.value)
        return f"{before}.{node.attr}" if before else ""
    return ""


def faults_of(tree: ast.AST) -> Iterator[str]:
    """Everything in a module that is not allowed."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (f"imports {a.name}" for a in node.names if a.name.partition(".")[0] in MODULES)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if module.partition(".")[0] in MODULES or (
                module == "os" and {a.name for a in node.names} & {"system", "popen"}
            ):
                yield f"imports from {module}"
            if module in ("subprocess", "socket", "torch.serialization"):
                yield f"imports names from {module}, which this test then cannot follow"
        elif isinstance(node, ast.Attribute):
            name = _dotted(node)
            if name in FUNCTIONS or re.fullmatch(r"os\.(exec|spawn|posix_spawn)\w*", name):
                yield f"uses {name}"
            if name.startswith("socket.") and name not in SOCKET:
                yield f"uses {name}"
        elif isinstance(node, ast.Call):
            yield from _faults_of_call(node)


def _faults_of_call(node: ast.Call) -> Iterator[str]:
    name = _dotted(node.func)
    given = {keyword.arg: keyword.value for keyword in node.keywords}
    if name in NAMES or name in FUNCTIONS:
        yield f"calls {name}"
    if isinstance(node.func, ast.Attribute) and node.func.attr in METHODS:
        yield f"calls .{node.func.attr}"
    if name in ARRAYS:
        allowed = given.get("allow_pickle")
        if not (isinstance(allowed, ast.Constant) and allowed.value is False):
            yield f"calls {name} without allow_pickle=False"
    if "shell" in given:
        yield f"calls {name} with a shell"
    if name.startswith("subprocess.") and name != "subprocess.TimeoutExpired":
        first = node.args[0] if node.args else given.get("args")
        if first is None or isinstance(first, ast.Constant | ast.JoinedStr | ast.BinOp):
            yield f"calls {name} with a text instead of a list of arguments"


def test_the_sources_unpickle_evaluate_and_shell_out_nothing() -> None:
    assert len(FILES) > 200
    found = {file: list(faults_of(ast.parse(file.read_text(encoding="utf-8")))) for file in FILES}
    assert {str(file.relative_to(SOURCE)): faults for file, faults in found.items() if faults} == {}


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from pickle import loads",
        "import urllib.request",
        "from os import system",
        "eval('1')",
        "exec(text)",
        "os.system(name)",
        "run = os.system",
        "os.execvp('a', [])",
        "subprocess.run('ls ' + name)",
        "subprocess.run(f'ls {name}')",
        "subprocess.run(['ls'], shell=True)",
        "Popen(x, shell=flag)",
        "from subprocess import run",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "np.savez(path, a=objects)",
        "torch.load(path)",
        "torch.load(path, weights_only=True)",
        "archive.extractall(folder)",
        "tempfile.mktemp()",
        "socket.create_connection(place)",
        "import yaml",
        "__import__(name)",
    ],
)
def test_what_is_not_allowed_is_found(text: str) -> None:
    assert list(faults_of(ast.parse(text)))


def test_templates_mark_nothing_as_safe_but_our_own_style_and_scripts() -> None:
    marked = []
    for template in sorted((SOURCE / "report" / "templates").iterdir()):
        text = template.read_text(encoding="utf-8")
        marked += re.findall(r"{{\s*([^}]*?)\s*\|\s*safe\s*}}", text)
        assert "autoescape" not in text
        assert len(re.findall(r"\bsafe\b", text)) == len(re.findall(r"\|\s*safe\s*}}", text))
    assert sorted(marked) == ["code", "style"]
    assert "autoescape=True" in (SOURCE / "report" / "html.py").read_text(encoding="utf-8")


def test_attributes_in_templates_are_quoted_and_links_are_encoded() -> None:
    for template in sorted((SOURCE / "report" / "templates").iterdir()):
        text = template.read_text(encoding="utf-8")
        assert re.findall(r"[\w-]+={{", text) == [], "an attribute without quotation marks"
        for value in re.findall(r'(?:href|action|formaction)="([^"]*)"', text):
            assert value == "data:," or re.fullmatch(r"{{ [\w.]+ \| link }}", value), value
        assert re.findall(r'\son\w+="', text) == [], "an event handler"


def test_scripts_of_pages_build_no_markup_and_fetch_nothing() -> None:
    for name in ("cohort.js", "scan.js"):
        text = (SOURCE / "report" / "static" / name).read_text(encoding="utf-8")
        for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "Function(", "fetch("):
            assert word not in text, (name, word)
        assert not re.search(r"XMLHttpRequest|WebSocket|sendBeacon|EventSource|https?://(?!www\.w3\.org)", text)
