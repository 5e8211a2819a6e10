"""`synthseg generate` as a user meets it: pairs, records, the figure, and options that contradict one another."""

from __future__ import annotations

import gc
import json
import weakref
from collections.abc import Callable
from pathlib import Path

import matplotlib.image
import nibabel as nib
import numpy as np
import pytest

from generation_helpers import PROTOCOL, blobby_map
from synthseg.errors import UsageError
from synthseg.generation import GenerativeModel, LabelBank, PairDraw
from synthseg.generation.replay import read_origin
from synthseg.generation.write import WrittenPair
from synthseg.report import pairs as figures
from synthseg.training.recipe import load_recipe

Command = Callable[..., tuple[int, str, str]]
SHAPE = (16, 18, 20)
RECIPE = """
[data]
bank = "unused.safetensors"
[generation]
preset = "{preset}"
[generation.grid]
shape = [16, 18, 20]
[generation.deformation]
svf_node_mm = 8.0
"""


def save_map(path: Path, values: np.ndarray) -> Path:
    """A label map at 1 mm whose axes run to the left, to the back and upwards."""
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = np.diag([-1.0, -1.0, 1.0, 1.0])
    nib.save(nib.Nifti1Image(values[::-1, ::-1].astype(np.int32), affine), path)
    return path


@pytest.fixture
def maps(tmp_path: Path) -> Path:
    for seed in (0, 1):
        save_map(tmp_path / "maps" / f"head{seed}.nii.gz", blobby_map((24, 26, 28), seed))
    return tmp_path / "maps"


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(RECIPE.format(preset="paper"), encoding="utf-8")
    return path


def test_pairs_are_what_the_model_makes_of_the_recorded_draws(
    tmp_path: Path, maps: Path, recipe: Path, command: Command
) -> None:
    out = tmp_path / "pairs"
    code, said, err = command(
        "generate", maps, "-o", out, "-n", 3, "--seed", 5, "--recipe", recipe, "--no-figure", "--device", "cpu"
    )
    assert code == 0
    assert err == "read head0.nii.gz read head1.nii.gz"
    kinds = ("draw.safetensors", "image.nii.gz", "labels.nii.gz")
    assert {path.name for path in out.iterdir()} == {f"pair_{n:04d}_{kind}" for n in range(3) for kind in kinds}

    # The same bank put together by hand, in RAS, whole maps.
    spacings, names = [(1.0, 1.0, 1.0)] * 2, ["head0.nii.gz", "head1.nii.gz"]
    values = [blobby_map((24, 26, 28), seed) for seed in (0, 1)]
    bank = LabelBank.from_maps(values, spacings, names, PROTOCOL)
    model = GenerativeModel(load_recipe(recipe).generation, bank)
    for n, line in enumerate(said.splitlines()):
        draw = PairDraw.load(out / f"pair_{n:04d}_draw.safetensors")
        pair = model.apply(draw)
        image, labels = (nib.load(out / f"pair_{n:04d}_{kind}.nii.gz") for kind in ("image", "labels"))
        np.testing.assert_array_equal(image.get_fdata(dtype=np.float32), pair.image[0, 0].numpy())
        np.testing.assert_array_equal(np.asarray(labels.dataobj), PROTOCOL.target_values[pair.target[0].numpy()])
        assert image.shape == labels.shape == SHAPE
        assert nib.aff2axcodes(image.affine) == ("R", "A", "S")
        np.testing.assert_array_equal(image.affine, labels.affine)
        np.testing.assert_allclose(image.affine @ [7.5, 8.5, 9.5, 1], [0, 0, 0, 1])
        assert len(np.unique(labels.dataobj)) > 4
        assert line == f"{out / f'pair_{n:04d}_image.nii.gz'} (from {names[int(draw.anatomy.map_index)]})"
        origin = read_origin(out / f"pair_{n:04d}_draw.safetensors")
        assert origin is not None
        assert origin["maps"] == names


