"""Test-time adaptation: a small normaliser before a frozen network is tuned on each scan, towards a label map that an
auto-encoder finds plausible.

Source: Karani et al. 2021, as Billot et al. 2023, section 4.3 describe it. In small: the normaliser starts as the
identity, in the place of one trained along with the network.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from experiments.methods import Labelled, key_of, segmented
from torch import Tensor, nn

from synthseg.inference import Segmenter
from synthseg.inference.model import load_model
from synthseg.inference.modes import mode_config
from synthseg.volumes import Volume
from synthseg.weights import build_network, load_weights

RENEW = 5  # steps after which the auto-encoder is asked again


class Normaliser(nn.Module):
    """Image to image: convolutions of three voxels whose sum with the image is the result; zero at the start."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv3d(1, width, 3, padding=1),
            nn.ELU(),
            nn.Conv3d(width, width, 1),
            nn.ELU(),
            nn.Conv3d(width, 1, 1),
        )
        last = self.layers[-1]
        assert isinstance(last, nn.Conv3d)
        assert last.bias is not None
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, image: Tensor) -> Tensor:
        """[B, 1, X, Y, Z] to the same."""
        corrected: Tensor = image + self.layers(image)
        return corrected


class Adapting(nn.Module):
    """A network that tunes a fresh normaliser on every image it is given, then answers.

    Args:
        network: image to logits; frozen.
        autoencoder: posteriors to logits; frozen.
        steps: of Adam, at 1e-3.
    """

    def __init__(self, network: nn.Module, autoencoder: nn.Module, steps: int) -> None:
        super().__init__()
        self.network = network.requires_grad_(False).eval()
        self.autoencoder = autoencoder.requires_grad_(False).eval()
        self.steps = steps
        self.losses: list[float] = []  # of the last image

    def forward(self, image: Tensor) -> Tensor:
        """[1, 1, X, Y, Z] to logits [1, C, X, Y, Z]; inference mode or not, gradients are taken here."""
        with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # the normaliser's first layers: the same for every scan
            own = image.detach().clone()
            normaliser = Normaliser().to(own.device)
            self._tune(normaliser, own)
            with torch.no_grad():
                answer: Tensor = self.network(normaliser(own))
        return answer

    def _tune(self, normaliser: Normaliser, image: Tensor) -> None:
        optimizer = torch.optim.Adam(normaliser.parameters(), lr=1e-3)
        self.losses = []
        wanted: Tensor | None = None
        for step in range(self.steps):
            optimizer.zero_grad()
            posterior = self.network(normaliser(image)).softmax(1)
            if wanted is None or step % RENEW == 0:
                with torch.no_grad():
                    wanted = self.autoencoder(posterior).softmax(1)
            loss = soft_dice_loss(posterior, wanted)
            self.losses.append(float(loss.detach()))
            loss.backward()
            optimizer.step()


def soft_dice_loss(first: Tensor, second: Tensor) -> Tensor:
    """1 - mean over channels of the soft Dice of two posteriors [1, C, X, Y, Z]; channels absent from both count 1."""
    axes = (0, 2, 3, 4)
    overlap = 2 * (first * second).sum(axes)
    return 1 - ((overlap + 1e-3) / (first.square().sum(axes) + second.square().sum(axes) + 1e-3)).mean()


class AdaptMethod:
    """Adaptation as a way to segment scans, by the usual pipeline around it, without mirror averaging."""

    def __init__(self, structures: Path, autoencoder: Path, *, steps: int, device: str) -> None:
        model, coder = load_model(structures), load_weights(autoencoder)
        self.adapting = Adapting(model.network, build_network(coder), steps)
        settings = {"structures": model.sha256, "autoencoder": str(coder.card["sha256"]), "steps": steps}
        self.settings, self.key = settings, key_of("adapt", settings)
        self.segmenter = Segmenter(
            replace(model, network=self.adapting), config=mode_config("fast"), device=device, backend="plain"
        )

    def segment(self, scan: Volume, *, ct: bool | None, fine: bool) -> Labelled:
        """Adapt to the scan and segment it."""
        return segmented(self.segmenter, scan, ct=ct, fine=fine)

    def facts(self) -> dict[str, Any]:
        """Weights' hashes and steps."""
        return {"method": "adapt", **self.settings}
