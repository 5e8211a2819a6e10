"""Running a reader over damaged files, each within 5 s and a bound of memory, and keeping what went wrong.

A file's mutants are read in a process forked for it (``fuzz/worker.py``), which is replaced when it dies, hangs or has
read many. Mutants that reach lines of ours in a new order become parents themselves. Everything random follows from the
seed, the target's name and the mutant's number; a run into the same folder goes on where the last one stopped.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fuzz.minimise import smaller
from fuzz.mutate import MOST_BYTES, Example, Structured, mutant
from fuzz.places import ODD_NAMES, odd_places
from fuzz.reader import Reader

BOUND = 1 << 30  # bytes of address space that reading one of these small files may take
SECONDS = 5.0  # a file
DEFECTS = ("error", "unclear", "hang", "crash", "memory")
_MOST_PARENTS = 400


@dataclass(frozen=True)
class Target:
    """A reader, with examples of what it reads.

    Args:
        name: of the target, e.g. "nifti".
        seeds: writes valid, tiny example files (or folders) into a folder; returns their paths. A fixed choice.
        run: reads one mutated file or folder with our reader. SynthsegError is the expected refusal.
        structured: changes bytes with knowledge of the format (headers that lie), used beside generic changes.
    """

    name: str
    seeds: Callable[[Path], list[Path]]
    run: Callable[[Path], object]
    structured: Structured | None = None


@dataclass
class Tally:
    """What came of a target's files; one row of the summary."""

    target: str
    files: int = 0
    accepted: int = 0
    refused: int = 0
    error: int = 0  # another exception than SynthsegError
    unclear: int = 0  # a refusal that does not name the file, or is not one line
    hang: int = 0
    crash: int = 0
    memory: int = 0
    noisy: int = 0  # warnings or text on standard error beside the answer: told, not counted as a defect
    slowest_s: float = 0.0
    highest_mib: float = 0.0
    parents: int = 0
    arcs: int = 0
    distinct: int = 0  # defects at different places
    seen: list[str] = field(default_factory=list, repr=False)  # their signatures

    @property
    def defects(self) -> int:
        """Files that ended in anything but an acceptance or a clear refusal."""
        return sum(getattr(self, kind) for kind in DEFECTS)

    def row(self) -> dict[str, Any]:
        """For the table."""
        return {
            key: round(value, 3) if isinstance(value, float) else value
            for key, value in asdict(self).items()
            if key != "seen"
        }


