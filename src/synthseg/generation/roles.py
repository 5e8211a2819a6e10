"""Which labels of a protocol lie outside the brain, are the CSF around it, or are lesions.

What the anatomy stage takes away is read off the label table, so that a number which means skin in one protocol never
erases a structure of another.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from synthseg.errors import ConfigError
from synthseg.generation.config import AnatomyPrior
from synthseg.labels.label import Label
from synthseg.labels.protocol import LabelProtocol

FREESURFER_CSF = 24


def stripped_values(prior: AnatomyPrior, protocol: LabelProtocol) -> tuple[int, ...]:
    """Labels that skull stripping turns into background.

    Chosen automatically where ``prior.strip_values`` is empty: labels without target and side whose contrast class no
    target label has. What looks like a tissue of the brain (5th ventricle, optic chiasm) or comes in a left and a right
    part (cerebral vessels) lies inside it.

    Raises: ConfigError for a given value that is no label, is the background, or has a target of its own.
    """
    if not prior.strip_values:
        inside = {label.contrast_class for label in protocol.labels if label.target}
        return tuple(
            label.value
            for label in protocol.labels
            if label.value and not label.target and label.side == "neutral" and label.contrast_class not in inside
        )
    for value in prior.strip_values:
        label = _label(value, protocol, "strip_values")
        if label.value == 0 or label.target:
            found = f"{value} ({label.name}), whose target in {protocol.name} is {label.target}"
            _refuse("strip_values", found if label.value else "0, the background", "give labels with target 0 only")
    return prior.strip_values


def csf_values(prior: AnatomyPrior, protocol: LabelProtocol) -> tuple[int, ...]:
    """The CSF around the brain, which some stripped pairs lose too: the one given, or FreeSurfer's 24 where it is CSF.

    Raises: ConfigError for a given value that is no label, or none with "csf" in its name.
    """
    if prior.csf_value is None:
        known = {label.value: label.name for label in protocol.labels}
        return (FREESURFER_CSF,) if "csf" in known.get(FREESURFER_CSF, "").lower() else ()
    label = _label(prior.csf_value, protocol, "csf_value")
    if "csf" not in label.name.lower():
        fix = "give the label whose name contains 'csf', or set strip_csf_probability = 0"
        _refuse("csf_value", f"{label.value}, which is '{label.name}' in {protocol.name}", fix)
    return (label.value,)


def lesion_hosts(prior: AnatomyPrior, protocol: LabelProtocol) -> dict[int, int]:
    """Each lesion and the tissue it becomes when lesions are off: its target, which must be a label of the protocol.

    Chosen automatically where ``prior.lesion_values`` is empty: labels with "lesion" in their name whose target is
    another label.

    Raises: ConfigError for a given value that is no label, or a lesion that has no other label as its target.
    """
    lesions = [_label(value, protocol, "lesion_values") for value in prior.lesion_values] or [
        label for label in protocol.labels if "lesion" in label.name.lower() and label.target not in (0, label.value)
    ]
    known = set(protocol.values.tolist())
    for label in lesions:
        if label.target in (0, label.value) or label.target not in known:
            what = "is no label" if label.target not in known else "is no other tissue"
            found = f"lesion {label.value} whose target {label.target} {what} of {protocol.name}"
            _refuse("lesion_values", found, "give lesions that turn into a labelled tissue")
    return {label.value: label.target for label in lesions}


def tissue_values(protocol: LabelProtocol) -> dict[str, tuple[int, ...]]:
    """Labels by what they are to the shape of a brain, read off their names and targets.

    Returns: ``"ventricle"`` (any part of one, choroid plexus included); ``"csf"``, the fluid around the brain; and
        ``"brain"``, every other label with a target.
    """
    ventricle = tuple(label.value for label in protocol.labels if "ventric" in label.name.lower())
    csf = tuple(label.value for label in protocol.labels if "csf" in label.name.lower())
    brain = tuple(label.value for label in protocol.labels if label.target and label.value not in (*csf, *ventricle))
    return {"ventricle": ventricle, "csf": csf, "brain": brain}


@dataclass(frozen=True)
class TissueTables:
    """:func:`tissue_values` as look-up tables by label index: [K] float32, 1 for labels of that tissue."""

    ventricle: Tensor
    csf: Tensor
    brain: Tensor

    @classmethod
    def of_protocol(cls, protocol: LabelProtocol, device: torch.device) -> TissueTables:
        """Build the tables."""
        found = tissue_values(protocol)
        return cls(
            **{name: torch.tensor([float(v in found[name]) for v in protocol.values], device=device) for name in found}
        )

    def of(self, labels: Tensor, tissue: str) -> Tensor:
        """A tissue's mask: [B, X, Y, Z] label indices to [B, 1, X, Y, Z] float32."""
        table: Tensor = getattr(self, tissue)
        return table.index_select(0, labels.flatten().int()).view(labels.shape).unsqueeze(1)


def _label(value: int, protocol: LabelProtocol, key: str) -> Label:
    for label in protocol.labels:
        if label.value == value:
            return label
    raise ConfigError(
        f"generation.anatomy.{key}",
        found=f"{value}, which is no label of {protocol.name}",
        fix="give values of the protocol, or leave the key out to have it chosen from the label table",
    )


def _refuse(key: str, found: str, fix: str) -> None:
    raise ConfigError(f"generation.anatomy.{key}", found=found, fix=fix)
