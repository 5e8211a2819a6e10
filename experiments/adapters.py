"""Other tools' results in our label values and file names, for ``synthseg evaluate``.

    python -m experiments.adapters nnunet PREDICTED -o FOLDER        # CASE.nii.gz of labels 0, 1, 2, ...
    python -m experiments.adapters freesurfer SUBJECTS_DIR -o FOLDER # SUBJECT/mri/aseg.mgz
    python -m experiments.adapters samseg OUTPUTS -o FOLDER          # SUBJECT/seg.mgz
    synthseg evaluate FOLDER TRUTHS --long nnunet.tsv

Consecutive labels (nnU-Net, SIFA saved as NIfTI) are taken in the ascending order of the 33 values of synthseg-2.0,
background first; another order is given as ``--mapping TABLE`` (columns source and target).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from synthseg.errors import SynthsegError, UsageError
from synthseg.evaluation import read_mapping

MAPPINGS = Path(__file__).parent / "mappings"


@dataclass(frozen=True)
class Tool:
    """How a tool names its label maps, and which table converts them."""

    pattern: str  # of files below its folder
    level: int  # the subject's name: 0 the file's own, 1 its folder's, 2 that folder's folder's
    mapping: str


TOOLS = {
    "nnunet": Tool("*.nii.gz", 0, "channels"),
    "sifa": Tool("*.nii.gz", 0, "channels"),
    "freesurfer": Tool("*/mri/aseg.mgz", 2, "freesurfer"),
    "samseg": Tool("*/seg.mgz", 1, "freesurfer"),
}


def found_results(folder: Path, tool: Tool) -> Iterator[tuple[str, Path]]:
    """Subject and file of every result, in order."""
    for path in sorted(folder.glob(tool.pattern)):
        subject = path.name.removesuffix(".nii.gz") if tool.level == 0 else path.parents[tool.level - 1].name
        yield subject, path


def adapt_folder(tool_name: str, folder: Path, out: Path, mapping: Path | None = None) -> list[Path]:
    """Convert a folder of a tool's results; returns the files, ``SUBJECT_TOOL.nii.gz``.

    Raises: UsageError for an unknown tool, or a folder without its results; LabelError for values that the table does
        not know; VolumeError for a damaged file.
    """
    from synthseg.volumes import read_volume, write_volume

    if tool_name not in TOOLS:
        raise UsageError("tool", found=repr(tool_name), fix=f"use one of {', '.join(TOOLS)}")
    tool = TOOLS[tool_name]
    table = read_mapping(mapping or MAPPINGS / f"{tool.mapping}.tsv")
    written = []
    for subject, path in found_results(folder, tool):
        volume = read_volume(path, labels=True)
        values = table.apply(volume.data, volume.spacing_mm, subject=path)
        written.append(write_volume(replace(volume, data=values), out / f"{subject}_{tool_name}.nii.gz"))
    if not written:
        fix = f"give the folder that {tool_name} wrote its results to"
        raise UsageError(folder, found=f"no {tool.pattern}", fix=fix)
    return written


def main(arguments: list[str] | None = None) -> int:
    """Parse, convert, print; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.adapters", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tool", choices=tuple(TOOLS))
    parser.add_argument("folder", type=Path)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--mapping", type=Path, help="a table of one's own, with columns source and target")
    given = parser.parse_args(arguments)
    try:
        written = adapt_folder(given.tool, given.folder, given.out, given.mapping)
    except SynthsegError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(f"{len(written)} label maps in {given.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
