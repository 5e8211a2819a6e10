"""``synthseg doctor``: what this machine will use, whether all that is needed works, what scans will need."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from synthseg.cli.process import prepare_process
from synthseg.cli.segment_options import require_several
from synthseg.weights.places import use_model_dir


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("doctor")(doctor)


def doctor(
    scans: Annotated[
        list[Path] | None, typer.Argument(help="Scans to say what they will need; none is written.")
    ] = None,
    mode: Annotated[str, typer.Option(help="As for `synthseg segment`.")] = "default",
    weights: Annotated[
        list[str] | None, typer.Option(help="As for `synthseg segment`, several times too. Default: the mode's.")
    ] = None,
    merge: Annotated[str | None, typer.Option(help="Of several --weights, as for `synthseg segment`.")] = None,
    model_dir: Annotated[Path | None, typer.Option(help="As for `synthseg segment`.")] = None,
    backend: Annotated[str, typer.Option(help="auto, torch, openvino, compile or plain.")] = "auto",
    precision: Annotated[str | None, typer.Option(help="float32, bfloat16 or int8.")] = None,
    memory: Annotated[str | None, typer.Option(metavar="SIZE", help="A limit to plan with, e.g. 4G.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads. Default: all cores.")] = None,
    parc: Annotated[bool, typer.Option("--parc", help="Scans will be divided into parcels.")] = False,
    qc: Annotated[bool, typer.Option("--qc", help="Quality will be predicted.")] = False,
    posteriors: Annotated[bool, typer.Option("--posteriors", help="Posteriors will be written.")] = False,
    tissue_maps: Annotated[bool, typer.Option("--tissue-maps", help="Tissue maps will be written.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Say what this machine will use and whether it works, and estimate what scans need.

    Nothing is written. Exit code 1 if something that is needed is broken: a package, the weights, the backend, a scan.
    """
    use_model_dir(model_dir)
    prepare_process(threads, device)
    from synthseg.engine.packages import broken_packages, package_versions

    report: dict[str, Any] = {"versions": package_versions(), "problems": broken_packages()}
    if not report["problems"]:  # or the rest of us does not load
        one_or_all = weights[0] if weights and len(weights) == 1 else weights
        wanted: dict[str, Any] = {"mode": mode, "weights": one_or_all, "backend": backend, "precision": precision}
        wanted |= {"merge": require_several(merge, weights)}
        wanted |= {"memory": memory, "device": device, "threads": threads, "parcels": parc, "quality": qc}
        report |= _examine(wanted, scans or [], {"posteriors": posteriors, "tissue_maps": tissue_maps})
    if as_json:
        typer.echo(json.dumps(report, indent=1))
    else:
        for line in _lines(report):
            typer.echo(line)
    for problem in report["problems"]:
        typer.echo(f"problem: {problem}", err=True)
    if report["problems"]:
        raise typer.Exit(1)


def _examine(wanted: dict[str, Any], scans: list[Path], results: dict[str, Any]) -> dict[str, Any]:
    from synthseg.inference.checkup import Wanted, examine
    from synthseg.inference.want import Want

    found = examine(Wanted(**wanted), scans, Want(**results))
    return {**asdict(found), "backends": [state._asdict() for state in found.backends]}


def _lines(report: dict[str, Any]) -> list[str]:
    versions = ", ".join(f"{name} {version or 'not installed'}" for name, version in report["versions"].items())
    if "machine" not in report:
        return [_row("versions", versions)]
    return [
        _row("versions", versions),
        *_machine_lines(report["machine"]),
        *_backend_lines(report),
        *_weights_lines(report["weights"]),
        *(line for scan in report["scans"] for line in _scan_lines(scan)),
    ]


def _machine_lines(machine: dict[str, Any]) -> list[str]:
    cores = f"{machine['cores']} logical core(s) to use, {machine['threads']} thread(s)"
    instructions = ", ".join(machine["instructions"]) or "instruction sets not told by the system"
    gpus = [_gpu(gpu) for gpu in machine["gpus"]] or ["none that torch can use"]
    return [
        _row("system", machine["system"]),
        _row("processor", f"{machine['processor']}; {cores}"),
        _row("", f"{instructions}; torch uses {machine['capability']}"),
        _row("memory", f"{_size(machine['memory_bytes'])}, {_size(machine['available_bytes'])} available"),
        *_rows("GPU", gpus),
    ]


def _gpu(gpu: dict[str, Any]) -> str:
    memory = "" if gpu["memory_bytes"] is None else f", {_size(gpu['memory_bytes'])}, {_size(gpu['free_bytes'])} free"
    return f"{gpu['device']}: {gpu['name']}{memory}"


def _backend_lines(report: dict[str, Any]) -> list[str]:
    states = [f"{state['name']}: {_yes(state['usable'])}, {state['reason']}" for state in report["backends"]]
    return [*_rows("backends", states), _row("will use", report["why"] or "nothing: see the problems below")]


def _weights_lines(entries: list[dict[str, Any]]) -> list[str]:
    said = [
        f"{entry['name']}{' (used)' if entry['used'] else ''}: {entry['problem'] or 'verified'}, {entry['path']}"
        for entry in entries
    ] or ["none found"]
    return _rows("weights", said)


def _scan_lines(scan: dict[str, Any]) -> list[str]:
    spacing = " x ".join(f"{side:.3g}" for side in scan["spacing_mm"])
    looked = "" if scan["window"] == scan["whole"] else f" around the brain, of {_shape(scan['whole'])}"
    window = f"segmented on {_shape(scan['window'])} voxels of {scan['network_spacing_mm']:g} mm{looked}"
    slabs = "at once" if scan["slab"] is None else f"in slabs of {scan['slab']} planes"
    again = ", level 0 computed twice" if scan["recompute"] else ""
    memory = (
        "peak memory not known" if scan["memory_bytes"] is None else f"peak memory about {_size(scan['memory_bytes'])}"
    )
    on_gpu = "" if scan["device_bytes"] is None else f", {_size(scan['device_bytes'])} on the GPU"
    seconds = f"about {_seconds(scan['seconds'])}, of it {_seconds(scan['network_seconds'])} for networks"
    return [
        _row("scan", scan["path"]),
        _row("", f"{_shape(scan['shape'])} voxels of {spacing} mm"),
        _row("", f"{window}, {slabs}{again}; volumes on {_shape(scan['fine'])} voxels of 1 mm"),
        _row("", f"estimates: {memory}{on_gpu}; {seconds} (from a short trial run)"),
        *(_row("", f"note: {note}") for note in scan["notes"]),
    ]


def _row(name: str, text: str) -> str:
    return f"{name:<10} {text}".rstrip()


def _rows(name: str, texts: list[str]) -> list[str]:
    return [_row("" if index else name, text) for index, text in enumerate(texts)]


def _yes(holds: bool) -> str:
    return "yes" if holds else "no"


def _shape(shape: Any) -> str:
    return " x ".join(map(str, shape))


def _size(value: int | None) -> str:
    from synthseg.engine.memory import format_size

    return "an unknown size" if value is None else format_size(value)


def _seconds(value: float) -> str:
    return f"{value:.1f} s" if value < 10 else f"{value:.0f} s"
