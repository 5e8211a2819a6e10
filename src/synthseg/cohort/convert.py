"""From a DICOM series to a NIfTI file, by dcm2niix. Nothing in the file and its JSON sidecar says who it is of."""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from synthseg.cohort.dicom import require_dicom
from synthseg.cohort.series import Series
from synthseg.cohort.technical import write_technical
from synthseg.errors import UsageError, VolumeError
from synthseg.files import atomic_file
from synthseg.reading import real_path

CONVERSION_S = 1800
_HEADER = 348  # bytes of a NIfTI-1 header
_EXACT = 0.005  # of a slice: nothing to mend
_SAME = 0.25  # of a voxel: nearer than this, rounded positions are those of the grid
_ROUNDED = 0.1  # of the distance of slices: what rounding may have done to it


def series_key(series: Series) -> str:
    """Eight letters that tell one series with these files from any other."""
    # Without identifiers it is by names: those of a zip are unpacked under the same ones every time, elsewhere.
    images = sorted(header.instance or header.path.name for header in series.headers)
    return hashlib.sha256(
        "\n".join([series.first.study, series.first.series, *images]).encode("utf-8", "surrogateescape")
    ).hexdigest()[:8]


def convert(series: Series, target: Path, *, archive: Path | None = None) -> Path:
    """Make a NIfTI file of a series, unless it is there from earlier.

    Beside it lie what of dcm2niix's JSON sidecar says nothing of the patient (``technical.py``), and
    ``NAME_source.json``, which names the files that it came from.

    Args:
        target: ``.nii.gz``; its name should come from :func:`series_key`, so that what is there is of this series.
        archive: the zip that the files were unpacked from, which they will not outlive.
    Returns: ``target``.
    Raises: VolumeError where dcm2niix fails or makes no image; UsageError without the packages; OutputError.
    """
    require_dicom()
    note = source_note(target)
    if target.exists() and note.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent.absolute(), prefix=".dcm2niix-") as place:
        given, made = Path(place, "in"), Path(place, "out")
        given.mkdir()
        made.mkdir()
        for index, path in enumerate(series.files):
            _link(path, given / f"{index:06d}.dcm")
        told = _run_dcm2niix(series, given, made)
        try:
            image = _best(made)
            content = b"" if image is None else finished(image.read_bytes(), series)
        except Exception as error:  # a file that dcm2niix made of damaged slices may be damaged in any way
            found = f"{series.name}, of which dcm2niix made no usable image ({type(error).__name__}: {error})"
            fix = "convert it by hand, and give the NIfTI file"
            raise VolumeError(series.first.path.parent, found=found, fix=fix) from error
        if image is None:
            found = f"{series.name}, of which dcm2niix made no image ({told})"
            raise VolumeError(series.first.path.parent, found=found, fix="convert it by hand, and give the NIfTI file")
        sidecar = image.with_suffix(".json")
        if sidecar.exists():
            write_technical(sidecar, target.with_name(target.name.removesuffix(".nii.gz") + ".json"))
        with atomic_file(target) as file:
            file.write(gzip.compress(content, compresslevel=6, mtime=0))
    with atomic_file(note) as file:
        values: dict[str, object] = {"series": series.first.series}
        if archive is None:
            values["files"] = [str(real_path(path)) for path in series.files]
        else:
            values |= {"archive": str(real_path(archive)), "files": []}
        file.write((json.dumps(values, indent=1) + "\n").encode())
    return target


def finished(raw: bytes, series: Series) -> bytes:
    """An uncompressed NIfTI file of dcm2niix's, its slices evened out and its header's texts empty.

    dcm2niix writes the time of acquisition into ``descrip`` and the image's comments, which may hold anything, into
    ``aux_file``, also when it is told to leave out who the patient is (``-ba y``).
    """
    import nibabel as nib

    header = nib.Nifti1Header(raw[:_HEADER])
    _even_out(header, series)
    for field in ("descrip", "aux_file", "db_name", "intent_name"):
        header[field] = b""
    return bytes(header.binaryblock) + raw[_HEADER:]


