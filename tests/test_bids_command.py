"""``synthseg bids``: a small dataset in, a derivative out that the BIDS validator passes."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from inference_helpers import COARSE, phantom, phantom_affine, save_random_weights, save_scan
from synthseg.cohort.bids import BidsScan, Choice
from synthseg.cohort.bids_app import GB_A_WORKER, divide, ledger_folder
from synthseg.cohort.derivatives import derivative_files, plan, start_dataset
from synthseg.cohort.sidecars import complete
from synthseg.cohort.work import Job
from synthseg.errors import UsageError
from synthseg.inference.outputs import Outputs

Command = Callable[..., tuple[int, str, str]]
SCANS = (
    "sub-01_T1w",
    "sub-01_FLAIR",
    "sub-02_ses-a_acq-hi_run-01_T1w",
    "sub-02_ses-a_acq-hi_run-02_T1w",
    "sub-02_ses-b_T2w",
)
EVERYTHING = ("--posteriors", "--mask", "--tissue-maps", "--resampled", "--space", "both")


def raw_dataset(root: Path, names: tuple[str, ...] = SCANS) -> Path:
    root.mkdir(parents=True)
    about = {"Name": "toy", "BIDSVersion": "1.8.0", "Authors": ["A. Body", "B. Rain"], "DatasetDOI": "doi:10.1/x"}
    (root / "dataset_description.json").write_text(json.dumps(about))
    (root / "participants.tsv").write_text("participant_id\tage\nsub-01\t31\nsub-02\tn/a\n")
    for name in names:
        words = name.split("_")
        folder = root.joinpath(words[0], *(word for word in words if word.startswith("ses-")), "anat")
        save_scan(folder / f"{name}.nii.gz", phantom(spacing_mm=COARSE), phantom_affine(COARSE))
    return root


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def validator() -> str | None:
    """The BIDS validator of PyPI's ``bids-validator-deno``, or npm's of the same name."""
    beside = Path(sys.executable).parent
    return shutil.which("bids-validator-deno", path=f"{beside}{os.pathsep}{os.environ.get('PATH', '')}")


@pytest.fixture(scope="module")
def derived(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A dataset and its derivative with everything that can be written, made by the command."""
    from synthseg.cli import main

    root = tmp_path_factory.mktemp("bids")
    raw = raw_dataset(root / "raw")
    weights = save_random_weights(root / "weights.safetensors")
    out = raw / "derivatives" / "synthseg"
    arguments = ["bids", raw, out, "participant", "--weights", weights, "--no-qc", "--n-cpus", 1, *EVERYTHING, "-q"]
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    assert not ended.value.code
    return raw, out


def test_every_scan_has_its_files_under_names_of_its_own(derived: tuple[Path, Path]) -> None:
    _, out = derived
    found = sorted(path.relative_to(out).as_posix() for path in out.rglob("*_dseg.nii.gz"))
    assert found == [
        "sub-01/anat/sub-01_desc-synthseg_dseg.nii.gz",
        "sub-01/anat/sub-01_res-1mm_desc-synthseg_dseg.nii.gz",
        "sub-02/ses-a/anat/sub-02_ses-a_acq-hi_run-01_desc-synthseg_dseg.nii.gz",
        "sub-02/ses-a/anat/sub-02_ses-a_acq-hi_run-01_res-1mm_desc-synthseg_dseg.nii.gz",
        "sub-02/ses-a/anat/sub-02_ses-a_acq-hi_run-02_desc-synthseg_dseg.nii.gz",
        "sub-02/ses-a/anat/sub-02_ses-a_acq-hi_run-02_res-1mm_desc-synthseg_dseg.nii.gz",
        "sub-02/ses-b/anat/sub-02_ses-b_desc-synthsegT2w_dseg.nii.gz",
        "sub-02/ses-b/anat/sub-02_ses-b_res-1mm_desc-synthsegT2w_dseg.nii.gz",
    ]
    left_out = table(out / "logs" / "left_out.tsv")
    assert [row["left_out"] for row in left_out] == ["sub-01/anat/sub-01_FLAIR.nii.gz"]


