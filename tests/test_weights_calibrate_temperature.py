"""The temperature under which a network's posteriors are likeliest: found, written into the card, and used."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from synthseg.configs import config_to_dict
from synthseg.errors import TrainingError, WeightsError
from synthseg.generation.bank import LabelBank
from synthseg.generation.config import GenerationConfig, GridPrior
from synthseg.inference import load_model
from synthseg.labels import load_protocol
from synthseg.networks import UNet, UNetConfig
from synthseg.training.task import Batch
from synthseg.training.temperature import answers, calibration_error, fit_temperature, likelihood
from synthseg.weights import load_weights, make_card, save_weights

FETA = load_protocol("feta")


def said(seed: int, count: int = 4000, channels: int = 5, scale: float = 2.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits [n, C], and labels drawn from the posteriors that they stand for."""
    rng = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(count, channels, generator=rng, dtype=torch.float64)
    return logits, torch.multinomial(logits.softmax(1), 1, generator=rng)[:, 0]


@settings(max_examples=15)
@given(seed=st.integers(0, 999), true=st.floats(0.2, 6))
def test_the_fit_is_the_best_that_a_search_of_another_kind_finds(seed, true):
    logits, truth = said(seed)
    fit = fit_temperature(logits * true, truth)
    found = minimize_scalar(
        lambda log_t: likelihood(logits * true / np.exp(log_t), truth), bounds=(-3, 3), method="bounded"
    )
    assert likelihood(logits * true / fit.temperature, truth) <= found.fun + 1e-7
    assert fit.temperature == pytest.approx(np.exp(found.x), rel=1e-2)
    assert fit.nll[1] <= fit.nll[0] + 1e-9


def test_a_network_that_is_twice_too_sure_gets_the_temperature_two():
    logits, truth = said(0, count=60_000)
    fit = fit_temperature(2 * logits, truth)
    assert fit.temperature == pytest.approx(2, rel=0.03)
    assert fit.error[1] < 0.3 * fit.error[0]


def test_the_labels_given_do_not_depend_on_the_temperature():
    logits, truth = said(3)
    fit = fit_temperature(3 * logits, truth)
    assert torch.equal((3 * logits / fit.temperature).argmax(1), logits.argmax(1))


@pytest.mark.parametrize(("sign", "told"), [(1, "every label right"), (-1, "nothing of the labels")])
def test_networks_for_which_no_temperature_is_best_are_refused(sign, told):
    truth = torch.arange(500) % 4
    logits = sign * 5.0 * torch.nn.functional.one_hot(truth, 4)
    with pytest.raises(TrainingError, match=rf"w: found a network that gets {told}.*more images"):
        fit_temperature(logits, truth, subject="w")


def test_the_calibration_error_is_the_one_counted_by_hand():
    posteriors = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.9, 0.1], [0.4, 0.6]])
    truth = torch.tensor([0, 0, 1, 1])
    # sure to 0.9 and right in 2 of 3; sure to 0.6 and right
    assert calibration_error(posteriors, truth) == pytest.approx(3 / 4 * (0.9 - 2 / 3) + 1 / 4 * 0.4)
    calm, drawn = said(1, count=60_000)
    assert calibration_error(calm.softmax(1), drawn) < 0.01


