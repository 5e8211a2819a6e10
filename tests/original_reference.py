"""The original SynthSeg's inference in numpy and scipy: the judge of `--strict-original`.

Written from the behaviour specification alone (sections 1.3-1.7, 4 and 6), by someone who had not read synthseg's own
inference, networks or volumes; nothing of synthseg is imported. One function per step, so that intermediate results
can be compared; `run` does a whole scan, `finish` all that follows the networks, on given posteriors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from original_reference_after import (
    QC_WINDOW,
    clean_default,
    clean_fast,
    csv_text,
    flip_average,
    one_hot,
    parcels,
    printed,
    qc_columns,
    qc_scores,
    qc_window,
    smooth,
    subject_name,
    volume_columns,
    volumes_double,
    volumes_single,
)
from original_reference_grid import (
    Prepared,
    align,
    center_crop,
    normalise,
    orientation,
    pad,
    paste,
    positions,
    prepare,
    resample,
    unalign,
)
from original_reference_labels import CORTEX, PARCEL_VALUES, Table
from original_reference_networks import Weights, encoder, read_keras, unet

Array = np.ndarray[Any, Any]
Files = Mapping[str, str | Path]  # roles as keras_files.FAMILY: "1.0", "2.0", "robust", "parc", "qc"


def segment_default(
    x: Array, weights: Weights, table: Table, *, flip: bool, dtype: DTypeLike = np.float32
) -> dict[str, Array]:
    """[X, Y, Z] -> "posteriors" [L, X, Y, Z], smoothed, flip averaged unless fast; and both passes (section 6.4)."""
    one = smooth(unet(x[None], weights, "unet", dtype))
    if not flip:
        return {"posteriors": one}
    of_flipped = smooth(unet(x[None, ::-1], weights, "unet", dtype))
    return {"posteriors": flip_average(one, of_flipped, table.flip), "pass_1": one, "pass_2": of_flipped}


def segment_robust(x: Array, weights: Weights, dtype: DTypeLike = np.float32) -> dict[str, Array]:
    """[X, Y, Z] -> "posteriors" [33, X, Y, Z] by S1, D and S2; "tissues", "denoised": their argmax."""
    tissues = unet(x[None], weights, "unet", dtype).argmax(0)
    denoised = unet(one_hot(tissues, 5), weights, "l2l", dtype).argmax(0)
    guided = np.concatenate([x[None], one_hot(denoised, 5)])
    return {"posteriors": unet(guided, weights, "unet2", dtype), "tissues": tissues, "denoised": denoised}


def segment_parcels(x: Array, channels: Array, weights: Weights, table: Table, dtype: DTypeLike = np.float32) -> Array:
    """[X, Y, Z] and the segmentation's argmax -> parcel posteriors [69, X, Y, Z], smoothed."""
    cortex = np.isin(table.values[channels], CORTEX)
    return smooth(unet(np.concatenate([x[None], one_hot(cortex, 2)]), weights, "unet_parc", dtype))


def score(
    channels: Array, weights: Weights, table: Table, dtype: DTypeLike = np.float32, window: int = QC_WINDOW
) -> Array:
    """The segmentation's argmax, before any clean-up -> nine raw network outputs."""
    groups = table.groups[qc_window(channels, window)]
    return encoder(one_hot(groups, 9), weights, "qc", dtype)


def finish(
    posteriors: Array,
    prepared: Prepared,
    *,
    parcel_posteriors: Array | None = None,
    fast: bool = False,
    robust: bool = False,
    v1: bool = False,
) -> dict[str, Any]:
    """All that follows the networks, on given posteriors (sections 6.5-6.8).

    Args:
        posteriors: [X, Y, Z, L] in the padded space, after smoothing and flip averaging.
        parcel_posteriors: [X, Y, Z, 69] in the padded space, smoothed.
    Returns: "segmentation" (with parcels if given) and "posteriors" on the output grid; "volumes"; and on the
        un-padded aligned patch "patch_posteriors", "patch_segmentation" (no parcels), "patch_parcel_posteriors".
    """
    table, box = Table(v1), prepared.pad_box
    posteriors = np.ascontiguousarray(posteriors)
    cleaned = clean_fast(posteriors, box) if fast or robust else clean_default(posteriors, table.topology, box)
    segmentation = structures = table.values[cleaned.argmax(-1)]
    of_parcels = None
    if parcel_posteriors is not None:
        segmentation, of_parcels = parcels(structures, np.ascontiguousarray(parcel_posteriors), box)
    whole, whole_posteriors = segmentation, cleaned
    if prepared.cropped:
        whole = paste(segmentation, prepared.aligned_shape, prepared.crop_box)
        whole_posteriors = paste(cleaned, prepared.aligned_shape, prepared.crop_box)
    measure = volumes_double if prepared.cropped else volumes_single
    # Section 6.7 comes before 6.8: posteriors are added up along the scan's own axes. numpy's sum over such a view
    # follows its flips, and not the order of its axes (`test_sums_over_a_view_follow_its_flips`).
    to_sum = _flipped_as_scan(cleaned, prepared)
    return {
        "patch_posteriors": cleaned,
        "patch_segmentation": structures,
        "patch_parcel_posteriors": of_parcels,
        "segmentation": unalign(whole, prepared.how).astype(np.int32),
        "posteriors": unalign(whole_posteriors, prepared.how).astype(np.float32),
        "volumes": measure(to_sum, prepared.zooms, table, v1, parcel_posteriors=of_parcels),
    }