def test_the_labels_lie_on_their_scan_and_mean_what_the_lookup_says(derived: tuple[Path, Path]) -> None:
    raw, out = derived
    image = nib.load(out / "sub-01" / "anat" / "sub-01_desc-synthseg_dseg.nii.gz")
    scan = nib.load(raw / "sub-01" / "anat" / "sub-01_T1w.nii.gz")
    np.testing.assert_allclose(image.affine, scan.affine)
    assert image.shape == scan.shape
    lookup = {int(row["index"]): row for row in table(out / "desc-synthseg_dseg.tsv")}
    assert set(np.unique(image.dataobj)) <= set(lookup)
    assert lookup[17] == {"index": "17", "name": "left hippocampus", "color": "#112233"}
    assert list(out.rglob("sub-*_dseg.tsv")) == []  # one table for all


def test_sidecars_lead_back_to_the_scan_and_say_what_made_the_file(derived: tuple[Path, Path]) -> None:
    raw, out = derived
    links = json.loads((out / "dataset_description.json").read_text())["DatasetLinks"]
    images = list(out.rglob("sub-*.nii.gz"))
    assert len(images) == 4 * 8
    for image in images:
        said = json.loads(image.with_name(image.name.removesuffix(".nii.gz") + ".json").read_text())
        (source,) = said["Sources"]
        scheme, dataset, path = source.split(":")
        assert scheme == "bids"
        scan = (out / links[dataset] / path).resolve()
        assert scan.is_file()
        assert raw.resolve() in scan.parents
        assert ("_res-1mm_" in image.name) == ("Resolution" in said)
        assert said["SynthSegWeights"]["structures"]["name"] == "tiny"
    probabilities = out / "sub-01" / "anat" / "sub-01_desc-synthseg_probseg.nii.gz"
    said = json.loads(probabilities.with_name("sub-01_desc-synthseg_probseg.json").read_text())
    assert len(said["LabelMap"]) == nib.load(probabilities).shape[3]


def test_volumes_are_those_of_the_record(derived: tuple[Path, Path]) -> None:
    _, out = derived
    rows = table(out / "sub-01" / "anat" / "sub-01_desc-synthseg_volumes.tsv")
    record = json.loads((out / "logs" / "sub-01" / "sub-01_desc-synthseg.json").read_text())
    assert {row["name"]: float(row["volume_mm3"]) for row in rows} == pytest.approx(record["volumes_mm3"])
    assert {row["name"]: row["index"] for row in rows}["left hippocampus"] == "17"
    dictionary = json.loads((out / "desc-synthseg_volumes.json").read_text())
    assert set(rows[0]) <= set(dictionary)


def test_the_bids_validator_finds_no_error(derived: tuple[Path, Path]) -> None:
    program = validator()
    if program is None:
        pytest.skip("no BIDS validator: pip install bids-validator-deno")
    _, out = derived
    run = subprocess.run([program, str(out), "--json"], capture_output=True, text=True, check=False, timeout=120)
    answer = json.loads(run.stdout)
    errors = [issue for issue in answer["issues"]["issues"] if issue["severity"] == "error"]
    assert answer["summary"]["totalFiles"] > 60
    assert errors == []


def test_the_group_level_puts_scans_and_covariates_into_one_table(derived: tuple[Path, Path], command: Command) -> None:
    raw, out = derived
    code, said, _ = command("bids", raw, out, "group")
    assert (code, said.startswith("4 scan(s) in")) == (0, True)
    rows = table(out / "cohort.tsv")
    assert [(row["sub"], row["ses"], row["age"], row["state"]) for row in rows] == [
        ("01", "n/a", "31", "done"),
        ("02", "a", "n/a", "done"),
        ("02", "a", "n/a", "done"),
        ("02", "b", "n/a", "done"),
    ]
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    parquet = pandas.read_parquet(out / "cohort.parquet")
    np.testing.assert_allclose(parquet["csf"], [float(row["csf"]) for row in rows], rtol=1e-6)


