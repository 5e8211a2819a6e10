"""``synthseg sampler``: how often each label map should be drawn in training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from synthseg.anatomies.sampler import MapWeights
    from synthseg.generation.bank import LabelBank
    from synthseg.labels.protocol import LabelProtocol


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("sampler")(sampler)


def sampler(
    labels: Annotated[list[Path], typer.Argument(help="Label maps (folders, files), or one packed bank.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for weights.tsv, features.tsv, summary.json.")],
    protocol: Annotated[
        str | None,
        typer.Option(help="Label protocol of the maps: a name or a .tsv. Default: synthseg-generation, or the bank's."),
    ] = None,
    scheme: Annotated[
        str | None, typer.Option(help="general (the default), reference (the fetal paper's) or uniform.")
    ] = None,
    settings: Annotated[Path | None, typer.Option(help="All settings as a .toml file; options override it.")] = None,
    shapes: Annotated[
        str | None,
        typer.Option(help="structures, tissues, or values such as 2,3,4 or 'cortex=3+42,ventricles=4+43'."),
    ] = None,
    density: Annotated[str | None, typer.Option(help="kernel, mixture, soft, kmeans, farthest or uniform.")] = None,
    clusters: Annotated[
        str | None, typer.Option(help="Clusters of each data set: 6, or 6,8. Default: by the number of maps.")
    ] = None,
    temper: Annotated[float | None, typer.Option(help="Weights to this power: 0 is uniform, 1 all of it.")] = None,
    uniform: Annotated[float | None, typer.Option(help="Share of the draws that stay uniform.")] = None,
    cap: Annotated[float | None, typer.Option(help="Largest weight, in medians; inf: none.")] = None,
    mass: Annotated[
        str | None, typer.Option(help="Of data sets (folders): equal, maps, or NAME=0.5,OTHER=0.5.")
    ] = None,
    datasets: Annotated[
        str | None, typer.Option(help="Expression whose group is the data set in a map's name, e.g. '^(sb|crl)_'.")
    ] = None,
    siblings: Annotated[
        str | None, typer.Option(help="Expression whose group names the anatomy: its maps share one weight.")
    ] = None,
    figure: Annotated[bool, typer.Option("--figure/--no-figure", help="Also draw figure.png.")] = True,
    overwrite: Annotated[bool, typer.Option(help="Replace files that exist.")] = False,
) -> None:
    """Weigh label maps by how rare their shapes are, for `map_weights` of a training recipe."""
    from synthseg.anatomies.sampler import weights_of
    from synthseg.anatomies.table import FEATURES, MEASURES, SUMMARY, WEIGHTS, write_tables
    from synthseg.errors import OutputError
    from synthseg.files import require_writable
    from synthseg.labels import load_protocol
    from synthseg.report.plotting import check_figure_path
    from synthseg.report.sampling import write_sampling_figure

    given: dict[str, dict[str, Any]] = {
        "features": {"labels": shapes},
        "density": {"kind": density, "clusters": _counts(clusters)},
        "strength": {"temper": temper, "uniform": uniform, "cap": cap},
        "family": {"datasets": datasets, "siblings": siblings, **_mass(mass)},
    }
    chosen = _settings(scheme, settings, given)
    picture = check_figure_path(out / "figure.png") if figure else None
    results = [out / name for name in (WEIGHTS, FEATURES, SUMMARY)] + ([picture] if picture else [])
    there = next((path for path in results if path.exists()), None)
    if there is not None and not overwrite:
        raise OutputError(there, found="an existing file", fix="choose another folder, or add --overwrite")
    places = _places(labels, load_protocol(protocol) if protocol is not None else None)
    require_writable(out)
    found = weights_of(
        places,
        chosen,
        protocol=load_protocol(protocol) if protocol is not None else None,
        cache=out / MEASURES,
        on_map=lambda name: typer.echo(f"measured {name}", err=True),
    )
    files = write_tables(found, out)
    if picture is not None:
        files.append(write_sampling_figure(found, picture))
    _print(found)
    typer.echo("\n".join(map(str, files)))


def _settings(scheme: str | None, path: Path | None, given: dict[str, dict[str, Any]]) -> Any:
    """The preset, the file's changes, the options' changes."""
    from synthseg.anatomies.settings import settings_from
    from synthseg.training.recipe import overlay, read_toml

    values = {} if path is None else read_toml(path)
    if scheme is not None:
        values["scheme"] = scheme
    options = {
        table: changes
        for table, keys in given.items()
        if (changes := {key: value for key, value in keys.items() if value is not None})
    }
    return settings_from(overlay(values, options), where="sampler" if path is None else path.name)


def _places(labels: list[Path], protocol: LabelProtocol | None) -> list[Path] | LabelBank:
    from synthseg.anatomies.sources import files_in
    from synthseg.errors import UsageError
    from synthseg.generation.write import open_bank

    banks = [place for place in labels if place.suffix == ".safetensors"]
    if banks and len(labels) > 1:
        fix = "give one bank by itself: weights are for one bank (--datasets tells its data sets apart)"
        raise UsageError(banks[0], found="a bank beside other label maps", fix=fix)
    return open_bank(banks[0], protocol) if banks else list(files_in(labels))


def _counts(text: str | None) -> list[int] | None:
    from synthseg.errors import UsageError

    if text is None:
        return None
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() for word in words):
        raise UsageError("--clusters", found=repr(text), fix="give a number, or one for each data set: 6,8")
    return [int(word) for word in words]


def _mass(text: str | None) -> dict[str, Any]:
    from synthseg.errors import UsageError

    if text is None or text in ("equal", "maps"):
        return {"mass": text}
    pairs = []
    for part in text.split(","):
        name, _, number = part.rpartition("=")
        try:
            pairs.append([name.strip(), float(number)])
        except ValueError as error:
            raise UsageError("--mass", found=repr(part), fix="write equal, maps, or NAME=0.5,OTHER=0.5") from error
    return {"masses": pairs}


def _print(found: MapWeights) -> None:
    from synthseg.cli.columns import print_columns

    for part in found.parts:
        explained = ", ".join(f"{100 * share:.0f} %" for share in part.explained)
        sizes = ", ".join(map(str, part.cluster_sizes))
        typer.echo(
            f"{part.name}: {part.maps} maps of {part.anatomies} anatomies, {100 * part.mass:.3g} % of the draws;"
            f" components {explained}" + (f"; clusters of {sizes}" if sizes else "")
        )
    count = len(found.rows)
    heavy = sorted(found.rows, key=lambda row: (-row.weight, row.name))
    one_each = {(row.dataset, row.family): row for row in reversed(heavy)}  # the first map of each anatomy
    top = sorted(one_each.values(), key=lambda row: (-row.weight, row.name))[:10]
    rows = [(row.name, f"{row.weight * count:.2f}", f"{1000 * row.weight:.1f}") for row in top]
    print_columns("Drawn most often (a map of each)", ("map", "x uniform", "per 1000"), rows)
    typer.echo(f"effective number of maps: {found.effective:.1f} of {count}")
    flagged = [row for row in found.rows if row.flags]
    for row in flagged[:10]:
        typer.echo(f"note: {row.name}: {'; '.join(row.flags)}", err=True)
    if len(flagged) > 10:
        typer.echo(f"note: and {len(flagged) - 10} more with notes: see weights.tsv", err=True)
