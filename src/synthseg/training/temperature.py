"""Weights learn how sure they may be: one temperature, fitted on synthetic scans whose labels are known.

A network can be surer of itself than it is right, or less sure. Before several of them are averaged, each
one's logits are divided by the temperature under which its posteriors are likeliest: the mean is then not ruled by the
loudest. The label that a network gives on its own stays the same. Source: Guo et al. 2017, section 4.2.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from synthseg.errors import TrainingError, WeightsError
from synthseg.networks import UNet
from synthseg.training.calibration import card_batches, recipe_batches
from synthseg.training.task import Batch
from synthseg.weights import build_network, load_weights, protocol_of, save_weights
from synthseg.weights.card import require_role
from synthseg.weights.files import hash_tensors
from synthseg.weights.store import SUFFIX

VOXELS_AN_IMAGE = 20_000  # drawn evenly: the likelihood is a mean, and a twentieth of a scan gives it to 1 %
COLDEST, HOTTEST = 0.05, 20.0
BINS = 15  # of confidence, for the calibration error


@dataclass(frozen=True)
class Fit:
    """A temperature, and what it does on the voxels it was fitted to.

    ``nll``: mean of -log posterior of the true label (natural log), before and after; ``error``: expected calibration
    error, the mean distance between how sure the network is and how often it is right.
    """

    temperature: float
    nll: tuple[float, float]
    error: tuple[float, float]


def calibrate_temperature(
    name_or_path: str | Path,
    bank: Path,
    out: Path,
    *,
    images: int = 8,
    seed: int = 0,
    recipe: Path | None = None,
    role: str | None = None,
) -> dict[str, Any]:
    """Write weights again, their tensors as they were, with the keys ``temperature`` and ``calibration`` in their card.

    Args:
        bank: label maps to make synthetic images of; no real scan is needed. Better not those of the training.
        out: the file to write; ends in ``.safetensors``; may be the weights' own.
        images: how many; voxels drawn from each as :data:`VOXELS_AN_IMAGE` says.
        recipe: of the weights' training; needed where their card does not tell how images were made.
        role: which network, as in ``load_weights``.
    Returns: the card as written.
    Raises: WeightsError for a network of another role than structures, labels that are not the weights' or a bad
        suffix; ConfigError where a recipe is needed or does not fit; TrainingError for a file that is no bank, or where
        no temperature is best; OutputError when the file cannot be written.
    """
    if out.suffix != SUFFIX:
        raise WeightsError(out, found=f"the suffix {out.suffix!r}", fix=f"name weights files *{SUFFIX}")
    weights = load_weights(name_or_path, role)
    subject = weights.path or weights.name
    require_role(str(weights.card.get("role", "structures")), ("structures",), subject, where="in an average")
    network = build_network(weights)
    assert isinstance(network, UNet)  # as load_weights has checked of this role
    _require_labels(bank, protocol_of(weights).target_values.tolist(), subject)
    if recipe is None:
        batches = card_batches(weights.card, bank, images, seed, subject)
    else:
        batches = recipe_batches(recipe, network, bank, images, seed)
    logits, truth = answers(network.eval(), batches, seed=seed)
    fit = fit_temperature(logits, truth, subject=subject)
    told = {
        "nll": list(fit.nll),
        "calibration_error": list(fit.error),
        "images": images,
        "seed": seed,
        "from": f"synthetic images of the bank {bank.name}",
    }
    card = {**weights.card, "temperature": fit.temperature, "calibration": told}
    half = hash_tensors(weights.tensors) != weights.card["sha256"]  # the file holds halves: written as halves again
    save_weights(out, weights.tensors, card, half=half)
    return card


def _require_labels(bank: Path, values: list[int], subject: str | Path) -> None:
    from synthseg.generation.bank import LabelBank

    found = LabelBank.load(bank).protocol.target_values.tolist()
    if found != values:
        raise WeightsError(
            subject,
            found=f"labels {values}, where the targets of {bank.name} are {found}",
            fix="give a bank packed with the protocol of the weights",
        )


@torch.inference_mode()
def answers(network: torch.nn.Module, batches: Iterable[Batch], *, seed: int) -> tuple[Tensor, Tensor]:
    """Logits [n, C] float64 and true channels [n] int64 of voxels drawn evenly from every image."""
    logits, truth = [], []
    for number, batch in enumerate(batches):
        said = network(batch.input.contiguous(memory_format=torch.channels_last_3d)).movedim(1, -1).flatten(0, -2)
        rng = torch.Generator().manual_seed(_seed(seed, number))
        chosen = torch.randperm(len(said), generator=rng)[:VOXELS_AN_IMAGE]
        logits.append(said[chosen].double())
        truth.append(batch.target.flatten()[chosen])
    return torch.cat(logits), torch.cat(truth)


def _seed(seed: int, number: int) -> int:
    digest = hashlib.blake2b(f"temperature/{seed}/{number}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def fit_temperature(logits: Tensor, truth: Tensor, *, subject: str | Path = "temperature") -> Fit:
    """The temperature under which the true labels are likeliest.

    Args:
        logits: [n, C] float; truth: [n] int64 channels.
    The mean of -log posterior is convex in the inverse temperature, so that its slope has one zero: it is halved to.
    Raises: TrainingError if there is none between :data:`COLDEST` and :data:`HOTTEST`: the network is always right, or
        tells nothing.
    """
    logits = logits.double()
    own = logits.gather(1, truth[:, None])[:, 0].mean()

    def slope(inverse: float) -> float:
        return float(((logits * inverse).softmax(1) * logits).sum(1).mean() - own)

    low, high = 1 / HOTTEST, 1 / COLDEST
    if slope(low) >= 0 or slope(high) <= 0:
        told = "nothing of the labels" if slope(low) >= 0 else "every label right"
        found = f"a network that gets {told}: no temperature from {COLDEST} to {HOTTEST} is best"
        raise TrainingError(subject, found=found, fix="fit it on more images, or images like those of its training")
    while high / low > 1 + 1e-6:
        middle = (low * high) ** 0.5
        low, high = (low, middle) if slope(middle) > 0 else (middle, high)
    temperature = (low * high) ** -0.5
    both = (1.0, temperature)
    first, last = (likelihood(logits / t, truth) for t in both)
    before, after = (calibration_error((logits / t).softmax(1), truth) for t in both)
    return Fit(temperature, (first, last), (before, after))


def likelihood(logits: Tensor, truth: Tensor) -> float:
    """Mean of -log posterior of the true channel, in nats: logits [n, C], truth [n]."""
    return float(torch.nn.functional.cross_entropy(logits.double(), truth))


def calibration_error(posteriors: Tensor, truth: Tensor) -> float:
    """Expected calibration error over :data:`BINS` equal bins of confidence: posteriors [n, C], truth [n].

    Source: Guo et al. 2017, Eq. 3.
    """
    confidence, winner = posteriors.double().max(1)
    gap = confidence - (winner == truth).double()
    which = (confidence * BINS).long().clamp(max=BINS - 1)
    sums = torch.zeros(BINS, dtype=torch.float64).index_add_(0, which, gap)
    return float(sums.abs().sum() / len(truth))
