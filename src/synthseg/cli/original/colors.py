"""FreeSurfer's colour table: inside MGH files, or as a text file beside others.

In an MGH file it follows the voxels and the five scan parameters as a tag: the number 1, then the table as .annot files
hold it (FreeSurfer wiki, "LabelsClutsAnnotationFiles", version 2). All numbers are big-endian 32-bit integers.
"""

from __future__ import annotations

import gzip
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from synthseg.files import atomic_file
from synthseg.volumes.volume import extension_of, strip_extension

if TYPE_CHECKING:
    from synthseg.inference.structures import Structure

TAG_COLOR_TABLE = 1
VERSION = -2
ORIGIN = "synthseg"
MGH_EXTENSIONS = (".mgz", ".mgh")


def can_embed(path: Path) -> bool:
    """Whether the format of a file has a place for a colour table."""
    return extension_of(path) in MGH_EXTENSIONS


def embed_colors(path: Path, structures: Iterable[Structure]) -> None:
    """Add the colour table to an MGH file that has none. The file is replaced whole.

    Raises: OutputError if it cannot be written.
    """
    packed = extension_of(path) == ".mgz"
    stored = path.read_bytes()
    with atomic_file(path) as file:
        content = (gzip.decompress(stored) if packed else stored) + color_bytes(structures)
        if packed:
            with gzip.GzipFile(filename="", fileobj=file, mode="wb", compresslevel=1, mtime=0) as inside:
                inside.write(content)
        else:
            file.write(content)


def write_colors_beside(path: Path, structures: tuple[Structure, ...]) -> Path:
    """The colour table as a text file beside a label map: ``seg.nii.gz`` -> ``seg_colors.txt``, which is returned."""
    from synthseg.inference.outputs import color_table
    from synthseg.inference.tables import write_text

    beside = path.with_name(f"{strip_extension(path)}_colors.txt")
    write_text(beside, color_table(structures))
    return beside


def color_bytes(structures: Iterable[Structure]) -> bytes:
    """The tag: its number, version, 1 + the largest value, where the table is from, and value, name, red, green, blue
    and transparency of every structure.
    """
    rows = sorted(structures, key=lambda structure: structure.value)
    parts = [_numbers(TAG_COLOR_TABLE, VERSION, rows[-1].value + 1), _text(ORIGIN), _numbers(len(rows))]
    for row in rows:
        parts += [_numbers(row.value), _text(row.name.replace(" ", "-")), _numbers(*row.color, 0)]
    return b"".join(parts)


def _numbers(*values: int) -> bytes:
    return struct.pack(f">{len(values)}i", *values)


def _text(text: str) -> bytes:
    """A text's length and its bytes, the closing zero counted."""
    coded = text.encode() + b"\0"
    return _numbers(len(coded)) + coded
