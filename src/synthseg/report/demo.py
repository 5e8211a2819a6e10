"""The demonstration: a template that comes with a package, segmented and looked at."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from synthseg.errors import UsageError
from synthseg.inference import BatchOptions, Outputs, Segmenter, plan_jobs, run_batch
from synthseg.report.overlay import require_matplotlib, write_overlay
from synthseg.volumes import Volume, write_volume


@dataclass(frozen=True)
class DemoResult:
    """Files written, the template first, and volumes in mm3 by structure name."""

    files: tuple[Path, ...]
    volumes_mm3: dict[str, float]


def load_template() -> Volume:
    """The MNI152 T1 template (1 mm, skull-stripped) that nilearn carries as a file.

    Raises: UsageError if nilearn is not installed.
    """
    try:
        from nilearn.datasets import load_mni152_template
    except ImportError as error:
        fix = 'install it with: pip install "synthseg[demo]"'
        raise UsageError("synthseg demo", found="no nilearn, whose template it segments", fix=fix) from error
    image = load_mni152_template(resolution=1)
    return Volume(np.asarray(image.dataobj, dtype=np.float32), np.asarray(image.affine, dtype=np.float64))


def run_demo(segmenter: Segmenter, out: Path, template: Volume) -> DemoResult:
    """Write ``template.nii.gz``, its segmentation, ``volumes.tsv`` and an overlay picture into ``out``.

    Raises: UsageError without matplotlib, whatever a segmentation raises, OutputError if ``out`` cannot be written to.
    """
    require_matplotlib()
    scan = out / "template.nii.gz"
    table = out / "volumes.tsv"
    write_volume(template, scan)
    outputs = Outputs(overlay=True)
    jobs = plan_jobs([scan], out, outputs)
    options = BatchOptions(overwrite=True, table=table, overlay=write_overlay)
    result = run_batch(segmenter, jobs, outputs, options)
    if result.interrupted:
        raise KeyboardInterrupt
    outcome = result.outcomes[0]
    error = outcome.error or result.table_error
    if error is not None:
        raise error
    return DemoResult((scan, *jobs[0].files.values(), table), outcome.volumes_mm3)
