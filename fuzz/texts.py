"""Targets: tables, recipes and other text that people and programs write."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from fuzz.harness import Target
from fuzz.hostile import hostile_text
from synthseg.anatomies.settings import settings_from
from synthseg.anatomies.shapes.spec import load_spec
from synthseg.cohort.bids_filter import read_queries
from synthseg.cohort.sidecars import color_rows
from synthseg.cohort.tables import read_participants
from synthseg.errors import SynthsegError
from synthseg.evaluation.mapping import read_mapping
from synthseg.evaluation.measurements import merge_sides, read_measurements
from synthseg.evaluation.parcels import read_parcel_groups
from synthseg.evaluation.sources import gather_pairs
from synthseg.evaluation.subjects import match_subjects, read_volumes
from synthseg.evaluation.subjects import read_participants as read_people
from synthseg.files import read_list
from synthseg.generation.map_weights import read_map_weights
from synthseg.generation.priors import load_priors
from synthseg.inference.record import read_record, recorded_intervals, recorded_quality
from synthseg.labels import load_protocol
from synthseg.training import load_training
from synthseg.training.recipe import read_toml

RECIPE = """# a recipe
[data]
bank = "bank.safetensors"
validate_every = 100
map_weights = [0.25, 0.75]

[generation]
preset = "paper"
[generation.bias]
max_std = 0.6
[generation.mixture]
kind = "uniform"
mean_range = [0.0, 250.0]

[network]
features = 4
levels = 2
out_channels = 3

[optimizer]
steps = 30
schedule = "decay"
decay_steps = 10
learning_rate = 1e-4
ema_decay = 0.9

[output]
name = "tiny"
ct_window = [0.0, 80.0]
"""
CHAIN = """[[stages]]
name = "a"
recipe = "a.toml"
init = "compact"

