"""Which files a scan's results become, and writing them. Every file appears whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from synthseg.inference.config import check_space
from synthseg.inference.postprocess import largest_component
from synthseg.inference.repeat import check_repeat
from synthseg.inference.segmentation import Segmentation, choose_structures, merge_sides
from synthseg.inference.segmenter import Want
from synthseg.inference.structures import Structure
from synthseg.inference.tables import write_text
from synthseg.inference.tissue_maps import TISSUES
from synthseg.volumes import Volume, write_array4d, write_volume

OverlayWriter = Callable[[Volume, Volume, tuple[Structure, ...], Path], object]
SUFFIX = "_synthseg"
# What a folder's own results are called: never taken for scans when the results lie beside them.
RESULT_ENDINGS = (
    SUFFIX,
    *(f"{SUFFIX}_{kind}" for kind in ("1mm", "posteriors", "mask", *TISSUES)),
    "_resampled",
)


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """What to write for every scan.

    Attributes:
        space: grid of the label map: the scan's own ("native"), "1mm" or "both".
        posteriors: 4D, on the grid of the labels, with a JSON sidecar naming its channels. Parcels have none.
        resampled: the scan itself at 1 mm.
        mask: brain mask: every structure, CSF included, largest piece, holes filled.
        tissue_maps: probabilities of grey matter, white matter and CSF, one file each, on the grid of the labels: from
            all structures, whatever is chosen. What is missing to 1 is background.
        color_table: the labels' colours in FreeSurfer's text format.
        overlay: PNG of the labels over the scan.
        merge_sides: left and right as one label. structures: keep only these (names or values).
        repeat: segment this many slightly changed copies too, for error bars of the volumes (``repeat.py``); 0 or at
            least 2.
    """

    space: str = "native"
    posteriors: bool = False
    resampled: bool = False
    mask: bool = False
    tissue_maps: bool = False
    color_table: bool = False
    overlay: bool = False
    merge_sides: bool = False
    structures: tuple[str, ...] = ()
    repeat: int = 0

    def __post_init__(self) -> None:
        check_space(self.space)
        check_repeat(self.repeat)

    @property
    def want(self) -> Want:
        return Want(
            space=self.space,
            posteriors=self.posteriors,
            regrouped=self.merge_sides or bool(self.structures),
            resampled=self.resampled,
            tissue_maps=self.tissue_maps,
        )


def output_files(folder: Path, stem: str, outputs: Outputs, *, labels_name: str | None = None) -> dict[str, Path]:
    """Every file of one scan by kind. ``labels_name`` overrides the name of the (native, else 1 mm) label map."""
    base = stem + SUFFIX
    names: dict[str, str] = {}
    if outputs.space != "1mm":
        names["labels"] = f"{base}.nii.gz"
    if outputs.space != "native":
        names["labels_1mm"] = f"{base}_1mm.nii.gz"
    if outputs.posteriors:
        names["posteriors"] = f"{base}_posteriors.nii.gz"
        names["posteriors_names"] = f"{base}_posteriors.json"
    if outputs.resampled:
        names["resampled"] = f"{stem}_resampled.nii.gz"
    if outputs.mask:
        names["mask"] = f"{base}_mask.nii.gz"
    if outputs.tissue_maps:
        names |= {tissue: f"{base}_{tissue}.nii.gz" for tissue in TISSUES}
    if outputs.color_table:
        names["color_table"] = f"{base}_colors.txt"
    if outputs.overlay:
        names["overlay"] = f"{base}_overlay.png"
    names["record"] = f"{base}.json"
    if labels_name is not None:
        names[next(iter(names))] = labels_name
    return {kind: folder / name for kind, name in names.items()}


def apply_choices(segmentation: Segmentation, outputs: Outputs) -> Segmentation:
    """The segmentation with the structures chosen and the sides merged as asked for."""
    if outputs.structures:
        segmentation = choose_structures(segmentation, outputs.structures)
    return merge_sides(segmentation) if outputs.merge_sides else segmentation


def write_outputs(
    segmentation: Segmentation, scan: Volume, files: dict[str, Path], outputs: Outputs, overlay: OverlayWriter | None
) -> None:
    """Write all files but the record.

    Args:
        segmentation: of the whole protocol; the mask and the tissue maps come from it, everything else from what
            ``outputs`` chooses.
        scan: the input: for the overlay, and for its header's word on which space (scanner, MNI, ...) the affine is.
        overlay: draws ``(scan, labels, structures, path)``; needed when ``files`` has an overlay.
    Raises: OutputError if a file cannot be written; UsageError for an unknown structure.
    """
    like = scan.path
    if "mask" in files:
        write_volume(brain_mask(segmentation.labels), files["mask"], dtype=np.uint8, header_like=like)
    for tissue, probabilities in (segmentation.tissue_maps or {}).items():
        if tissue in files:
            write_volume(probabilities, files[tissue], dtype=np.float32, header_like=like)
    chosen = apply_choices(segmentation, outputs)
    if "labels" in files and chosen.native is not None:
        write_volume(chosen.native, files["labels"], dtype=np.int32, header_like=like)
    if "labels_1mm" in files and chosen.fine is not None:
        write_volume(chosen.fine, files["labels_1mm"], dtype=np.int32, header_like=like)
    if chosen.posteriors is not None and "posteriors" in files:
        names = [structure.name for structure in chosen.posterior_structures]
        posteriors = chosen.posteriors
        write_array4d(posteriors.data, posteriors.affine, files["posteriors"], names=names, header_like=like)
        write_text(files["posteriors_names"], posteriors_sidecar(chosen.posterior_structures))
    if chosen.resampled is not None and "resampled" in files:
        write_volume(chosen.resampled, files["resampled"], header_like=like)
    if "color_table" in files:
        write_text(files["color_table"], color_table(chosen.structures))
    if "overlay" in files and overlay is not None:
        overlay(scan, chosen.labels, chosen.structures, files["overlay"])


def brain_mask(labels: Volume) -> Volume:
    """1 where there is any structure, CSF included: the largest piece, with its holes filled."""
    from scipy.ndimage import binary_fill_holes  # here: a fifth of a second that most runs need not wait

    mask = binary_fill_holes(largest_component(labels.data > 0))
    return replace(labels, data=mask.astype(np.int32))


def color_table(structures: tuple[Structure, ...]) -> str:
    """FreeSurfer's colour table: value, name without spaces, red, green, blue, 0 (0 = opaque there)."""
    rows = [
        f"{s.value:<6d} {s.name.replace(' ', '-'):<40s} {' '.join(f'{c:3d}' for c in s.color)} 0" for s in structures
    ]
    return "\n".join(["#No.   Label Name:                               R   G   B   A", *rows, ""])


def posteriors_sidecar(structures: tuple[Structure, ...]) -> str:
    """Names of the posterior map's channels (fourth axis), in order."""
    channels = [{"channel": i, "value": s.value, "name": s.name} for i, s in enumerate(structures)]
    return json.dumps({"channels": channels}, indent=1) + "\n"
