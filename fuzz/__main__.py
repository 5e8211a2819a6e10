"""``python -m fuzz``: read mutated files with our readers, and tell what went wrong."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from fuzz.harness import Session, Tally
from fuzz.targets import all_targets


def main(arguments: list[str] | None = None) -> int:
    """Run the targets one after another; 1 if there was any defect."""
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parser.add_argument("--targets", help="names, separated by commas (default: all; --list shows them)")
    parser.add_argument("--files", type=int, default=1000, help="files a target (default: 1000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("fuzz-out"), help="findings, state and summary.tsv")
    parser.add_argument("--list", action="store_true")
    given = parser.parse_args(arguments)
    targets = all_targets()
    if given.list:
        print("\n".join(targets))
        return 0
    chosen = given.targets.split(",") if given.targets else list(targets)
    unknown = sorted(set(chosen) - set(targets))
    if unknown:
        parser.error(f"no target {unknown[0]!r}; there are {', '.join(targets)}")
    tallies = []
    for name in chosen:
        tallies.append(Session(targets[name], given.out, seed=given.seed).run(given.files))
        write_table(tallies, given.out / "summary.tsv")
        print("\t".join(f"{key}={value}" for key, value in tallies[-1].row().items()), flush=True)
    total, defects = sum(tally.files for tally in tallies), sum(tally.defects for tally in tallies)
    print(f"{total} files, {defects} defects; findings under {given.out}")
    return 1 if defects else 0


def write_table(tallies: list[Tally], path: Path) -> None:
    """One row a target."""
    rows = [tally.row() for tally in tallies]
    lines = ["\t".join(rows[0]), *("\t".join(str(value) for value in row.values()) for row in rows)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
