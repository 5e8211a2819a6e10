"""What studies train besides the usual task: pairs by rule, of one acquisition, from real images; an auto-encoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from experiments.real_images import ImageBank, images_beside
from experiments.rules import draw_rules
from experiments.study import Arm
from torch import Tensor

from synthseg.generation.anatomy import map_center
from synthseg.generation.bank import LabelBank
from synthseg.generation.lookup import sum_positions
from synthseg.generation.model import GenerativeModel, Pair, PairDraw
from synthseg.generation.options import place_with_options, read_with_options
from synthseg.networks.hierarchy import one_hot
from synthseg.training.recipe import Recipe
from synthseg.training.task import Batch, SegmentationTask, Task
from synthseg.training.tasks import make_task
from synthseg.training.tasks.corruption import damaged_groups
from synthseg.volumes.grid import sample_linear


class ArmModel(GenerativeModel):
    """The generative model with what an arm changes: intensities by rule, one acquisition, or real images."""

    def __init__(self, recipe: Recipe, bank: LabelBank, arm: Arm, images: ImageBank | None = None) -> None:
        super().__init__(recipe.generation, bank, recipe.weights_of(bank.names))
        self.arm, self.images = arm, images

    def draw(self, batch: int, *, rng: torch.Generator, maps: Tensor | None = None) -> PairDraw:
        """As the plain model; what replaces its draws is drawn after them."""
        draw = super().draw(batch, rng=rng, maps=maps)
        if self.arm.trainer == "rules":
            means, stds = draw_rules(self.bank.protocol, self.classes, batch, rng=rng)
            means[:, 0], stds[:, 0] = draw.mixture.means[:, 0], draw.mixture.stds[:, 0]  # background as ever
            draw = draw._replace(mixture=draw.mixture._replace(means=means, stds=stds))
        if self.arm.slices is not None:
            spacing = torch.full_like(draw.acquisition.spacing_mm, self.config.grid.spacing_mm)
            spacing[:, self.arm.slices.axis] = max(self.arm.slices.spacing_mm, self.config.grid.spacing_mm)
            fixed = draw.acquisition._replace(spacing_mm=spacing, thickness_mm=spacing)
            draw = draw._replace(acquisition=fixed)
        return draw

    def mixture(self, draw: PairDraw) -> tuple[Tensor, Tensor]:
        """Labels and image before bias field and rescaling; the image is the real one where there are real ones."""
        if self.images is None:
            return super().mixture(draw)
        labels = read_with_options(self, draw).labels
        image = self._real_image(draw)
        stripped = draw.anatomy.strip.view(-1, 1, 1, 1) & (labels == 0)
        return labels, image.masked_fill(stripped[:, None], 0.0)

    def _real_image(self, draw: PairDraw) -> Tensor:
        """The chosen maps' images at the pair's places: [B, 1, X, Y, Z]."""
        assert self.images is not None
        chosen = draw.anatomy.map_index
        position = torch.stack(sum_positions(place_with_options(self, draw)), -1)
        center = map_center(self.bank, chosen, self.config.grid).view(-1, 1, 1, 1, 3)
        voxels = position / self.bank.spacing_mm[chosen].view(-1, 1, 1, 1, 3) + center
        seen = [
            sample_linear(self.images.images[int(number)][None, None], where[None])
            for number, where in zip(chosen.tolist(), voxels, strict=True)
        ]
        return torch.cat(seen)  # mirrored where the draw says so: the places are


class ArmTask(SegmentationTask):
    """The ordinary task on an arm's own pairs."""

    def __init__(self, recipe: Recipe, device: torch.device, arm: Arm) -> None:
        super().__init__(recipe, device)
        images = None
        if arm.trainer == "real":
            images = ImageBank.load(images_beside(Path(recipe.path(recipe.data.bank))), self.bank)
        self.model = ArmModel(recipe, self.bank, arm, images)

    def card(self, facts: dict[str, object]) -> dict[str, object]:
        """The task's card; it says where real scans were trained on."""
        card = super().card(facts)
        if isinstance(self.model, ArmModel) and self.model.images is not None:
            card["data"] = f"{len(self.bank)} real scans and their label maps ({self.bank.names[0]} ...)"
        return card


class AutoencoderTask(SegmentationTask):
    """A denoising auto-encoder of label maps: damaged ones in, whole ones out (Karani et al. 2021)."""

    role = "denoiser"

    def __init__(self, recipe: Recipe, device: torch.device) -> None:
        self.in_channels = recipe.network.out_channels
        super().__init__(recipe, device)

    def prepare(self, pair: Pair, rngs: Sequence[torch.Generator]) -> Batch:
        """One-hot damaged labels in, true labels out."""
        config, grid = self.recipe.task, self.recipe.generation.grid
        damaged = [
            damaged_groups(target, self.in_channels, config.damage, grid, rng)
            for target, rng in zip(pair.target, rngs, strict=True)
        ]
        return Batch(one_hot(torch.stack(damaged), self.in_channels), pair.target)

    def validate(self, network: torch.nn.Module) -> dict[str, float]:  # noqa: ARG002
        """Nothing: it does not see images."""
        return {}


def task_of(arm: Arm) -> Callable[[Recipe, torch.device], Task]:
    """What makes an arm's task."""
    if arm.trainer == "autoencoder":
        return AutoencoderTask
    if arm.trainer == "synthetic" and arm.slices is None:
        return make_task
    return lambda recipe, device: ArmTask(recipe, device, arm)
