"""Folders of volumes as arguments of commands."""

from __future__ import annotations

from fnmatch import fnmatch
from pathlib import Path


def volumes_in(place: Path, pattern: str, *, what: str) -> list[Path]:
    """The file itself, or the folder's volumes of such names (not searched recursively), in order.

    Args:
        pattern: a shell pattern; a file given by itself need not fit it.
        what: the volumes are, for messages.
    Raises: UsageError if there is nothing.
    """
    from synthseg.errors import UsageError
    from synthseg.reading import is_file, is_folder, list_folder
    from synthseg.volumes import is_volume_path

    if is_file(place):
        return [place]
    if not is_folder(place):
        raise UsageError(place, found="no such file or folder", fix="check the path")
    files = [p for p in list_folder(place) if is_volume_path(p) and fnmatch(p.name, pattern) and is_file(p)]
    if not files:
        named = "" if pattern == "*" else f" named {pattern!r}"
        raise UsageError(place, found=f"no {what}{named} in this folder", fix="check the folder and the pattern")
    return files


def images_of(files: list[Path], images: Path, pattern: str) -> dict[Path, Path]:
    """The image of each label map that has one, paired by name.

    Args:
        images: one image, or a folder of them.
        pattern: a shell pattern of the images' names.
    Raises: UsageError for an image of several label maps, or none that fits any.
    """
    from synthseg.errors import UsageError
    from synthseg.evaluation.pairing import pair_files
    from synthseg.reading import is_file

    if is_file(images) and len(files) > 1:
        raise UsageError(images, found=f"one image for {len(files)} label maps", fix="give a folder of images")
    found: dict[Path, Path] = {}
    for file in files:
        for pair in pair_files(file, images, truth_pattern=pattern).pairs:
            if pair.truth in found.values():
                fix = "name image and label map alike, or narrow them down with patterns"
                raise UsageError(pair.truth, found=f"an image that fits {file.name} and another label map", fix=fix)
            found[file] = pair.truth
    if not found:
        fix = "name image and label map alike, or leave --images out"
        raise UsageError(images, found="no image that fits the name of a label map", fix=fix)
    return found
