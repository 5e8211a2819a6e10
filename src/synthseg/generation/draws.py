"""A draw as data: everything random about a batch of pairs, to be saved, replayed, cut into its elements and joined."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from synthseg.errors import TrainingError
from synthseg.files import atomic_file
from synthseg.generation.acquisition import AcquisitionDraw
from synthseg.generation.anatomy import AnatomyDraw
from synthseg.generation.clusters import ClustersDraw
from synthseg.generation.deformation import DeformationDraw
from synthseg.generation.inflation import InflationDraw
from synthseg.generation.intensity import BiasDraw, GammaDraw, MixtureDraw
from synthseg.generation.morphology import MorphologyDraw
from synthseg.generation.partial_volume import PartialVolumeDraw
from synthseg.generation.scanner import FieldOfViewDraw, GhostsDraw, NoiseDraw
from synthseg.generation.surroundings import SurroundingsDraw
from synthseg.reading import require_file


class Off(NamedTuple):
    """In the place of an optional stage that is off: nothing was drawn."""


StageT = TypeVar("StageT")


def drawn(stage: StageT | Off) -> StageT | None:
    """The stage's draw, or None where it is off."""
    return None if isinstance(stage, Off) else stage


class PairDraw(NamedTuple):
    """Everything random about a batch."""

    anatomy: AnatomyDraw
    deformation: DeformationDraw
    mixture: MixtureDraw
    bias: BiasDraw
    gamma: GammaDraw
    acquisition: AcquisitionDraw
    partial_volume: PartialVolumeDraw | Off = Off()
    clusters: ClustersDraw | Off = Off()
    morphology: MorphologyDraw | Off = Off()
    surroundings: SurroundingsDraw | Off = Off()
    field_of_view: FieldOfViewDraw | Off = Off()
    noise: NoiseDraw | Off = Off()
    ghosts: GhostsDraw | Off = Off()
    inflation: InflationDraw | Off = Off()

    def element(self, index: int) -> PairDraw:
        """The draw of one element (negative counts from the end), as a batch of one.

        Raises: IndexError beyond the batch.
        """
        return self._map(lambda tensor: tensor[[index]])

    @classmethod
    def join(cls, draws: Sequence[PairDraw]) -> PairDraw:
        """One batch of several; the inverse of :meth:`element`."""
        stages: list[Any] = [
            type(stages[0])(*(torch.cat(tensors) for tensors in zip(*stages, strict=True)))
            for stages in zip(*draws, strict=True)
        ]
        return cls(*stages)

    def to(self, device: torch.device | str) -> PairDraw:
        """The same draw on another device."""
        return self._map(lambda tensor: tensor.to(device))

    def _map(self, function: Callable[[Tensor], Tensor]) -> PairDraw:
        stages: list[Any] = [type(stage)(*map(function, stage)) for stage in self]
        return PairDraw(*stages)

    def save(self, path: str | Path, *, origin: Mapping[str, Any] | None = None) -> None:
        """Write as safetensors, one tensor a parameter, named ``stage.parameter``.

        Args:
            origin: the bank and config it was made with (:attr:`GenerativeModel.origin`), checked when it is replayed.
        """
        tensors = {
            f"{name}.{key}": tensor.contiguous().cpu()
            for name, stage in self._asdict().items()
            for key, tensor in stage._asdict().items()
        }
        with atomic_file(path) as file:
            header = {"format": "synthseg-draw-1", "origin": None if origin is None else dict(origin)}
            file.write(save(tensors, metadata={"draw": json.dumps(header)}))

    @classmethod
    def load(cls, path: str | Path, device: torch.device | str = "cpu") -> PairDraw:
        """Read what :meth:`save` wrote, older versions included: stages they did not know are off.

        Raises: TrainingError naming the file when it is missing, damaged or no draw.
        """
        require_file(path, error=TrainingError, fix="give a file that PairDraw.save wrote", as_text=True)
        try:
            tensors = load_file(path, device=str(device))
            held = {name.partition(".")[0] for name in tensors}
            stages: list[Any] = [
                kind(*(tensors[f"{name}.{key}"] for key in kind._fields))
                if name in held or name not in OPTIONAL
                else Off()
                for name, kind in _STAGES.items()
            ]
            return cls(*stages)
        except (SafetensorError, OSError) as error:
            found = f"no readable file ({error})"
        except KeyError as error:
            found = f"no tensor {error}: not a draw of this version"
        raise TrainingError(path, found=found, fix="give a file that PairDraw.save wrote")


_STAGES: dict[str, Any] = {
    "anatomy": AnatomyDraw,
    "deformation": DeformationDraw,
    "mixture": MixtureDraw,
    "bias": BiasDraw,
    "gamma": GammaDraw,
    "acquisition": AcquisitionDraw,
    "partial_volume": PartialVolumeDraw,
    "clusters": ClustersDraw,
    "morphology": MorphologyDraw,
    "surroundings": SurroundingsDraw,
    "field_of_view": FieldOfViewDraw,
    "noise": NoiseDraw,
    "ghosts": GhostsDraw,
    "inflation": InflationDraw,
}
OPTIONAL = tuple(PairDraw._field_defaults)
