"""Text files as nobody should write them: every reader refuses them in one line that names the file, or reads them."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from synthseg.anatomies.shapes.spec import ShapeSpec, load_spec
from synthseg.cohort.bids_app import check_dataset
from synthseg.cohort.bids_filter import read_queries
from synthseg.cohort.sidecars import color_rows
from synthseg.cohort.tables import read_participants
from synthseg.cohort.texts import read_json
from synthseg.errors import ConfigError, LabelError, SynthsegError, UsageError
from synthseg.evaluation.mapping import read_mapping
from synthseg.evaluation.measurements import read_measurements
from synthseg.evaluation.parcels import read_parcel_groups
from synthseg.evaluation.subjects import read_volumes
from synthseg.files import read_list
from synthseg.generation.map_weights import read_map_weights
from synthseg.generation.priors import load_priors
from synthseg.inference.record import read_record
from synthseg.labels import load_protocol
from synthseg.training import load_training

Reader = Callable[[Path], object]
TEXT_READERS: dict[str, Reader] = {
    "protocol.tsv": load_protocol,
    "recipe.toml": load_training,
    "shapes.toml": load_spec,
    "weights.tsv": read_map_weights,
    "priors.tsv": load_priors,
    "mapping.csv": read_mapping,
    "parcels.csv": read_parcel_groups,
    "scores.tsv": read_measurements,
    "volumes.csv": read_volumes,
    "participants.tsv": read_participants,
    "filter.json": read_queries,
    "sidecar.json": read_json,
    "colours.txt": lambda path: color_rows(path, []),
    "scans.txt": read_list,
}
HOSTILE: dict[str, bytes] = {
    "nothing": b"",
    "zero bytes": bytes(100),
    "latin-1": "größe\tété\n".encode("latin-1"),
    "UTF-16": "value\tname\n".encode("utf-16"),
    "random bytes": bytes(range(256)) * 4,
    "an open quotation mark": b'a,"b\n' + b"x,y\n" * 30_000,
    "deep brackets": b"[" * 100_000,
    "deep braces": b'{"a":' * 100_000,
    "one cell of 10 MB": b"a" * 10_000_000,
}


def refused(read: Reader, path: Path) -> str:
    """The one line in which a reader refuses a file."""
    with pytest.raises(SynthsegError) as caught:
        read(path)
    text = str(caught.value)
    assert text.isprintable(), text
    assert len(text) <= 2000
    assert path.name in text or path.parent.name in text
    return text


@pytest.mark.parametrize("name", TEXT_READERS)
@pytest.mark.parametrize("kind", HOSTILE)
def test_every_reader_refuses_what_is_no_text_of_its_kind(tmp_path: Path, name: str, kind: str) -> None:
    path = tmp_path / name
    path.write_bytes(HOSTILE[kind])
    if kind == "nothing" and name in ("colours.txt", "shapes.toml"):
        assert TEXT_READERS[name](path) in ([], ShapeSpec())  # no colours, and no change of the defaults
    elif kind == "an open quotation mark" and name == "scans.txt":
        assert len(read_list(path)) == 30_001  # to a list of names, quotation marks are letters
    else:
        refused(TEXT_READERS[name], path)


@pytest.mark.parametrize("name", TEXT_READERS)
def test_pipes_devices_folders_and_links_to_themselves_are_refused_at_once(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    os.mkfifo(path)  # whoever opens it waits for ever
    assert "a pipe or a device" in refused(TEXT_READERS[name], path)
    path.unlink()
    path.symlink_to("/dev/zero")
    assert "a pipe or a device" in refused(TEXT_READERS[name], path)
    path.unlink()
    path.symlink_to(name)
    refused(TEXT_READERS[name], path)
    path.unlink()
    refused(TEXT_READERS[name], path)
    if name != "protocol.tsv":  # a folder may hold the original's lists
        path.mkdir()
        assert "a folder" in refused(TEXT_READERS[name], path)


@pytest.mark.parametrize("end", ["\r\n", "\r", "\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_line_ends_and_byte_order_marks_change_nothing(tmp_path: Path, end: str, mark: str) -> None:
    texts = {
        "weights.tsv": "map\tweight\na\t0.5\nb\t1\n",
        "mapping.csv": "source,target\n3,4\n",
        "participants.tsv": "participant_id\tage\nsub-01\t3\n",
        "scores.csv": "scan,label,structure,dice\ns,2,x,0.5\n",
        "filter.json": '{"t1w":\n{"suffix": "T1w"}}\n',
        "scans.txt": "a.nii\nb.nii\n",
        "recipe.toml": '[data]\nbank = "b"\n',
    }
    readers = {**TEXT_READERS, "scores.csv": read_measurements}
    for name, text in texts.items():
        path = tmp_path / name
        path.write_bytes(text.encode())
        plain = readers[name](path)
        path.write_bytes((mark + text.replace("\n", end)).encode())
        assert readers[name](path) == plain, name


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"a": NaN}', "NaN"),
        ('{"a": [1, -Infinity]}', "Infinity"),
        ('{"a": 1e999}', "inf"),
        ('{"a": 1, "b": 2, "a": 3}', "the key 'a' twice"),
        ('{"a": ' + "9" * 5000 + "}", "digits"),
        ('{"a": ' + "9" * 30 + "}", "more than 64 bits"),
        ('{"a": "\\ud800"}', "no Unicode"),
        ('{"\\udfff": 1}', "no Unicode"),
        ('{"a": "x\\u0000"}', "zero bytes"),
        ('{"a":' * 70 + "1" + "}" * 70, "nested"),
        ("[1]", "no object"),
    ],
)
def test_json_that_other_programs_would_not_take_or_take_otherwise_is_refused(
    tmp_path: Path, text: str, told: str
) -> None:
    path = tmp_path / "sidecar.json"
    path.write_text(text, encoding="utf-8")
    assert told in refused(read_json, path)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("x = 0x" + "f" * 10_000, "64 bits"),  # Python cannot even print it
        ("x = " + "1" * 5000, "digits"),
        ("x = nan", "x: found nan"),
        (".".join("a" * 20_000) + " = 1", "a key of more than 64 parts"),  # tomllib: 29 s
        ("x = {" + ".".join('"a"' for _ in range(200)) + " = 1}", "a key of more than 64 parts"),
        ("[" + " . ".join("a" * 100) + "]", "a key of more than 64 parts"),
        ("x = " + "[" * 50_000, "nested"),
        ('[data]\nbank = "a\\u0000b"\n', "zero bytes"),
        ("# " + "x" * 2**20, "MiB of text"),
        ("[data]\nbank = 'b'\n[optimizer]\nsteps = 0\n", "optimizer.steps: found 0"),
        ("[data]\nbank = 1979-05-27\n", "data.bank"),
    ],
)
def test_toml_that_parsers_choke_on_is_refused_with_the_file_and_key(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(text, encoding="utf-8")
    message = refused(load_training, path)
    assert told in message
    assert "recipe.toml" in message


def test_a_stage_that_is_wrong_is_told_with_its_file(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text('[data]\nbank = "b"\n')
    chain = tmp_path / "chain.toml"
    for text, told in [
        ('[[stages]]\nname = "../x"\nrecipe = "a.toml"\n', "chain.toml"),
        ('[[stages]]\nname = "x"\nrecipe = "' + "a" * 300 + '.toml"\n', "no file"),
        ("stages = [1]\n", "one [[stages]] table a stage"),
        ('[[stages]]\nname = "x"\nrecipe = "a.toml"\nchanges.optimizer.steps = 0\n', "chain.toml"),
    ]:
        chain.write_text(text)
        assert told in refused(load_training, chain)


@pytest.mark.parametrize("cell", ["1" * 5000, "٣", "1e3", "nan", "-1", "2147483648", "1_0", "0x10", ""])
def test_label_values_that_are_none_are_refused_wherever_they_stand(tmp_path: Path, cell: str) -> None:
    path = tmp_path / "p.tsv"
    table = load_protocol("tissue-groups").to_table().split("\n")
    row = next(i for i, line in enumerate(table) if line.startswith("1\t"))
    path.write_text("\n".join([*table[:row], cell + table[row][1:], *table[row + 1 :]]), encoding="utf-8")
    with pytest.raises(LabelError, match="line"):
        load_protocol(path)
    if cell not in ("٣", "1_0"):  # which Python takes for 3 and 10
        mapping = tmp_path / "m.csv"
        mapping.write_text(f"source,target\n{cell},4\n", encoding="utf-8")
        refused(read_mapping, mapping)


def test_a_text_that_is_too_large_is_refused_before_it_is_read(tmp_path: Path) -> None:
    for name, size in (("recipe.toml", 2**21), ("protocol.tsv", 2**30), ("filter.json", 2**30), ("scores.tsv", 2**40)):
        path = tmp_path / name
        with path.open("wb") as file:
            file.truncate(size)  # a hole in the disk: takes no space
        assert "MiB of text" in refused(TEXT_READERS[name], path)


def test_a_damaged_description_of_a_dataset_is_told_with_its_file(tmp_path: Path) -> None:
    for content in HOSTILE.values():
        (tmp_path / "dataset_description.json").write_bytes(content)
        with pytest.raises(UsageError, match=r"dataset_description\.json: found .* --skip-bids-validation"):
            check_dataset(tmp_path)


def test_a_damaged_record_means_that_the_scan_is_done_again(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    for content in HOSTILE.values():
        path.write_bytes(content)
        assert read_record(path) is None
    path.unlink()
    os.mkfifo(path)
    assert read_record(path) is None


@given(st.text(max_size=300), st.text(max_size=1500), st.text(max_size=900))
def test_messages_are_one_line_of_print_whatever_is_in_them(subject: str, found: str, fix: str) -> None:
    error = UsageError(subject, found=found, fix=fix)
    text = str(error)
    assert text.isprintable()
    assert len(text) <= 2000
    text.encode("utf-8")
    assert (error.subject, error.found, error.fix) == (subject, found, fix)
    if subject.isprintable():
        assert text.startswith(subject)


@settings(max_examples=40)
@given(st.binary(max_size=200))
def test_bytes_never_raise_anything_but_our_own_errors(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name, read in TEXT_READERS.items():
            path = Path(folder, name)
            path.write_bytes(content)
            try:
                read(path)
            except SynthsegError as error:
                assert name in str(error)  # noqa: PT017 - either outcome is right, a nameless refusal is not


def test_a_table_of_very_many_columns_of_one_name_is_refused_without_comparing_each_with_each(tmp_path: Path) -> None:
    """Found by fuzzing: 300,000 columns took minutes."""
    path = tmp_path / "participants.tsv"
    path.write_text("participant_id" + "\ta" * 300_000 + "\nsub-01\n")
    assert "two columns called a" in refused(read_participants, path)


def test_a_config_error_names_its_file_once() -> None:
    from synthseg.training.recipe import recipe_from_dict

    with pytest.raises(ConfigError, match=r"^mine\.toml: optimizer\.learning_rate: found -1"):
        recipe_from_dict({"data": {"bank": "b"}, "optimizer": {"learning_rate": -1}}, where="mine.toml")
    values = json.loads('{"data": {"bank": "b", "validate_evry": 3}}')
    with pytest.raises(ConfigError, match=r"^mine\.toml\.data: found unknown key"):
        recipe_from_dict(values, where="mine.toml")
