"""What is measured: every contender of every group as a command line."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from benchmarks.inference.peers import KERAS, ONNX, python_of

SYNTHSEG = (sys.executable, "-c", "import sys; from synthseg.cli import main; sys.exit(main())")
GROUPS = ("forward", "scan", "peers", "many", "accuracy", "start")
SCANS = ("head", "conformed")
ENDING = ".nii.gz"
# Contenders of a forward pass and the settings by which they are called. The first one is what bars compare with.
PLAIN = "plain"
FORWARD: dict[str, tuple[str, ...]] = {
    PLAIN: ("--backend", "eager"),
    "plain, channels last, memory kept": ("--backend", "eager-channels-last", "--keep-memory"),
    "torch float32": ("--backend", "torch"),
    "torch bfloat16": ("--backend", "torch", "--precision", "bfloat16"),
    "openvino float32": ("--backend", "openvino"),
    "openvino int8": ("--backend", "openvino", "--precision", "int8"),
}
COMPILED = {"compile float32": ("--backend", "compile")}
# Contenders end to end: settings of `synthseg segment`.
SEGMENT: dict[str, tuple[str, ...]] = {
    "as it comes": (),
    "torch float32": ("--backend", "torch"),
    "torch bfloat16": ("--backend", "torch", "--precision", "bfloat16"),
    "openvino float32": ("--backend", "openvino"),
    "openvino int8": ("--backend", "openvino", "--precision", "int8"),
}
EVERY = tuple(name for name in SEGMENT if name != "as it comes")


@dataclass(frozen=True, kw_only=True)
class Setup:
    """Where things are and how the run goes."""

    work: Path  # networks, scans and results that only this run needs
    data: Path  # the folder of validation scans
    peers: Path  # environments of peers
    threads: int = 2
    side: int = 192  # voxels of the forward pass
    small: int = 0  # voxels of a second one with a warm pass after the cold one; 0 leaves it out
    memory: str | None = None  # budget of our forward pass
    scan_memory: str | None = None  # budget of `synthseg segment`
    heavy: bool = True  # the plain path over 256^3 voxels too, which needs some 14 GB
    compiled: bool = False
    subset: str = "full"

    @property
    def paper(self) -> Path:
        return self.work / "paper.safetensors"

    @property
    def scans(self) -> dict[str, Path]:
        return {
            "head": self.data / "mni" / "mni152nlin6_1mm_t1_head.nii.gz",
            "conformed": self.work / "conformed.nii.gz",
        }


@dataclass(frozen=True)
class Task:
    """One command. ``out`` is the label map it writes; ``missing`` says why it cannot be run here."""

    group: str
    name: str
    command: tuple[str, ...]
    out: Path | None = None
    missing: str = ""
    once: bool = False  # one round is enough: its answer counts, or it takes long
    settings: dict[str, str] = field(default_factory=dict)

    @property
    def slug(self) -> str:
        """The name as a file name."""
        return "".join(c if c.isalnum() or c in ".-" else "_" for c in f"{self.group}-{self.name}")


def tasks_of(setup: Setup, groups: tuple[str, ...]) -> list[Task]:
    """All tasks, contenders of one comparison beside each other."""
    makers = {
        "forward": forward_tasks,
        "scan": scan_tasks,
        "peers": peer_tasks,
        "many": many_tasks,
        "accuracy": accuracy_tasks,
        "start": start_tasks,
    }
    return [task for group in groups for task in makers[group](setup)]


def forward_tasks(setup: Setup) -> Iterator[Task]:
    """The paper's network, one pass."""
    contenders = FORWARD | (COMPILED if setup.compiled else {})
    for side in filter(None, (setup.small, setup.side)):
        for name, settings in contenders.items():
            ours = "plain" not in name
            words = ["--side", str(side), "--threads", str(setup.threads), *settings]
            words += ["--memory", setup.memory] if ours and setup.memory else []
            words += ["--again"] if side == setup.small else []
            yield _python("forward", f"{side}/{name}", "forward", setup.paper, *words)
        if side == setup.side:
            yield from _answers(setup, contenders)


def _answers(setup: Setup, contenders: dict[str, tuple[str, ...]]) -> Iterator[Task]:
    """How far each is from plain, plain first."""
    folder = setup.work / "reference"
    for name, settings in contenders.items():
        words = ["--side", str(setup.side), "--threads", str(setup.threads), *settings]
        words += ["--write" if name == PLAIN else "--against", str(folder)]
        out = folder / f"{setup.side}-000.npy" if name == PLAIN else None
        yield _python("forward", f"{setup.side}/answer of {name}", "forward", setup.paper, *words, out=out, once=True)


def scan_tasks(setup: Setup) -> Iterator[Task]:
    """Whole processes, from a file to a file."""
    for mode in ("default", "fast"):
        yield _plain(setup, "head", "paper", mode)
        yield from (_ours(setup, "head", "paper", mode, name) for name in EVERY)
        yield _plain(setup, "head", "shipped", mode)
        yield from (_ours(setup, "head", "shipped", mode, name) for name in ("as it comes", "openvino int8"))
    # Once each, and in default only: `fast` holds one pass where default holds two.
    if setup.heavy:
        yield replace(_plain(setup, "conformed", "paper", "default"), once=True)
    for which, names in (("paper", EVERY), ("shipped", ("as it comes",)), ("compact", ("as it comes",))):
        yield from (replace(_ours(setup, "conformed", which, "default", name), once=True) for name in names)


