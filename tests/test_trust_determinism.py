"""The same input gives the same output: in another process, on another number of threads, in another batch."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from generation_helpers import seeded, small_bank
from synthseg.generation import GenerationConfig, GenerativeModel
from synthseg.generation.config import GridPrior
from synthseg.generation.config_stages import ClustersPrior, NoisePrior, PartialVolumePrior
from synthseg.inference import Segmenter, Want
from training_helpers import assert_same_bits, run, state_of, tiny_recipe
from trust_helpers import at, blobs, random_model, volume_gap

MOST_BY_THREADS = 1e-2  # of any weight, in steps of 0.01; 4e-4 was measured after 20 steps

PAIRS = """
import hashlib, sys, torch
torch.set_num_threads(int(sys.argv[1]))
from test_trust_determinism import hash_of_pairs
print(hash_of_pairs())
"""


@pytest.fixture(autouse=True)
def _threads_as_before():  # type: ignore[no-untyped-def]
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def generative_model() -> GenerativeModel:
    config = GenerationConfig(
        grid=GridPrior(shape=(32, 30, 28)),
        partial_volume=PartialVolumePrior(positions=4),
        clusters=ClustersPrior(probability=0.5),
        noise=NoisePrior(probability=0.5),
    )
    return GenerativeModel(config, small_bank())


def hash_of_pairs() -> str:
    """Of three pairs' images and targets."""
    pair = generative_model().sample(3, rng=seeded(7))
    return hashlib.sha256(pair.image.numpy().tobytes() + pair.target.numpy().tobytes()).hexdigest()


def test_a_seed_gives_the_same_pairs_in_every_process_on_any_number_of_threads() -> None:
    own = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        own.append(hash_of_pairs())
    assert len(set(own)) == 1
    tests = Path(__file__).parent
    other = subprocess.run(
        [sys.executable, "-c", PAIRS, "2"], cwd=tests, capture_output=True, text=True, check=True, timeout=300
    )
    assert other.stdout.split()[-1] == own[0]


def weights_after(folder: Path, name: str, threads: int) -> dict[str, Tensor]:
    recipe = tiny_recipe(folder, optimizer={"ema_decay": 0.9, "steps": 4})
    run(recipe, folder / name, threads=threads)
    return state_of(folder / name)[0]


@pytest.mark.parametrize("threads", [1, 2])
def test_training_twice_on_as_many_threads_gives_the_same_bits(tmp_path: Path, threads: int) -> None:
    once, again = (weights_after(tmp_path, name, threads) for name in ("once", "again"))
    assert_same_bits(once, again)


def test_training_on_more_threads_ends_near_the_same_weights(tmp_path: Path) -> None:
    one, two = (weights_after(tmp_path, str(threads), threads) for threads in (1, 2))
    differences = {name: float((one[name] - two[name]).abs().max()) for name in one if name.startswith("network.")}
    assert max(differences.values()) < MOST_BY_THREADS, max(differences, key=differences.__getitem__)


@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_a_scan_has_the_same_posteriors_every_time_and_labels_on_any_number_of_threads(norm: str) -> None:
    scan = at(blobs((36, 34, 14)), (1.8, 1.9, 2.2))
    found = {}
    for threads in (1, 1, 2, 2):
        made_by = Segmenter(random_model(norm, features=6), threads=threads, device="cpu")
        result = made_by.segment(scan, Want(space="native", posteriors=True))
        assert result.posteriors is not None
        assert result.native is not None
        if threads in found:  # as many threads: the same bits
            np.testing.assert_array_equal(result.posteriors.data, found[threads].posteriors.data)
            assert result.volumes_mm3 == found[threads].volumes_mm3
        found[threads] = result
    for result in found.values():
        assert float(np.abs(result.posteriors.data - found[1].posteriors.data).max()) < 1e-4
        assert float((result.native.data != found[1].native.data).mean()) < 1e-4
        assert volume_gap(result, found[1]) < 1e-4


@pytest.mark.slow
def test_a_real_scan_has_the_same_labels_on_one_and_two_threads(shared: Path) -> None:
    scan = shared / "data" / "validation" / "mni" / "mni152lin_2mm_t1.nii.gz"
    results = [Segmenter("default", device="cpu", threads=n).segment(scan, Want(space="native")) for n in (1, 1, 2)]
    once, again, two = [r.native for r in results]
    assert once is not None
    assert again is not None
    assert two is not None
    np.testing.assert_array_equal(once.data, again.data)
    assert results[0].volumes_mm3 == results[1].volumes_mm3
    changed, gap = int((once.data != two.data).sum()), volume_gap(results[0], results[2])
    assert changed <= 1e-5 * np.count_nonzero(once.data)
    assert gap < 1e-4