def run(
    path: str | Path,
    files: Files,
    *,
    fast: bool = False,
    robust: bool = False,
    parc: bool = False,
    qc: bool = False,
    ct: bool = False,
    crop: Sequence[int] | None = None,
    v1: bool = False,
    dtype: DTypeLike = np.float32,
    window: int = QC_WINDOW,
) -> dict[str, Any]:
    """One scan through everything: what `finish` returns, the intermediate results, and the CSV texts.

    Further keys: "prepared"; "network_posteriors" [X, Y, Z, L] and "channels" (padded); "pass_1", "pass_2" or
    "tissues", "denoised"; "parcel_network_posteriors"; "qc_raw", "qc"; "affine"; "resampled" or None;
    "volumes_csv", "qc_csv".
    """
    if robust and v1:
        raise ValueError("robust with v1")
    table, prepared = Table(v1), prepare(path, ct=ct, crop=crop)
    x = prepared.network_input.astype(dtype)
    if robust:
        found = segment_robust(x, read_keras(files["robust"]), dtype)
    else:
        weights = read_keras(files["1.0" if v1 else "2.0"])
        found = segment_default(x, weights, table, flip=not fast, dtype=dtype)
    posteriors = _channels_last(found.pop("posteriors"))
    channels = posteriors.argmax(-1)
    of_parcels = None
    if parc:
        of_parcels = _channels_last(segment_parcels(x, channels, read_keras(files["parc"]), table, dtype))
    out: dict[str, Any] = {**found, "prepared": prepared, "network_posteriors": posteriors, "channels": channels}
    out |= {"parcel_network_posteriors": of_parcels, "affine": prepared.affine, "resampled": prepared.resampled}
    out |= finish(posteriors, prepared, parcel_posteriors=of_parcels, fast=fast, robust=robust, v1=v1)
    name = subject_name(Path(path).name)
    out["volumes_csv"] = csv_text(volume_columns(table, v1, parc), [(name, out["volumes"])])
    if qc:
        out["qc_raw"] = score(channels, read_keras(files["qc"]), table, dtype, window)
        out["qc"] = qc_scores(out["qc_raw"])
        out["qc_csv"] = csv_text(qc_columns(), [(name, out["qc"])])
    return out


def _flipped_as_scan(x: Array, prepared: Prepared) -> Array:
    """[X, Y, Z, L] with its axes running as those of the scan, in the same order of axes."""
    return np.ascontiguousarray(np.flip(x, [axis for axis in range(3) if prepared.how.flipped[axis]]))


def _channels_last(x: Array) -> Array:
    """[L, X, Y, Z] -> [X, Y, Z, L], contiguous: sums over channels then round as the original's."""
    return np.ascontiguousarray(np.moveaxis(x, 0, -1))


__all__ = [
    "PARCEL_VALUES",
    "Prepared",
    "Table",
    "align",
    "center_crop",
    "clean_default",
    "clean_fast",
    "csv_text",
    "encoder",
    "finish",
    "flip_average",
    "normalise",
    "one_hot",
    "orientation",
    "pad",
    "parcels",
    "paste",
    "positions",
    "prepare",
    "printed",
    "qc_columns",
    "qc_scores",
    "qc_window",
    "read_keras",
    "resample",
    "run",
    "score",
    "segment_default",
    "segment_parcels",
    "segment_robust",
    "smooth",
    "subject_name",
    "unalign",
    "unet",
    "volume_columns",
    "volumes_double",
    "volumes_single",
]