[[stages]]
name = "b"
recipe = "b.toml"
init = "stage:a"
weights = { tissues = "stage:a" }
changes = { optimizer = { steps = 20 }, output = { name = "other" } }
"""
SAMPLER = """scheme = "general"
[features]
units = "mm"
[space]
emphasis = [["volume", 2.0]]
components = 2
[density]
kind = "kmeans"
clusters = [6]
seeds = [1, 2]
[strength]
cap = inf
[family]
siblings = "(.+?)(?:_v[0-9]+)?"
masses = [["a", 1.0]]
"""
PARCELS = """braincolor_id,dk_id,group,side,quality,mni_group_dice,note
101,1002+1026,cingulate,left,good,0.8,x
102,2002,cingulate,right,fair,,"a, b"
103,1003,frontal,left,poor,0.5,
"""
LONG = """scan\tmethod\tlabel\tstructure\tmetric\tvalue\tunit\tage
s1\tours\t17\tleft hippocampus\tdice\t0.91\t\t60
s1\tours\t53\tright hippocampus\tdice\tnan\t\t60
s1\tours\t17\tleft hippocampus\tsd95\tinf\tmm\t60
"""
WIDE = """scan,label,structure,dice,sd95_mm,volume_predicted_mm3
s1,17,left hippocampus,0.9,1.5,4000
s1,53,"right hippocampus",0.8,inf,3900
"""
RECORD = """{"format": 2, "input": {"path": "a.nii.gz", "bytes": 3, "mtime_ns": 5, "sha256": "ab"},
"settings": {"inference": {}}, "versions": {"synthseg": "1"}, "volumes_mm3": {"left hippocampus": 4000.5},
"intervals_mm3": {"left hippocampus": {"sd": 1.0, "low": 1.0, "high": 2.0}},
"quality": {"thresholds": {"fail_below": 0.5, "warn_below": 0.7}, "scores": {"cortex": 0.8}}, "notes": []}
"""
FILTER = """{"t1w": {"datatype": "anat", "suffix": "T1w", "acquisition": null, "run": ["01", 2, null]},
"bold": {"datatype": "func"}, "t2w": {"suffix": ["T2w", "FLAIR"], "session": "*", "reconstruction": "Query.NONE"}}
"""
PARTICIPANTS = "participant_id\tage\tsex\tgroup\nsub-01\t25\tF\tcase\nsub-02\tn/a\tM\tcontrol\n03\t31.5\tF\tcase\n"
STATS = "subject,total intracranial,left hippocampus\r\nsub-01,1500000.1,4000.2\r\nsub-02,1400000,3900\r\n"
TIDY = "subject\tstructure\tvolume_mm3\nsub-01\tleft hippocampus\t4000.5\nsub-02\tleft hippocampus\tnan\n"
PRIORS = """# of one contrast
class\tmean_of_means\tstd_of_means\tmean_of_stds\tstd_of_stds
0\t0\t0\t2\t1
1\t110\t8\t9\t2
"""


def _write(**files: str) -> Callable[[Path], list[Path]]:
    """Seeds: a file of each content, "__" in names for "."."""

    def seeds(folder: Path) -> list[Path]:
        made = []
        for name, content in files.items():
            made.append(folder / name.replace("__", "."))
            made[-1].write_text(content, encoding="utf-8", newline="")
        return made

    return seeds


def _protocols(folder: Path) -> list[Path]:
    made = []
    for name in ("tissue-groups", "synthseg-1.0", "hvsmr"):
        made.append(folder / f"{name}.tsv")
        made[-1].write_text(load_protocol(name).to_table(), encoding="utf-8")
    return made


def _folder(name: str, files: Mapping[str, str]) -> Callable[[Path], list[Path]]:
    """Seeds: one folder of these files."""

    def seeds(folder: Path) -> list[Path]:
        for relative, content in files.items():
            place = folder / name / relative
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(content, encoding="utf-8")
        return [folder / name]

    return seeds


def _sampler(path: Path) -> object:
    return settings_from(read_toml(path), where=path.name)


def _scores(path: Path) -> object:
    return merge_sides(read_measurements(path))


def _record(path: Path) -> object:
    """A record that is none means that a scan is done again: no error, and no exception either."""
    record = read_record(path)
    if record is None:
        return None
    try:
        return recorded_intervals(record), recorded_quality(record)
    except ValueError:
        return None


def _effect(folder: Path) -> object:
    volumes, people = read_volumes(folder / "volumes.csv"), read_people(folder / "participants.tsv")
    columns = next(iter(people.values()))
    if "group" not in columns:
        return None
    try:
        return match_subjects(volumes, people, "group", {"case": True, "control": False})
    except SynthsegError:
        return None  # of their contents, not of a file


COLORS = (
    "# colours\n0 background 0 0 0 0\n2 left-cerebral-white-matter 245 245 245 0\n17 left-hippocampus 220 216 20 0\n"
)
WEIGHTS = "# c\nmap\tweight\tflags\na\t0.5\t\nb\t1e-3\tx\n"
MAPPING = "braincolor_id,aseg_id,score\n23,26,\n30,58,ignore\n4,8/47,x\n"
PAIRS = "predicted\ttruth\tscan\na.nii\tb.nii\ts1\nc.nii\td.nii\ts2\n"
EFFECT = {"volumes.csv": STATS, "participants.tsv": PARTICIPANTS}
TARGETS = (
    Target("protocol", _protocols, load_protocol, hostile_text),
    Target("recipe", _write(recipe__toml=RECIPE, plain__toml='[data]\nbank = "b"\n'), load_training, hostile_text),
    Target(
        "chain",
        _folder("chain", {"chain.toml": CHAIN, "a.toml": RECIPE, "b.toml": RECIPE.replace("tiny", "small")}),
        lambda folder: load_training(folder / "chain.toml"),
        hostile_text,
    ),
    Target("sampler-settings", _write(sampler__toml=SAMPLER), _sampler, hostile_text),
    Target("shape-spec", _write(shapes__toml="ventricles = [0.5, 4.0]\n"), load_spec, hostile_text),
    Target("map-weights", _write(w__tsv=WEIGHTS), read_map_weights, hostile_text),
    Target("priors", _write(t1__tsv=PRIORS), load_priors, hostile_text),
    Target("mapping", _write(m__csv=MAPPING), read_mapping, hostile_text),
    Target("parcel-groups", _write(p__csv=PARCELS), read_parcel_groups, hostile_text),
    Target("scores", _write(long__tsv=LONG, wide__csv=WIDE), _scores, hostile_text),
    Target("pairs-table", _write(p__tsv=PAIRS), gather_pairs, hostile_text),
    Target("volume-table", _write(v__csv=STATS, t__tsv=TIDY), read_volumes, hostile_text),
    Target("participants", _write(participants__tsv=PARTICIPANTS), read_participants, hostile_text),
    Target("effect", _folder("effect", EFFECT), _effect, hostile_text),
    Target("bids-filter", _write(f__json=FILTER), read_queries, hostile_text),
    Target("record", _write(r__json=RECORD), _record, hostile_text),
    Target("colours", _write(c__txt=COLORS), lambda path: color_rows(path, ["left hippocampus"]), hostile_text),
    Target("list", _write(l__txt="a.nii.gz\n~/b.nii\n\n/data/sub 1/größe.mgz\n"), read_list, hostile_text),
)  # fmt: skip