def test_participants_run_apart_come_together_in_the_group_table(tmp_path: Path, command: Command) -> None:
    raw = raw_dataset(tmp_path / "raw", ("sub-01_T1w", "sub-02_T1w"))
    weights, out = save_random_weights(tmp_path / "w.safetensors"), tmp_path / "out"
    options = ("--weights", weights, "--no-qc", "--n-cpus", 1)
    code, _, _ = command("bids", raw, out, "participant", *options, "--participant-label", "02")
    assert (code, list(out.glob("cohort*"))) == (0, [])
    command("bids", raw, out, "group")
    assert [(row["sub"], row["state"]) for row in table(out / "cohort.tsv")] == [("01", "waiting"), ("02", "done")]


def test_wrong_usage_is_told_before_any_work(tmp_path: Path, command: Command) -> None:
    raw = raw_dataset(tmp_path / "raw", ())
    out = tmp_path / "out"
    assert "use participant or group" in command("bids", raw, out, "session")[2]
    assert "run `synthseg bids ... participant` first" in command("bids", raw, out, "group")[2]
    assert "no folder of a subject" in command("bids", raw, out, "participant")[2]
    (raw / "dataset_description.json").write_text('{"Name": "toy"}')
    code, _, said = command("bids", raw, out, "participant")
    assert (code, "no BIDSVersion" in said, "--skip-bids-validation" in said) == (2, True, True)


@pytest.mark.parametrize(
    "about", ['{"Name": "x", "BIDSVersion": "1.8", "Name": "x"}', '{"Name": "x", "More": NaN}', "{"]
)
def test_what_a_dataset_says_of_itself_ends_no_run(tmp_path: Path, about: str) -> None:
    raw = raw_dataset(tmp_path / "raw", ())
    (raw / "dataset_description.json").write_text(about)
    start_dataset(tmp_path / "out", raw)
    made = json.loads((tmp_path / "out" / "dataset_description.json").read_text())
    assert made["Name"] == "synthseg - segmentations of brain scans"


def test_the_dataset_itself_and_other_programs_derivatives_are_left_alone(tmp_path: Path) -> None:
    raw = raw_dataset(tmp_path / "raw", ())
    with pytest.raises(UsageError, match="the dataset itself"):
        start_dataset(raw, raw)
    other = tmp_path / "other"
    other.mkdir()
    (other / "dataset_description.json").write_text('{"Name": "x", "GeneratedBy": [{"Name": "fMRIPrep"}]}')
    with pytest.raises(UsageError, match="a dataset made by fMRIPrep"):
        start_dataset(other, raw)
    assert [path.name for path in other.iterdir()] == ["dataset_description.json"]


def test_two_files_of_one_name_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "sub-01" / "anat"
    scans = [
        BidsScan(folder / f"sub-01_T1w.{end}", tmp_path, {"sub": "01"}, "T1w", "anat") for end in ("nii", "nii.gz")
    ]
    with pytest.raises(UsageError, match=r"one derivative for two scans, .*sub-01_T1w\.nii and .*sub-01_T1w\.nii\.gz"):
        plan(scans, tmp_path / "out", Outputs(color_table=True))


def test_entities_that_the_standard_forbids_for_segmentations_go_into_desc(tmp_path: Path) -> None:
    scan = BidsScan(tmp_path / "x.nii.gz", tmp_path, {"sub": "1", "run": "1", "inv": "2"}, "MP2RAGE", "anat")
    files = derivative_files(scan, tmp_path, Outputs())
    assert files["labels"].name == "sub-1_run-1_desc-synthsegMP2RAGEInv2_dseg.nii.gz"