def _weights(setup: Setup, which: str) -> str:
    return {"paper": str(setup.paper), "shipped": "default", "compact": "synthseg-2mm-compact"}[which]


def _plain(setup: Setup, scan: str, which: str, mode: str) -> Task:
    name = f"{scan}/{which}/{mode}/{PLAIN}"
    out = setup.work / "labels" / f"{name.replace('/', '-')}{ENDING}"
    words = ["--weights", _weights(setup, which), "--mode", mode, "--threads", str(setup.threads)]
    return _python("scan", name, "plain", setup.scans[scan], out, *words, out=out)


def _ours(setup: Setup, scan: str, which: str, mode: str, contender: str) -> Task:
    name = f"{scan}/{which}/{mode}/{contender}"
    out = setup.work / "labels" / f"{name.replace('/', '-').replace(' ', '-')}{ENDING}"
    words = ["--weights", _weights(setup, which), "--mode", mode, *_common(setup), *SEGMENT[contender]]
    return Task("scan", name, (*SYNTHSEG, "segment", str(setup.scans[scan]), "-o", str(out), *words), out)


def _common(setup: Setup) -> list[str]:
    words = ["--overwrite", "--threads", str(setup.threads)]
    return words + (["--memory", setup.scan_memory] if setup.scan_memory else [])


def peer_tasks(setup: Setup) -> Iterator[Task]:
    """The same network in other software, each in its own environment."""
    shape = ["192", "224", "192"] if setup.side == 192 else [str(setup.side)] * 3
    keras = python_of(setup.peers, KERAS)
    arrays = setup.work / "paper.npz"
    make = "python -m benchmarks.inference.peers FOLDER --make"
    no_keras = "" if keras.is_file() else f"no environment: {make}"
    here = Path(__file__).with_name("peer_keras.py")
    for passes, mode in ((1, "fast"), (2, "default")):
        words = (str(here), str(arrays), "--shape", *shape, "--passes", str(passes), "--threads", str(setup.threads))
        yield Task("peers", f"keras/{mode}", (str(keras), *words), missing=no_keras)
    onnx = python_of(setup.peers, ONNX)
    model = setup.work / "paper.onnx"
    no_onnx = "" if onnx.is_file() else f"no environment: {make}"
    no_onnx = no_onnx or ("" if model.is_file() else "the network could not be exported")
    here = Path(__file__).with_name("peer_onnx.py")
    words = (str(here), str(model), "--shape", *[str(setup.side)] * 3, "--threads", str(setup.threads))
    yield Task("peers", "onnxruntime/forward", (str(onnx), *words), missing=no_onnx)
    words = (str(here.with_name("peer_keras.py")), str(arrays), "--shape", *[str(setup.side)] * 3, "--passes", "1")
    yield Task("peers", "keras/forward", (str(keras), *words, "--threads", str(setup.threads)), missing=no_keras)


def many_tasks(setup: Setup) -> Iterator[Task]:
    """Four scans (a few more in the full subset) in one process, and in one each."""
    count = 4 if setup.subset == "quick" else 6
    scans = [str(path) for path in sorted((setup.data / "oasis").glob("*_t1.nii.gz"))[:count]]
    out = setup.work / "many"
    common = _common(setup)
    yield Task("many", f"{count} scans/one process", (*SYNTHSEG, "segment", *scans, "-o", str(out / "one"), *common))
    # A shell's loop: its children's seconds and memory count as its own once it has waited for them.
    loop = 'out="$1"; n="$2"; shift 2; i=0; while [ $i -lt $n ]; do scan="$1"; shift; set -- "$@" "$scan"; i=$((i+1)); '
    loop += '"$SYNTHSEG_PYTHON" -c "$SYNTHSEG_MAIN" segment "$scan" -o "$out" $SYNTHSEG_WORDS || exit 1; done'
    command = ("sh", "-c", loop, "sh", str(out / "each"), str(count), *scans)
    settings = {"SYNTHSEG_PYTHON": SYNTHSEG[0], "SYNTHSEG_MAIN": SYNTHSEG[2], "SYNTHSEG_WORDS": " ".join(common)}
    yield Task("many", f"{count} scans/one process each", command, settings=settings)


def accuracy_tasks(setup: Setup) -> Iterator[Task]:
    """The labelled brains in each precision, float32 first: the others are compared with its labels."""
    out = setup.work / "accuracy"
    for precision in ("float32", "bfloat16", "int8"):
        words = ["--precision", precision, "--threads", str(setup.threads), "--subset", setup.subset]
        yield _python("accuracy", precision, "accuracy", setup.data, out, *words, once=True)


def start_tasks(_: Setup) -> Iterator[Task]:
    """How long the command line takes to say what it can do."""
    yield Task("start", "synthseg --help", (*SYNTHSEG, "--help"))


def _python(group: str, name: str, module: str, *words: object, out: Path | None = None, once: bool = False) -> Task:
    command = (sys.executable, "-m", f"benchmarks.inference.{module}", *map(str, words))
    return Task(group, name, command, out, once=once)
