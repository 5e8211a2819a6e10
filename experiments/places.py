"""Where a study's label maps, scans, images and priors are; the toy size makes its own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from experiments.anatomies import make_training_bank, make_weights, training_bank, weights_table
from experiments.real_images import find_pairs, images_beside, pack_pairs
from experiments.study import Arm, Size
from experiments.toy import toy_bank, toy_priors, toy_scans

from synthseg.errors import ConfigError, UsageError
from synthseg.labels.protocol import load_protocol


@dataclass(frozen=True, kw_only=True)
class Places:
    """Paths; all but the output may be missing where a study does not need them."""

    out: Path  # of this study and size
    bank: Path  # label maps to train on, packed
    scans: Path | None = None  # to evaluate on
    images: Path | None = None  # real images with label maps to train on
    priors: Path | None = None  # tables of priors: NAME/priors.tsv or NAME.tsv

    def bank_of(self, arm: Arm, held_out: int = 0) -> Path:
        """The bank an arm trains on, packed first where it is of real images.

        Where an arm edits maps, or maps are held out, it is made later (:meth:`prepare`).

        Raises: UsageError naming the option that is missing; TrainingError, VolumeError for images that do not do.
        """
        if arm.trainer != "real":
            if not self.bank.is_file():
                fix = "make it with: synthseg bank LABELS -o banks/adults.safetensors, or give --bank"
                raise UsageError(self.bank, found="no label bank", fix=fix)
            return training_bank(self.bank, self.out, held=held_out, shapes=arm.shapes)
        packed = self.out / "images" / "real.safetensors"
        if packed.is_file() and images_beside(packed).is_file():
            return packed
        if self.images is None:
            fix = "give --images, a folder of NAME_t1.nii.gz with NAME_aseg.nii.gz whose licence allows training"
            raise UsageError(f"arm {arm.name}", found="no real images to train on", fix=fix)
        return pack_pairs(find_pairs(self.images), load_protocol("synthseg-2.0"), packed)

    def prepare(self, arm: Arm, held_out: int, size: Size) -> None:
        """Make an arm's bank and weights, where they are its own."""
        if arm.trainer == "real":
            return
        toy = size == "toy"
        bank = make_training_bank(self.bank, self.out, held=held_out, shapes=arm.shapes, toy=toy)
        if arm.sampler != "uniform":
            make_weights(bank, arm.sampler, weights_table(self.out, arm.name))

    def prior_of(self, name: str) -> str | Path:
        """A table of priors by name: the folder's (``synthseg priors estimate -o FOLDER/NAME``), else the built-in one.

        Raises: ConfigError where there is neither.
        """
        for table in () if self.priors is None else (self.priors / name / "priors.tsv", self.priors / f"{name}.tsv"):
            if table.is_file():
                return table
        if name == "t1":
            return name
        fix = f"synthseg priors estimate IMAGES LABELS -o FOLDER/{name}, and give --priors FOLDER"
        raise ConfigError(f"prior {name!r}", found="no table of this name", fix=fix)

    def scans_folder(self) -> Path:
        """The scans. Raises: UsageError where none were given."""
        if self.scans is None or not self.scans.is_dir():
            fix = "give --scans, the folder of validation scans, or one of NAME_t1.nii.gz with NAME_aseg.nii.gz"
            raise UsageError("--scans", found=str(self.scans or "nothing"), fix=fix)
        return self.scans


def find_places(size: Size, given: Places) -> Places:
    """The given places; at toy size made-up ones in the output folder, written once."""
    if size != "toy":
        return given
    data = given.out / "data"
    scans = toy_scans(data / "scans")
    return Places(
        out=given.out, bank=toy_bank(data / "bank.safetensors"), scans=scans, images=scans, priors=toy_priors(data)
    )