def test_a_replay_from_a_packed_bank_is_the_same_pair_bit_by_bit(
    tmp_path: Path, maps: Path, recipe: Path, command: Command
) -> None:
    out, again = tmp_path / "pairs", tmp_path / "again"
    assert command("generate", maps, "-o", out, "-n", 2, "--recipe", recipe, "--no-figure", "--device", "cpu")[0] == 0
    assert command("bank", maps, "-o", tmp_path / "bank.safetensors")[0] == 0
    draw = out / "pair_0001_draw.safetensors"
    replay = ("--replay", draw, "--recipe", recipe, "--no-figure", "--device", "cpu")
    code, said, err = command("generate", tmp_path / "bank.safetensors", "-o", again, *replay)
    assert (code, err) == (0, "")
    assert said.startswith(f"{again / 'pair_0001_image.nii.gz'} (from head")
    assert {path.name for path in again.iterdir()} == {
        f"pair_0001_{kind}" for kind in ("draw.safetensors", "image.nii.gz", "labels.nii.gz")
    }
    for kind in ("image", "labels"):
        before, after = (nib.load(folder / f"pair_0001_{kind}.nii.gz") for folder in (out, again))
        assert np.array_equal(np.asarray(before.dataobj), np.asarray(after.dataobj))
        assert np.array_equal(before.affine, after.affine)
    assert draw.read_bytes() == (again / draw.name).read_bytes()
    image = nib.load(out / "pair_0000_image.nii.gz").get_fdata()
    assert not np.array_equal(image, nib.load(again / "pair_0001_image.nii.gz").get_fdata())


def test_a_replay_with_another_bank_or_recipe_is_refused(
    tmp_path: Path, maps: Path, recipe: Path, command: Command
) -> None:
    out = tmp_path / "pairs"
    assert command("generate", maps, "-o", out, "-n", 1, "--recipe", recipe, "--no-figure", "--device", "cpu")[0] == 0
    draw = out / "pair_0000_draw.safetensors"
    save_map(tmp_path / "other" / "someone.nii.gz", blobby_map((24, 26, 28), 7))
    ends = ("--replay", draw, "--no-figure", "--device", "cpu")
    code, _, err = command("generate", tmp_path / "other", "-o", tmp_path / "again", "--recipe", recipe, *ends)
    assert code == 1
    assert (
        f"synthseg: {draw}: found a draw from other label maps (head0.nii.gz, head1.nii.gz) than these (someone" in err
    )
    save_map(maps / "head1.nii.gz", blobby_map((24, 26, 28), 7))
    code, _, err = command("generate", maps, "-o", tmp_path / "again", "--recipe", recipe, *ends)
    assert code == 1
    assert f"{draw}: found a draw from label maps of the same names, but with other contents" in err
    save_map(maps / "head1.nii.gz", blobby_map((24, 26, 28), 1))
    (tmp_path / "original.toml").write_text(RECIPE.format(preset="original"), encoding="utf-8")
    code, _, err = command("generate", maps, "-o", tmp_path / "again", "--recipe", tmp_path / "original.toml", *ends)
    assert code == 1
    assert "a draw made with deformation.svf_step_mm = 4.0 (here 2.0), deformation.svf_gain = 1.0 (here 2.0), " in err
    assert not (tmp_path / "again").exists()


def test_a_draw_that_does_not_say_where_it_is_from_is_noted(
    tmp_path: Path, maps: Path, recipe: Path, command: Command
) -> None:
    out = tmp_path / "pairs"
    assert command("generate", maps, "-o", out, "-n", 1, "--recipe", recipe, "--no-figure", "--device", "cpu")[0] == 0
    bare = tmp_path / "bare_draw.safetensors"
    PairDraw.load(out / "pair_0000_draw.safetensors").save(bare)
    again = tmp_path / "again"
    code, _, err = command(
        "generate", maps, "-o", again, "--replay", bare, "--recipe", recipe, "--no-figure", "--device", "cpu"
    )
    assert code == 0
    assert err.endswith(f"note: {bare} does not say which bank and config it was made with")
    before, after = (nib.load(f) for f in (out / "pair_0000_image.nii.gz", again / "bare_image.nii.gz"))
    assert np.array_equal(before.get_fdata(), after.get_fdata())


