"""What the options of `synthseg segment` mean together."""

from __future__ import annotations

from pathlib import Path

from synthseg.errors import UsageError


def one_mode(mode: str | None, flags: dict[str, bool]) -> str:
    """The one mode asked for. Raises: UsageError if --mode and its short forms say different things."""
    if all(flags.values()):  # both short forms: the chain of networks, without averaging and clean-up
        flags = {"robust-fast": True}
    given = [(f"--{name}", name) for name, wanted in flags.items() if wanted]
    if mode is not None:
        given.append((f"--mode {mode}", mode))
    if len({name for _, name in given}) > 1:
        raise UsageError(given[0][0], found=f"together with {given[1][0]}", fix="give only one of them")
    return given[0][1] if given else "default"


def require_several(merge: str | None, weights: list[str] | None) -> str | None:
    """The rule asked for to merge networks. Raises: UsageError if there is nothing to merge."""
    if merge is not None and len(weights or ()) < 2:
        raise UsageError("--merge", found="fewer than two networks", fix="give --weights once for each of them")
    return merge


def wanted_quality(table: Path | None, *, no_qc: bool) -> bool | None:
    """Whether quality is predicted; None where there is a network for it. Raises: UsageError for both options."""
    if table is not None and no_qc:
        raise UsageError("--no-qc", found=f"together with --qc {table}", fix="give only one of them")
    return True if table is not None else (False if no_qc else None)


def warnings_beside(table: Path | None) -> Path | None:
    """Where the warnings go if nobody said so: ``volumes.csv`` -> ``volumes_warnings.csv``."""
    return None if table is None else table.with_name(f"{table.stem}_warnings{table.suffix}")