class Session:
    """A target's run in a folder: ``state.json``, ``parents/``, ``findings/`` and the mutant being read."""

    def __init__(self, target: Target, out: Path, *, seed: int = 0, bound: int = BOUND, seconds: float = SECONDS):
        self.target, self.seed = target, seed
        self.folder = out / target.name
        for name in ("work", "findings"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        shutil.rmtree(self.folder / "seeds", ignore_errors=True)
        (self.folder / "seeds").mkdir()
        self.examples = [Example.read(path) for path in target.seeds(self.folder / "seeds")]
        if not self.examples:
            raise ValueError(f"target {target.name!r} writes no seeds")
        if max(example.size for example in self.examples) > MOST_BYTES // 4:
            raise ValueError(f"target {target.name!r} writes seeds of more than {MOST_BYTES // 4:,} bytes")
        self.parents = list(self.examples)
        self.arcs: set[str] = set()
        self.last = ""  # message
        self.tally = Tally(target.name)
        self.reader = Reader(target.run, self.folder, bound=bound, seconds=seconds)
        self._resume()

    def run(self, files: int) -> Tally:
        """Read mutants until so many files were read in this folder; the seeds and odd places come first."""
        try:
            if self.tally.files == 0:
                self._read_seeds()
            while self.tally.files < files:
                rng = random.Random(f"{self.seed}/{self.target.name}/{self.tally.files}")
                favourites = self.parents if rng.random() < 0.6 else self.examples
                parent = rng.choice(favourites)
                child = mutant(rng, parent, self.parents, self.target.structured)
                # now and then in a folder of an odd name: the message must stay one line
                place = self.folder / "work" / (rng.choice(ODD_NAMES) if rng.random() < 0.05 else "")
                if self._take(child, parent, place) and len(self.parents) < _MOST_PARENTS:
                    self._keep(child)
                if self.tally.files % 500 == 0:
                    self._save()
        finally:
            self.reader.close()
            self._save()
        return self.tally

    def _read_seeds(self) -> None:
        for example in self.examples:
            self._take(example, None, self.folder / "work")
            if self.tally.accepted != self.tally.files:
                raise ValueError(f"target {self.target.name!r} refuses its own seed {example.name}: {self.last}")
        for path, acceptable in odd_places(self.examples[0], self.folder / "work"):
            answer, _ = self._ask(path)
            if answer["outcome"] == "refused" and not acceptable:
                answer |= {"outcome": "unclear", "message": f"a valid file was refused: {answer['message']}"}
            self._count(answer, None, None, path)
            _remove(path)

    def _take(self, example: Example, parent: Example | None, place: Path) -> bool:
        """Read one example; True if it reached something new and was not a defect."""
        path = example.write(place)
        try:
            answer, new = self._ask(path)
            # Once is no proof: a busy machine may be slow, and telling where a slow reader is can kill it.
            if answer["outcome"] in ("hang", "crash"):
                answer, new = self._ask(path)
            self.last = answer["message"]
        finally:
            _remove(path)
        self._count(answer, example, parent, path)
        return new and answer["outcome"] not in DEFECTS

    def _ask(self, path: Path) -> tuple[dict[str, Any], bool]:
        """The reader's answer, and whether anything ran that had not."""
        answer = self.reader(path)
        new = set(answer["arcs"]) - self.arcs
        self.arcs |= new
        return answer, bool(new)

    def _count(self, answer: dict[str, Any], example: Example | None, parent: Example | None, path: Path) -> None:
        tally, outcome = self.tally, str(answer["outcome"])
        tally.files += 1
        setattr(tally, outcome, getattr(tally, outcome) + 1)
        tally.noisy += bool(answer["noise"])
        tally.slowest_s = max(tally.slowest_s, float(answer["seconds"]))
        tally.highest_mib = max(tally.highest_mib, answer["bytes"] / 2**20)
        tally.parents, tally.arcs = len(self.parents), len(self.arcs)
        kinds = [outcome] if outcome in DEFECTS else []
        for kind in kinds or (["noise"] if answer["noise"] else []):
            first = answer["message"].splitlines()[0] if answer["message"] else ""
            said = first.split(":")[0] if kind == "error" else first if kind in ("crash", "hang") else ""
            said = answer["noise"][0][:60] if kind == "noise" else said
            signature = f"{kind} {answer['place']} {said}"
            if signature not in tally.seen:
                tally.seen.append(signature)
                tally.distinct += kind != "noise"
                self._write_finding(kind, answer, example, parent, path)

    def _write_finding(
        self, kind: str, answer: dict[str, Any], example: Example | None, parent: Example | None, path: Path
    ) -> None:
        folder = self.folder / "findings" / f"{len(self.tally.seen):03d}-{kind}"
        folder.mkdir(parents=True, exist_ok=True)
        note = f"{answer['outcome']} at {answer['place']}, mutant {self.tally.files - 1} of seed {self.seed}\n{path}\n"
        (folder / "note.txt").write_text(f"{note}{answer['message']}\n" + "\n".join(answer["noise"]), errors="replace")
        if example is None:
            return
        if parent is not None and kind != "hang":
            example = smaller(example, parent, lambda tried: self._same(tried, kind, answer["place"]))
        (folder / "input").mkdir(exist_ok=True)
        example.write(folder / "input")

    def _same(self, tried: Example, kind: str, place: str) -> bool:
        path = tried.write(self.folder / "work")
        try:
            answer, _ = self._ask(path)
        finally:
            _remove(path)
        return (answer["outcome"] == kind or (kind == "noise" and bool(answer["noise"]))) and answer["place"] == place

    def _keep(self, child: Example) -> None:
        self.parents.append(child)
        child.write(self.folder / "parents" / f"{len(self.parents):05d}")

    def _save(self) -> None:
        state = {"seed": self.seed, "tally": asdict(self.tally), "arcs": sorted(self.arcs)}
        part = self.folder / "state.part"
        part.write_text(json.dumps(state))
        part.replace(self.folder / "state.json")

    def _resume(self) -> None:
        place = self.folder / "state.json"
        state = json.loads(place.read_text()) if place.exists() else {}
        if state.get("seed") != self.seed:
            for name in ("parents", "findings", "work"):
                shutil.rmtree(self.folder / name, ignore_errors=True)
                (self.folder / name).mkdir()
            return
        self.tally, self.arcs = Tally(**state["tally"]), set(state["arcs"])
        for folder in sorted((self.folder / "parents").iterdir()):
            self.parents.extend(Example.read(path) for path in folder.iterdir())


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