# The figure


def pair_of(image: np.ndarray, labels: np.ndarray, name: str = "a map") -> WrittenPair:
    nowhere = Path("nowhere")
    return WrittenPair(nowhere, nowhere, nowhere, name, image.astype(np.float32), labels.astype(np.int32))


def share(picture: np.ndarray, color: tuple[int, ...]) -> float:
    return float((picture == color).all(-1).mean())


def read_png(path: Path) -> np.ndarray:
    return np.round(matplotlib.image.imread(path)[..., :3] * 255).astype(int)


def test_the_figure_shows_three_slices_of_each_image_and_of_its_labels(tmp_path: Path) -> None:
    # White images, and one label a pair: each colour fills three of the six panels of its row.
    white, full = np.ones((20, 20, 20)), np.ones((20, 20, 20), dtype=int)
    thalamus, cortex = (PROTOCOL.by_value(value).color for value in (10, 42))
    assert thalamus != cortex
    path = tmp_path / "new" / "pairs.png"
    assert figures.write_pairs_figure([pair_of(white, 10 * full), pair_of(white, 42 * full)], PROTOCOL, path) == path
    picture = read_png(path)
    top, bottom = picture[: len(picture) // 2], picture[len(picture) // 2 :]
    for half, own, other in ((top, thalamus, cortex), (bottom, cortex, thalamus)):
        left, right = half[:, : half.shape[1] // 2], half[:, half.shape[1] // 2 :]
        assert share(left, (255, 255, 255)) > 0.5
        assert share(right, own) > 0.5
        assert share(left, own) == share(half, other) == 0


def test_the_figures_slices_are_the_middle_ones_and_upright(tmp_path: Path) -> None:
    # Labels only in the middle planes, and there only above, so that a wrong plane or a turned slice is black.
    labels = np.zeros((20, 20, 20), dtype=int)
    labels[10, :, 10:] = labels[:, 10, 10:] = 10
    path = figures.write_pairs_figure([pair_of(np.zeros((20, 20, 20)), labels)], PROTOCOL, tmp_path / "pairs.png")
    picture = read_png(path)
    color = PROTOCOL.by_value(10).color
    panels = np.array_split(picture, 6, axis=1)
    for panel in panels[3:5]:  # sagittal and coronal
        hit = (panel == color).all(-1)
        rows = np.flatnonzero(hit.any(1))
        assert hit[rows[0] : rows[-1] + 1].mean() > 0.8
        assert rows[-1] < 0.62 * len(panel), "up is up"
    assert all(share(panel, color) == 0 for panel in panels[:3])
    axial = (panels[5] == color).all(-1)
    assert 0.05 < axial.mean() < 0.25  # a cross of two lines


def test_a_figure_of_no_pairs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"the figure of pairs: found no pairs"):
        figures.write_pairs_figure([], PROTOCOL, tmp_path / "pairs.png")


def test_generate_draws_the_first_pairs_and_keeps_no_others_in_memory(
    tmp_path: Path, maps: Path, recipe: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    from synthseg.generation import write

    alive: list[weakref.ref[WrittenPair]] = []
    most, original = [0], write.write_pair

    def counted(*arguments: object, **named: object) -> WrittenPair:
        gc.collect()
        most[0] = max(most[0], sum(ref() is not None for ref in alive))
        pair = original(*arguments, **named)  # type: ignore[arg-type]
        alive.append(weakref.ref(pair))
        return pair

    monkeypatch.setattr(write, "write_pair", counted)
    monkeypatch.setattr(figures, "MAX_ROWS", 2)
    out = tmp_path / "pairs"
    code, said, _ = command("generate", maps, "-o", out, "-n", 7, "--recipe", recipe, "--device", "cpu")
    assert code == 0
    assert said.splitlines()[-1] == f"{out / 'pairs.png'} (the first 2 of 7 pairs)"
    assert len(list(out.glob("*_image.nii.gz"))) == 7
    assert most[0] <= 3  # two for the figure, and the one that was just yielded
    picture = read_png(out / "pairs.png")
    assert picture.shape[0] == round(2 * 2.15 * 80)
    labels = nib.load(out / "pair_0000_labels.nii.gz").get_fdata()[SHAPE[0] // 2]
    seen = [value for value in np.unique(labels).astype(int) if (labels == value).sum() > 20 and value]
    assert seen
    assert all(share(picture, PROTOCOL.by_value(int(value)).color) > 0 for value in seen)


def test_without_matplotlib_nothing_is_made_before_it_is_said(
    tmp_path: Path, maps: Path, recipe: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    arguments = ("generate", maps, "-o", tmp_path / "pairs", "-n", 1, "--recipe", recipe, "--device", "cpu")
    code, _, err = command(*arguments)
    assert code == 2
    assert 'the figure of pairs: found no matplotlib. Fix: install it with: pip install "synthseg[report]"' in err
    assert not (tmp_path / "pairs").exists()
    assert command(*arguments, "--no-figure")[0] == 0


# Options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--replay", "x_draw.safetensors", "-n", "3"), "--replay: found a number of pairs or a seed beside it"),
        (("--replay", "x_draw.safetensors", "--seed", "0"), "--replay: found a number of pairs or a seed beside it"),
        (("--recipe", "r.toml", "--preset", "paper"), "--preset: found 'paper' beside --recipe r.toml"),
        (("--preset", "papre"), "generation.preset: found 'papre'. Fix: choose one of paper, original, t1"),
        (("--device", "gpu"), "device 'gpu': found an unknown name"),
        (("-n", "0"), "greater"),
    ],
)
def test_options_that_would_do_nothing_or_are_wrong_are_exit_code_2(
    tmp_path: Path, command: Command, options: tuple[str, ...], message: str
) -> None:
    code, _, err = command("generate", tmp_path, "-o", tmp_path / "pairs", *options)
    assert code == 2
    assert message in err.replace("│ ", "")
    assert not (tmp_path / "pairs").exists()


def test_a_packed_bank_takes_no_other_protocol(tmp_path: Path, maps: Path, recipe: Path, command: Command) -> None:
    bank = tmp_path / "bank.safetensors"
    assert command("bank", maps, "-o", bank)[0] == 0
    ends = ("-o", tmp_path / "pairs", "-n", 1, "--recipe", recipe, "--no-figure", "--device", "cpu")
    code, _, err = command("generate", bank, *ends, "--protocol", "feta")
    assert code == 2
    assert f"{bank}: found a bank of protocol synthseg-generation, not feta. Fix: leave the protocol out" in err
    assert command("generate", bank, *ends, "--protocol", "synthseg-generation")[0] == 0


def test_maps_that_cannot_be_used_are_exit_code_1(tmp_path: Path, maps: Path, recipe: Path, command: Command) -> None:
    (tmp_path / "empty").mkdir()
    ends = ("-o", tmp_path / "pairs", "--recipe", recipe, "--device", "cpu")
    assert "empty: found no label maps" in command("generate", tmp_path / "empty", *ends)[2]
    code, _, err = command("generate", tmp_path / "absent", *ends)
    assert (code, "absent: found no such file or folder" in err) == (1, True)
    code, _, err = command("generate", maps, *ends, "--protocol", "feta")
    assert code == 1
    assert "head0.nii.gz" in err


def test_the_defaults_make_pairs_of_the_papers_grid(tmp_path: Path, maps: Path, command: Command) -> None:
    out = tmp_path / "pairs"
    assert command("generate", maps / "head0.nii.gz", "-o", out, "-n", 1, "--device", "cpu")[0] == 0
    assert nib.load(out / "pair_0000_image.nii.gz").shape == (160, 160, 160)
    origin = read_origin(out / "pair_0000_draw.safetensors")
    assert origin is not None
    assert json.loads(json.dumps(origin["config"]))["mixture.mean_range"] == [0.0, 255.0]
    assert (out / "pairs.png").is_file()
