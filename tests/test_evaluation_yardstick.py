"""Cases over scans and changes: scored in world space, kept, taken up again, made anew for other weights."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from inference_helpers import band_model, phantom, phantom_affine, save_scan
from synthseg.errors import OutputError
from synthseg.evaluation import Case, CaseFailure, CaseResult, run_case, run_cases, yardstick
from synthseg.evaluation.yardstick import Outcome, settings_key
from synthseg.inference import Model, Segmenter

TRUTH_BY_LEVEL = {350: (2, 41), 500: (16, 16), 750: (17, 53), 1000: (24, 24)}  # left, right


def truth_of(image: np.ndarray) -> np.ndarray:
    labels = np.zeros(image.shape, dtype=np.int32)
    right = np.arange(image.shape[0])[:, None, None] >= image.shape[0] / 2
    for level, (left_value, right_value) in TRUTH_BY_LEVEL.items():
        labels[image == level] = np.where(right, right_value, left_value + 0 * image.astype(int))[image == level]
    return labels


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    image = phantom()
    save_scan(tmp_path / "a.nii.gz", image)
    save_scan(tmp_path / "a_aseg.nii.gz", truth_of(image))
    return tmp_path


def case(folder: Path, change: str = "plain", **values: object) -> Case:
    given = {"scan": "a", "image": folder / "a.nii.gz", "truth": folder / "a_aseg.nii.gz", "group": "phantoms"}
    return Case(**{**given, "change": change, **values})  # type: ignore[arg-type]


def segmenter(**options: float) -> Segmenter:
    return Segmenter(band_model(**options), "fast")


def sharp(model: Model) -> Model:
    return dataclasses.replace(model, sha256="0123456789abcdef" * 4)


def scored(outcome: Outcome) -> CaseResult:
    assert isinstance(outcome, CaseResult), outcome
    return outcome


def test_a_network_that_is_right_scores_one_and_gives_true_volumes(folder: Path):
    result = run_case(case(folder), segmenter(), unscored=(24,))
    assert [row.label for row in result.rows] == [2, 16, 17, 41, 53]
    assert result.dice > 0.98
    assert result.sd95_mm < 0.5
    by_label = {row.label: row for row in result.rows}
    assert by_label[17].volume_truth_mm3 == (truth_of(phantom()) == 17).sum()
    assert result.volumes_mm3[17] == pytest.approx(by_label[17].volume_truth_mm3, rel=0.1)
    assert result.total_mm3 == pytest.approx(sum(result.volumes_mm3.values()))


@pytest.mark.parametrize("change", ["axial-3mm", "sagittal-4mm", "rotated-z-5", "shifted"])
def test_changed_scans_are_compared_with_the_truth_in_world_space(folder: Path, change: str):
    # Blur at the borders costs something; a truth on the wrong grid or unmoved would cost nearly all of a core.
    turned = run_case(case(folder, change), segmenter(), unscored=(24,))
    cores = [row.dice for row in turned.rows if row.label in (17, 53)]
    assert min(cores) > 0.6
    sizes = [row.volume_truth_mm3 for row in turned.rows]
    assert sizes == [row.volume_truth_mm3 for row in run_case(case(folder), segmenter(), unscored=(24,)).rows]


def test_stored_multiples_are_divided_before_the_ct_window(folder: Path):
    # Bands at 0 to 80 HU: stored 10 times as large they only come out right when divided first.
    hu = phantom() * np.float32(80 / 1000)
    save_scan(folder / "a.nii.gz", hu * 10)
    right = run_case(case(folder, ct=True, divide_by=10.0), segmenter(), unscored=(24,))
    wrong = run_case(case(folder, ct=True), segmenter(), unscored=(24,))
    assert right.dice > 0.98 > 0.5 > wrong.dice


def test_results_are_kept_and_taken_up_again(folder: Path):
    wanted = [case(folder), case(folder, "inverted")]
    seen: list[tuple[int, str]] = []
    options = {"on_done": lambda position, given, _: seen.append((position, given.name))}
    first = run_cases(wanted[:1], segmenter(), folder / "out", **options)  # an interrupted run
    both = run_cases(wanted, segmenter(), folder / "out", **options)
    assert [scored(o).kept for o in (*first, *both)] == [False, True, False]
    assert dataclasses.replace(scored(both[0]), kept=False) == scored(first[0])
    assert seen == [(0, "a"), (0, "a"), (1, "a inverted")]


def test_other_weights_or_settings_start_afresh_and_the_ct_choice_does_not(folder: Path):
    one = Segmenter(sharp(band_model()), "fast")
    other = Segmenter(dataclasses.replace(band_model(), sha256="f" * 64), "fast")
    mode = Segmenter(sharp(band_model()), "default")
    ct = Segmenter(sharp(band_model()), "fast", ct=True)
    assert len({settings_key(s) for s in (one, other, mode)}) == 3
    assert settings_key(ct) == settings_key(one)
    assert settings_key(one).startswith("0123456789ab-")
    for each in (one, other, mode):
        assert not scored(run_cases([case(folder)], each, folder / "out")[0]).kept


def test_the_same_scan_in_another_group_is_another_result(folder: Path):
    run_cases([case(folder)], segmenter(), folder / "out")
    assert not scored(run_cases([case(folder, group="others")], segmenter(), folder / "out")[0]).kept


@pytest.mark.parametrize("changed", ["a.nii.gz", "a_aseg.nii.gz"])
def test_another_scan_or_truth_of_the_same_name_is_another_result(folder: Path, changed: str):
    run_cases([case(folder)], segmenter(), folder / "out")
    data = np.asarray(nib.load(folder / changed).dataobj).copy()
    data[0, 0, 0] = 1 - data[0, 0, 0]
    save_scan(folder / changed, data)
    assert not scored(run_cases([case(folder)], segmenter(), folder / "out")[0]).kept
    assert scored(run_cases([case(folder)], segmenter(), folder / "out")[0]).kept


@pytest.mark.parametrize("content", ["", "{", "[]", '{"scan": "a"}', '{"rows": [{"x": 1}], "volumes_mm3": {}}'])
def test_a_damaged_result_is_made_again(folder: Path, content: str):
    run_cases([case(folder)], segmenter(), folder / "out")
    (kept,) = (folder / "out").rglob("*.json")
    json.loads(kept.read_text(encoding="utf-8"))
    kept.write_text(content, encoding="utf-8")
    assert not scored(run_cases([case(folder)], segmenter(), folder / "out")[0]).kept
    assert scored(run_cases([case(folder)], segmenter(), folder / "out")[0]).kept


def test_missing_structures_survive_being_kept(folder: Path):
    # NaN and infinity must come back as they were.
    labels = truth_of(phantom())
    labels[0, 0, 0] = 10  # one voxel of a structure the network does not know
    save_scan(folder / "a_aseg.nii.gz", labels)
    first, again = (scored(run_cases([case(folder)], segmenter(), folder / "out")[0]) for _ in range(2))
    (row,) = (row for row in again.rows if row.label == 10)
    assert (row.dice, row.sd95_mm) == (0.0, float("inf"))
    assert again.rows == first.rows


def test_a_bad_scan_is_reported_and_the_rest_goes_on(folder: Path):
    (folder / "b.nii.gz").write_bytes(b"no scan")
    outcomes = run_cases([case(folder, scan="b", image=folder / "b.nii.gz"), case(folder)], segmenter(), folder / "out")
    assert isinstance(outcomes[0], CaseFailure)
    assert "b.nii.gz" in outcomes[0].reason
    assert scored(outcomes[1]).dice > 0.9
    assert len(list((folder / "out").rglob("*.json"))) == 1  # the failure is tried again next time


def test_a_place_that_takes_no_results_ends_the_run_instead_of_wasting_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    def refuse(path: Path, *_: object) -> None:
        raise OutputError(path, found="a full disk", fix="free space")

    monkeypatch.setattr(yardstick, "write_result", refuse)
    with pytest.raises(OutputError, match="a full disk"):
        run_cases([case(folder)], segmenter(), folder / "out")


def test_the_phantom_lies_where_the_affine_says():
    # What the tests above rest on: left of the middle is left in the world.
    assert (phantom_affine() @ [35.5, 0, 0, 1])[0] == pytest.approx(-0.5)