def test_voxels_are_drawn_evenly_and_keep_their_labels():
    class Echo(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cat([x, -x], 1)

    image = torch.arange(30**3, dtype=torch.float32).reshape(1, 1, 30, 30, 30)
    batch = Batch(image, (image[:, 0].long() * 7) % 2)
    logits, truth = answers(Echo(), [batch, batch], seed=1)
    assert logits.shape == (40_000, 2)
    assert torch.equal(truth, (logits[:, 0].long() * 7) % 2)
    assert logits[:20_000, 0].unique().numel() == 20_000
    assert not torch.equal(logits[:20_000], logits[20_000:])
    again, _ = answers(Echo(), [batch, batch], seed=1)
    assert torch.equal(again, logits)


# -- files and the command


@pytest.fixture
def bank(tmp_path: Path) -> Path:
    labels = np.random.default_rng(0).choice(FETA.values, size=(6, 6, 6)).repeat(4, 0).repeat(4, 1).repeat(4, 2)
    return LabelBank.from_maps([labels], [(1.0, 1.0, 1.0)], ["a"], FETA).save(tmp_path / "bank.safetensors")


def save_network(path: Path, **facts: object) -> Path:
    """A network that reads intensities a little: random, but its head turns up what it says."""
    config = UNetConfig(out_channels=len(FETA.target_values), features=2, levels=2, convs_per_level=1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = UNet(config)
    with torch.no_grad():
        network.head.weight.mul_(4)
    generation = config_to_dict(GenerationConfig(grid=GridPrior(shape=(24, 24, 24), spacing_mm=1.0)))
    card = make_card("tiny", config.to_dict(), FETA, spacing_mm=1.0, facts={"generation": generation, **facts})
    return save_weights(path, network.state_dict(), card)


def test_the_command_writes_a_temperature_and_leaves_the_tensors(tmp_path: Path, bank: Path, command: Callable):
    path, out = save_network(tmp_path / "w.safetensors"), tmp_path / "own.safetensors"
    code, told, failed = command("weights", "calibrate", path, "--bank", bank, "-n", 2, "--temperature", "-o", out)
    assert code == 0, failed
    before, after = load_weights(path), load_weights(out)
    assert after.card["sha256"] == before.card["sha256"]
    added = {"temperature", "calibration"}
    assert {key: value for key, value in after.card.items() if key not in added} == before.card
    temperature, how = after.card["temperature"], after.card["calibration"]
    assert f"temperature {temperature:.3f} of tiny" in told
    assert how["nll"][1] < how["nll"][0]
    assert (how["images"], how["seed"], how["from"]) == (2, 0, "synthetic images of the bank bank.safetensors")
    assert load_model(out).temperature == temperature
    assert load_model(path).temperature is None
    again = tmp_path / "again.safetensors"
    assert command("weights", "calibrate", out, "--bank", bank, "-n", 2, "--temperature", "-o", again)[0] == 0
    assert load_weights(again).card == after.card


def test_weights_may_be_written_in_their_own_place(tmp_path: Path, bank: Path, command: Callable):
    path = save_network(tmp_path / "w.safetensors")
    assert command("weights", "calibrate", path, "--bank", bank, "-n", 1, "--temperature", "-o", path)[0] == 0
    assert load_weights(path).card["temperature"] > 0


def test_a_bank_of_other_labels_is_refused(tmp_path: Path, command: Callable):
    protocol = load_protocol("synthseg-generation")
    labels = np.random.default_rng(0).choice(protocol.values, size=(12, 12, 12))
    other = LabelBank.from_maps([labels], [(2.0, 2.0, 2.0)], ["a"], protocol).save(tmp_path / "adult.safetensors")
    path = save_network(tmp_path / "w.safetensors")
    code, _, told = command(
        "weights", "calibrate", path, "--bank", other, "--temperature", "-o", tmp_path / "o.safetensors"
    )
    assert code == 1
    assert "w.safetensors: found labels [0, 1, 2" in told
    assert "packed with the protocol of the weights" in told


def test_without_a_recipe_the_card_must_tell_how_images_were_made(tmp_path: Path, bank: Path, command: Callable):
    path, out = save_network(tmp_path / "w.safetensors"), tmp_path / "o.safetensors"
    bare = load_weights(path)
    card = {key: value for key, value in bare.card.items() if key != "generation"}
    save_weights(tmp_path / "bare.safetensors", bare.tensors, card)
    code, _, told = command(
        "weights", "calibrate", tmp_path / "bare.safetensors", "--bank", bank, "--temperature", "-o", out
    )
    assert code == 2
    assert "--recipe RECIPE.toml" in told
    recipe = tmp_path / "r.toml"
    recipe.write_text(
        '[data]\nbank = "bank.safetensors"\n[network]\nout_channels = 8\nfeatures = 2\nlevels = 2\n'
        "convs_per_level = 1\n[generation.grid]\nshape = [24, 24, 24]\nspacing_mm = 1.0\n"
    )
    options = ("--bank", bank, "--temperature", "-n", 1, "--recipe", recipe, "-o", out)
    code, _, told = command("weights", "calibrate", tmp_path / "bare.safetensors", *options)
    assert code == 0, told
    same = tmp_path / "same.safetensors"
    command("weights", "calibrate", path, "--bank", bank, "--temperature", "-n", 1, "-o", same)
    assert load_weights(out).card["temperature"] == load_weights(same).card["temperature"]


def test_only_networks_that_give_structures_are_averaged(tmp_path: Path, bank: Path, command: Callable):
    path = save_network(tmp_path / "w.safetensors", role="tissues")
    code, _, told = command(
        "weights", "calibrate", path, "--bank", bank, "--temperature", "-o", tmp_path / "o.safetensors"
    )
    assert code == 1
    assert "weights of role 'tissues', which are of no use in an average" in told


@pytest.mark.parametrize("temperature", [0, -1.0, "warm", True, 1e6])
def test_a_card_whose_temperature_is_none_is_refused(tmp_path: Path, temperature: object):
    with pytest.raises(WeightsError, match=r"w\.safetensors: found a card with temperature = .*not a number from"):
        save_network(tmp_path / "w.safetensors", temperature=temperature)
