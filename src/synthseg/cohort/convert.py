"""From a DICOM series to a NIfTI file, by dcm2niix. The file and its JSON sidecar hold no names (``-ba y``)."""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from synthseg.cohort.dicom import require_dicom
from synthseg.cohort.series import Series
from synthseg.errors import UsageError, VolumeError
from synthseg.files import atomic_file

CONVERSION_S = 1800
_HEADER = 348  # bytes of a NIfTI-1 header
_EXACT = 0.005  # of a slice: nothing to mend
_SAME = 0.25  # of a voxel: nearer than this, rounded positions are those of the grid
_ROUNDED = 0.1  # of the distance of slices: what rounding may have done to it


def series_key(series: Series) -> str:
    """Eight letters that tell one series with these files from any other."""
    # Without identifiers it is by names: those of a zip are unpacked under the same ones every time, elsewhere.
    images = sorted(header.instance or header.path.name for header in series.headers)
    return hashlib.sha256("\n".join([series.first.study, series.first.series, *images]).encode()).hexdigest()[:8]


def convert(series: Series, target: Path, *, archive: Path | None = None) -> Path:
    """Make a NIfTI file of a series, unless it is there from earlier.

    Beside it lie dcm2niix's JSON sidecar and ``NAME_source.json``, which names the files that it came from.

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
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".dcm2niix-") as place:
        given, made = Path(place, "in"), Path(place, "out")
        given.mkdir()
        made.mkdir()
        for index, path in enumerate(series.files):
            _link(path, given / f"{index:06d}.dcm")
        told = _run_dcm2niix(series, given, made)
        image = _best(made)
        if image is None:
            found = f"{series.name}, of which dcm2niix made no image ({told})"
            raise VolumeError(series.first.path.parent, found=found, fix="convert it by hand, and give the NIfTI file")
        even_out(image, series)
        sidecar = image.with_name(image.name.removesuffix(".nii.gz") + ".json")
        if sidecar.exists():
            sidecar.replace(target.with_name(target.name.removesuffix(".nii.gz") + ".json"))
        image.replace(target)
    with atomic_file(note) as file:
        values: dict[str, object] = {"series": series.first.series}
        if archive is None:
            values["files"] = [str(path.resolve()) for path in series.files]
        else:
            values |= {"archive": str(archive.resolve()), "files": []}
        file.write((json.dumps(values, indent=1) + "\n").encode())
    return target


def even_out(image: Path, series: Series) -> None:
    """Let the slices of a NIfTI file end where the series says, not only begin there.

    dcm2niix takes the distance of slices from the first two. Where scanners round positions (to 0.1 mm, say), that is
    wrong by a percent, and the far end of the head by more than a millimetre (measured: 1.3 mm over 133 mm). The mean
    distance is right at both ends. Files on another grid (tilted gantry, evened slices) are left as they are.
    """
    import nibabel as nib

    places = sorted((float(np.dot(p, series.normal)), p) for header in series.headers for p in header.positions)
    ends = np.array([places[0][1], places[-1][1]]) * (-1, -1, 1)  # LPS to RAS: the first pixel of the end slices
    raw = gzip.decompress(image.read_bytes())
    header = nib.Nifti1Header(raw[:_HEADER])
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
    with atomic_file(image) as file:
        file.write(gzip.compress(header.binaryblock + raw[_HEADER:], mtime=0))


def source_note(converted: Path) -> Path:
    """The file that says which DICOM files a converted scan came from."""
    return converted.with_name(converted.name.removesuffix(".nii.gz") + "_source.json")


def _run_dcm2niix(series: Series, given: Path, made: Path) -> str:
    import dcm2niix

    # Internal compression, so that the same series gives the same bytes whatever else is installed.
    arguments = [dcm2niix.bin, "-z", "i", "-b", "y", "-ba", "y", "-f", "scan", "-o", str(made), str(given)]
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
        parts = path.name.removesuffix(".nii.gz").split("_")
        shape = nib.load(path).shape  # type: ignore[attr-defined]
        flat = len(shape) == 3
        voxels = int(shape[0] * shape[1] * shape[2])
        return "Eq" not in parts, "Tilt" not in parts, not flat, -voxels, path.name

    images = [path for path in made.glob("*.nii.gz") if "_ROI" not in path.name]
    return min(images, key=goodness, default=None)


def _link(path: Path, place: Path) -> None:
    """The file under another name without a copy, where the system can do that."""
    try:
        place.symlink_to(path.resolve())
    except OSError:
        shutil.copyfile(path, place)