def test_a_scan_with_other_labels_has_a_lookup_of_its_own(derived: tuple[Path, Path], tmp_path: Path) -> None:
    _, out = derived
    copy = tmp_path / "out"
    shutil.copytree(out, copy)
    scan = BidsScan(tmp_path / "sub-01" / "anat" / "sub-01_T1w.nii.gz", tmp_path, {"sub": "01"}, "T1w", "anat")
    (job,) = plan([scan], copy, Outputs(color_table=True))
    before = (copy / "desc-synthseg_dseg.tsv").read_text()
    job.files["color_table"].write_text("# name\n0 background 0 0 0 0\n17 left-hippocampus 1 2 3 0\n")
    complete(job)
    own = job.files["labels"].with_name("sub-01_desc-synthseg_dseg.tsv")
    assert [row["index"] for row in table(own)] == ["0", "17"]
    assert (copy / "desc-synthseg_dseg.tsv").read_text() == before
    shutil.copy(out / "logs" / "sub-01" / "sub-01_desc-synthseg_colors.txt", job.files["color_table"])
    complete(job)
    assert not own.exists()


def test_quality_and_error_bars_are_written_down(derived: tuple[Path, Path], tmp_path: Path) -> None:
    _, out = derived
    copy = tmp_path / "out"
    shutil.copytree(out, copy)
    scan = BidsScan(tmp_path / "sub-01" / "anat" / "sub-01_T1w.nii.gz", tmp_path, {"sub": "01"}, "T1w", "anat")
    (job,) = plan([scan], copy, Outputs(color_table=True))
    assert isinstance(job, Job)
    record = json.loads(job.files["record"].read_text())
    record["quality"] = {
        "verdict": "warn",
        "scores": {"cortex": 0.7, "hippocampus": 0.9},
        "verdicts": {"cortex": "warn", "hippocampus": "pass"},
        "thresholds": {"fail_below": 0.65, "warn_below": 0.75},
    }
    record["intervals_mm3"] = {"csf": {"mean": 1, "low": 2.0, "high": 4.0, "sd": 0.5, "n": 5}}
    job.files["record"].write_text(json.dumps(record))
    complete(job)
    anat = copy / "sub-01" / "anat"
    assert [tuple(row.values()) for row in table(anat / "sub-01_desc-synthseg_qc.tsv")] == [
        ("cortex", "0.7000", "warn"),
        ("hippocampus", "0.9000", "pass"),
        ("overall", "n/a", "warn"),
    ]
    bars = {row["name"]: row for row in table(anat / "sub-01_desc-synthseg_volumes.tsv")}
    assert (bars["csf"]["low_mm3"], bars["csf"]["high_mm3"], bars["brain-stem"]["sd_mm3"]) == ("2.0", "4.0", "n/a")


def test_cores_and_memory_are_those_of_the_whole_run() -> None:
    assert divide(None, None, "cpu").workers is None
    for cores, memory in ((1, None), (8, None), (16, 6.0), (3, 100.0), (64, 1.0)):
        shares = divide(cores, memory, "cpu")
        assert shares.workers is not None
        assert shares.threads is not None
        assert shares.workers * shares.threads <= cores
        if memory is None:
            assert shares.memory is None
        else:
            assert shares.workers == 1 or shares.workers * GB_A_WORKER <= memory
            assert shares.memory is not None
            assert int(shares.memory.removesuffix("M")) * shares.workers <= memory * 1024


def test_runs_on_different_participants_have_ledgers_of_their_own(tmp_path: Path) -> None:
    def place(*labels: str) -> Path:
        return ledger_folder(tmp_path, Choice(participants=labels))

    assert place() == tmp_path
    assert place("01") == place("sub-01") != place("02")
    many = [f"{index:04d}" for index in range(50)]
    assert len(place(*many).name) < 60
    assert place(*many) == place(*reversed(many)) != place(*many[1:])
