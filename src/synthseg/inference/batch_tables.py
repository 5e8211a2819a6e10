"""The tables that a batch fills, row by row: volumes, predicted quality, warnings."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import numpy as np

from synthseg.errors import SynthsegError, UsageError
from synthseg.inference.layouts import (
    quality_cells,
    quality_layout,
    volume_cells,
    volume_layout,
    warnings_cells,
    warnings_layout,
)
from synthseg.inference.outcome import BatchOptions, Outcome
from synthseg.inference.outputs import Outputs, apply_choices
from synthseg.inference.segmentation import Segmentation
from synthseg.inference.segmenter import Segmenter
from synthseg.inference.structures import CSF_VALUE
from synthseg.inference.tables import ScanTable
from synthseg.volumes import Volume


class BatchTables:
    """The tables asked for, none to three of them.

    Attributes:
        names: of the volumes that every scan will have, in order.
    Raises: UsageError for a table of other columns, one file for two tables, or a segmenter that predicts no quality.
    """

    def __init__(self, segmenter: Segmenter, outputs: Outputs, options: BatchOptions) -> None:
        template = apply_choices(_empty_like(segmenter), outputs)
        self.names = list(template.volumes_by_name())
        self.volumes = self.scores = self.warnings = None
        if options.table is not None:
            values = {structure.name: structure.value for structure in template.structures}
            layout = volume_layout(self.names, values, total=template.intracranial, repeat=outputs.repeat > 0)
            self.volumes = ScanTable(options.table, layout)
        if options.quality_table is not None:
            if options.table is not None and _same_file(options.quality_table, options.table):
                found = "one file for the tables of volumes and of quality"
                raise UsageError(options.quality_table, found=found, fix="give each a file of its own")
            if not segmenter.quality_groups:
                fix = "use Segmenter(quality=True)"
                raise UsageError(options.quality_table, found="a segmenter that predicts no quality", fix=fix)
            self.scores = ScanTable(options.quality_table, quality_layout(segmenter.quality_groups))

        if options.warnings_table is not None:
            for other, what in ((options.table, "volumes"), (options.quality_table, "quality")):
                if other is not None and _same_file(options.warnings_table, other):
                    found = f"one file for the tables of {what} and of warnings"
                    raise UsageError(options.warnings_table, found=found, fix="give each a file of its own")
            self.warnings = ScanTable(options.warnings_table, warnings_layout())

    def add(self, outcome: Outcome) -> None:
        """Take in a scan that is done, now or earlier. A failed one has no row."""
        if outcome.status == "failed":
            return
        if self.volumes is not None:
            self.volumes.add(outcome.job.subject, volume_cells(outcome.volumes_mm3, outcome.intervals_mm3))
        if self.scores is not None and outcome.quality is not None:
            self.scores.add(outcome.job.subject, quality_cells(outcome.quality))
        if self.warnings is not None:
            self.warnings.add(outcome.job.subject, warnings_cells(outcome.warnings))

    def save_if_due(self) -> None:
        """Now and then, put the new rows into the files. What cannot be saved is tried again later."""
        for table in self._tables():
            with contextlib.suppress(SynthsegError):  # told at the end
                table.save_if_due()

    def save(self) -> SynthsegError | None:
        """Put the last rows into the files; what is wrong with one is returned, so that the outcomes are not lost."""
        problem = None
        for table in self._tables():
            try:
                table.save()
            except SynthsegError as error:
                problem = problem or error
        return problem

    def _tables(self) -> list[ScanTable]:
        return [table for table in (self.volumes, self.scores, self.warnings) if table is not None]


def _same_file(one: Path, other: Path) -> bool:
    """Whether two paths, however spelled, lead to one place, where there need not be a file yet."""
    return os.path.realpath(one) == os.path.realpath(other)


def _empty_like(segmenter: Segmenter) -> Segmentation:
    """A segmentation of nothing, to learn what columns the tables will have."""
    structures = segmenter.structures
    volumes = {structure.value: 0.0 for structure in structures if structure.value != 0}
    nothing = Volume(np.zeros((1, 1, 1), np.int32), np.eye(4))
    return Segmentation(
        subject="",
        native=nothing,
        fine=None,
        structures=structures,
        volumes_mm3=volumes,
        total_mm3=0.0,
        intracranial=CSF_VALUE in volumes,
    )
