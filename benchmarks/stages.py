"""What the optional stages do, as a picture: off, low and high, and each one's time.

    python benchmarks/stages.py --bank banks/adults.safetensors --out stages.png

All pictures show the same draw, with one stage added to it. Outlines are borders between target values. With
``--times`` each stage's processor time for a pair of 96^3 voxels of 2 mm is printed, as the difference to the same
pairs without it.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import statistics
import time
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from PIL import Image

from synthseg.errors import SynthsegError
from synthseg.generation import GenerationConfig, GenerativeModel, LabelBank, Pair, paper
from synthseg.generation.config import (
    AcquisitionPrior,
    AnatomyPrior,
    BiasPrior,
    ClustersPrior,
    DeformationPrior,
    FieldOfViewPrior,
    GhostsPrior,
    GridPrior,
    IntensityPrior,
    MixturePrior,
    MorphologyPrior,
    NoisePrior,
    PartialVolumePrior,
    SurroundingsPrior,
)

# Each stage's low and high strength, fixed where its prior draws between.
STAGES: dict[str, tuple[str, Any, Any]] = {
    "partial volume": ("partial_volume", PartialVolumePrior(positions=2), PartialVolumePrior(positions=8)),
    "clusters": (
        "clusters",
        ClustersPrior(probability=1, max_std=15.0),
        ClustersPrior(probability=1, max_std=40.0),
    ),
    "ventricles": (
        "morphology",
        MorphologyPrior(probability=1, ventricles_mm=(-3.0, -3.0), sulci_mm=(0.0, 0.0)),
        MorphologyPrior(probability=1, ventricles_mm=(8.0, 8.0), sulci_mm=(0.0, 0.0)),
    ),
    "sulci": (
        "morphology",
        MorphologyPrior(probability=1, ventricles_mm=(0.0, 0.0), sulci_mm=(-0.5, -0.5)),
        MorphologyPrior(probability=1, ventricles_mm=(0.0, 0.0), sulci_mm=(1.3, 1.3)),
    ),
    "head size": ("morphology", MorphologyPrior(size_range=(0.85, 0.85)), MorphologyPrior(size_range=(1.15, 1.15))),
    "dropped labels": (
        "surroundings",
        SurroundingsPrior(drop_probability=1, drop_share=0.5),
        SurroundingsPrior(drop_probability=1, drop_share=1.0),
    ),
    "cuts and voids": (
        "surroundings",
        SurroundingsPrior(cut_probability=1, cut_mm=(50.0, 50.0)),
        SurroundingsPrior(void_probability=1, node_mm=35.0),
    ),
    "patches": (
        "surroundings",
        SurroundingsPrior(patch_probability=1, node_mm=40.0),
        SurroundingsPrior(patch_probability=1, node_mm=15.0),
    ),
    "field of view": (
        "field_of_view",
        FieldOfViewPrior(probability=1, max_share=0.2),
        FieldOfViewPrior(probability=1, side_probability=0.7, max_share=0.4),
    ),
    "noise": ("noise", NoisePrior(probability=1, max_std=0.1), NoisePrior(probability=1, max_std=0.3)),
    "ghosts": ("ghosts", GhostsPrior(probability=1, max_strength=0.3), GhostsPrior(probability=1, max_strength=0.9)),
}

SAGITTAL = ("dropped labels", "cuts and voids", "field of view")  # shown from the side; the others from the front
CLOSE = ("partial volume", "clusters", "sulci", "noise")  # shown at twice the size


def plain(spacing_mm: float, side_mm: float) -> GenerationConfig:
    """The paper's model, calm enough to see a stage's own effect."""
    n = round(side_mm / spacing_mm)
    return dataclasses.replace(
        paper(),
        grid=GridPrior(shape=(n, n, n), spacing_mm=spacing_mm, focus="brain", jitter_mm=0.0),
        deformation=DeformationPrior(rotation_deg=3.0, scaling=0.03, svf_max_std_mm=1.0),
        anatomy=AnatomyPrior(strip_probability=0.0, lesion_probability=0.0),
        mixture=MixturePrior(
            std_range=(2.0, 6.0),
            symmetric_probability=1.0,
            background_zero_probability=1.0,
            background_dark_probability=0.0,
        ),
        bias=BiasPrior(max_std=0.1),
        intensity=IntensityPrior(gamma_std=0.0, final_percentiles=(0.5, 99.5)),
        acquisition=AcquisitionPrior(native_probability=1.0, native_sigma_vox=0.3),
    )


def pairs_of(bank: LabelBank, config: GenerationConfig, stage: str, priors: list[Any], seed: int) -> list[Pair]:
    """The pair of a seed without the stage, and with each of its priors."""
    pairs = []
    for prior in [None, *priors]:
        changed = config if prior is None else dataclasses.replace(config, **{stage: prior})
        model = GenerativeModel(changed, bank)
        pairs.append(model.sample(1, rng=torch.Generator(bank.device).manual_seed(seed)))
    return pairs


def slice_of(volume: torch.Tensor, axis: int, share: float) -> np.ndarray:
    """A share of the middle slice across an axis, upright: its middle, a little above."""
    plane = volume.select(axis, volume.shape[axis] // 2)
    side, up = (round(n * (1 - share) * part) for n, part in zip(plane.shape, (0.5, 0.85), strict=True))
    plane = plane[side : plane.shape[0] - side, up : up + round(plane.shape[1] * share)]
    return np.rot90(plane.cpu().numpy())


def draw_figure(bank: LabelBank, out: Path, *, spacing_mm: float, seed: int, names: list[str], dpi: int) -> None:
    """Two stages a row: without, low, high."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    config = plain(spacing_mm, 192.0)
    rows = -(-len(names) // 2)
    figure, axes = plt.subplots(rows, 6, figsize=(9, 1.5 * rows + 0.2), squeeze=False)
    for panel in axes.flat:
        panel.set_axis_off()
    for number, name in enumerate(names):
        stage, low, high = STAGES[name]
        axis, share = (0 if name in SAGITTAL else 1), (0.5 if name in CLOSE else 1.0)
        panels = axes[number // 2, 3 * (number % 2) :][:3]
        for panel, pair in zip(panels, pairs_of(bank, config, stage, [low, high], seed), strict=True):
            image = slice_of(pair.image[0, 0], axis, share)
            panel.imshow(image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            target = slice_of(pair.target[0], axis, share)
            for value in np.unique(target)[1:]:
                panel.contour(target == value, levels=[0.5], colors="tab:orange", linewidths=0.3)
        for panel, strength in zip(panels, ("off", "low", "high"), strict=True):
            panel.set_title(f"{name}: {strength}" if strength == "off" else strength, fontsize=7, pad=2)
    figure.subplots_adjust(left=0.005, right=0.995, top=0.98, bottom=0.005, wspace=0.03, hspace=0.13)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    # Greys and one colour: a palette takes a third of the space.
    Image.open(buffer).convert("RGB").quantize(32, dither=Image.Dither.NONE).save(out, optimize=True)


def times(bank: LabelBank, runs: int) -> None:
    """Print each stage's processor time, pair by pair beside the same pairs without it."""
    base = dataclasses.replace(paper(), grid=GridPrior(shape=(96, 96, 96), spacing_mm=2.0, focus="brain"))
    cases: dict[str, GenerationConfig] = {"none": base}
    for positions in (2, 4, 8):
        prior = PartialVolumePrior(positions=positions)
        cases[f"partial volume, {positions} positions"] = dataclasses.replace(base, partial_volume=prior)
    for name, (stage, _, high) in STAGES.items():
        if stage != "partial_volume":
            cases[name] = dataclasses.replace(base, **{stage: high})
    models = {name: GenerativeModel(config, bank) for name, config in cases.items()}
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for run in range(runs + 1):
        for name, model in models.items():
            rng = torch.Generator(bank.device).manual_seed(run)
            start = time.process_time()
            model.sample(1, rng=rng)
            seconds[name].append(time.process_time() - start)
    usual = statistics.median(seconds["none"][1:])
    print(f"without: {1e3 * usual:.0f} ms, median of {runs} pairs, {torch.get_num_threads()} thread(s)")
    for name, values in seconds.items():
        if name != "none":
            print(f"{name:<28}+{1e3 * (statistics.median(values[1:]) - usual):.0f} ms")


def main() -> int:
    """Parse, draw, time."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bank", type=Path, required=True, help="packed label bank")
    parser.add_argument("--out", type=Path, help="picture to write (.png)")
    parser.add_argument("--stages", nargs="*", default=list(STAGES), choices=list(STAGES), help="rows (default: all)")
    parser.add_argument("--spacing", type=float, default=2.0, help="of the pairs, in mm (default: 2)")
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--dpi", type=int, default=95)
    parser.add_argument("--times", type=int, default=0, metavar="RUNS", help="also measure, with so many pairs each")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    try:
        bank = LabelBank.load(arguments.bank)
    except SynthsegError as error:
        parser.error(str(error))
    if arguments.out:
        draw_figure(
            bank,
            arguments.out,
            spacing_mm=arguments.spacing,
            seed=arguments.seed,
            names=arguments.stages,
            dpi=arguments.dpi,
        )
    if arguments.times:
        times(bank, arguments.times)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