def _even_out(header: Any, series: Series) -> None:
    """Let the slices of a NIfTI file end where the series says, not only begin there.

    dcm2niix takes the distance of slices from the first two. Where scanners round positions (to 0.1 mm, say), that is
    wrong by a percent, and the far end of the head by more than a millimetre (measured: 1.3 mm over 133 mm). The mean
    distance is right at both ends. Files on another grid (tilted gantry, evened slices) are left as they are.
    """
    places = sorted((float(np.dot(p, series.normal)), p) for header in series.headers for p in header.positions)
    ends = np.array([places[0][1], places[-1][1]]) * (-1, -1, 1)  # LPS to RAS: the first pixel of the end slices
    affine = np.array(header.get_best_affine())
    slices = int(header["dim"][3])
    voxels = np.c_[ends, [1, 1]] @ np.linalg.inv(affine).T
    last = slices - 1
    wanted = np.array([0, last] if voxels[1, 2] > voxels[0, 2] else [last, 0])
    off = np.abs(voxels[:, 2] - wanted)
    anchor = int(np.argmin(off))
    in_plane = np.abs(voxels[:, :2] - np.rint(voxels[:, :2])).max()
    same_stack = slices > 1 and slices == len(series.offsets_mm) and off[anchor] < _SAME and in_plane < _SAME
    if not same_stack or off.max() < _EXACT or off.max() > _ROUNDED * last:
        return
    mended = affine.copy()
    mended[:3, 2] = (ends[1] - ends[0]) / (wanted[1] - wanted[0])
    mended[:3, 3] = ends[anchor] - mended[:3, :3] @ [*np.rint(voxels[anchor, :2]), wanted[anchor]]
    header.set_qform(mended, int(header["qform_code"]), strip_shears=True)
    header.set_sform(mended, int(header["sform_code"]) or 1)


def source_note(converted: Path) -> Path:
    """The file that says which DICOM files a converted scan came from."""
    return converted.with_name(converted.name.removesuffix(".nii.gz") + "_source.json")


def _run_dcm2niix(series: Series, given: Path, made: Path) -> str:
    import dcm2niix

    # Not compressed: that is done once, when the header is finished, alike whatever else is installed. Both folders are
    # ours, absolute, and hold numbered links: no name of a user's can become an option or part of a command.
    arguments = [dcm2niix.bin, "-z", "n", "-b", "y", "-ba", "y", "-f", "scan", "-o", str(made), str(given)]
    try:
        run = subprocess.run(arguments, capture_output=True, timeout=CONVERSION_S, check=False)
    except subprocess.TimeoutExpired as error:
        fix = "convert it by hand, and give the NIfTI file"
        raise VolumeError(series.first.path.parent, found="a series that takes too long to convert", fix=fix) from error
    except OSError as error:
        raise UsageError("dcm2niix", found=f"no way to run it ({error})", fix="pip install dcm2niix") from error
    told = (run.stdout + run.stderr).decode("utf-8", "replace")  # descriptions come in any encoding
    lines = [line for line in told.splitlines() if "rror" in line or "arning" in line]
    return "; ".join(line.strip() for line in lines[-2:]) or f"exit code {run.returncode}"


def _best(made: Path) -> Path | None:
    """Of what dcm2niix made of one series: evenly spaced and upright if it says so, the most voxels, the first echo."""
    import nibabel as nib

    def goodness(path: Path) -> tuple[bool, bool, bool, int, str]:
        parts = path.stem.split("_")
        shape = nib.load(path).shape  # type: ignore[attr-defined]
        flat = len(shape) == 3
        voxels = int(shape[0] * shape[1] * shape[2])
        return "Eq" not in parts, "Tilt" not in parts, not flat, -voxels, path.name

    images = [path for path in made.glob("*.nii") if "_ROI" not in path.name]
    return min(images, key=goodness, default=None)


def _link(path: Path, place: Path) -> None:
    """The file under another name without a copy, where the system can do that."""
    try:
        place.symlink_to(real_path(path))
    except OSError:
        shutil.copyfile(path, place)
