"""How often each label map is drawn: weights by the map's name, and draws spread evenly over the steps.

A table keyed by name cannot be paired wrongly, as a vector in the order of sorted files can (reference B.4, pitfall 1).
Standard library and torch only: training reads these tables on a bare machine.
"""

from __future__ import annotations

import csv
import hashlib
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from synthseg.errors import ConfigError
from synthseg.reading import read_text

_SHOWN = 3  # names in a message
TABLE_BYTES = 64 * 2**20  # hundreds of thousands of maps


def read_map_weights(path: str | Path) -> dict[str, float]:
    """The weights of a table that ``synthseg sampler`` writes.

    Args:
        path: tab-separated text with the columns ``map`` and ``weight`` (others are for people); lines that start
            with ``#`` are comments.
    Returns: weight by map name, in the file's order; relative, as training divides by their sum.
    Raises: ConfigError naming the file and the line for a missing file or column, a name given twice, or a weight that
        is no finite number of at least 0; also when all are 0.
    """
    path = Path(path)
    fix = "write it with: synthseg sampler LABELS -o FOLDER"
    text = read_text(path, error=ConfigError, fix=fix, most=TABLE_BYTES)
    # Not splitlines, for which rarer characters, which names may hold, are line ends, too.
    lines = [line for line in text.split("\n") if line.strip() and not line.startswith("#")]
    rows = csv.DictReader(io.StringIO("\n".join(lines)), delimiter="\t", quoting=csv.QUOTE_NONE)
    try:
        header, found_rows = rows.fieldnames or (), list(rows)
    except csv.Error as error:  # a cell of more than 128 KiB
        raise ConfigError(path, found=f"no readable table ({error})", fix=fix) from error
    missing = [column for column in ("map", "weight") if column not in header]
    if missing:
        raise ConfigError(path, found=f"no column {' or '.join(missing)}", fix=fix)
    weights: dict[str, float] = {}
    for row in found_rows:
        name = row["map"] or ""
        if not name or name in weights:
            found = f"the map {name!r} twice" if name else "a row without a map's name"
            raise ConfigError(path, found=found, fix="give each map one row")
        weights[name] = _weight(row["weight"], path, name)
    if not sum(weights.values()) > 0:
        raise ConfigError(path, found=f"{len(weights)} weights, none above 0", fix=fix)
    return weights


def table_sha256(path: str | Path) -> str | None:
    """Digest of a table's file; None for one that cannot be read, which its reader tells."""
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except (OSError, ValueError):
        return None


def match_weights(weights: Mapping[str, float], names: Sequence[str], *, subject: str | Path) -> tuple[float, ...]:
    """The weights of a bank's maps, in its order.

    Args:
        weights: by map name.
        names: of the bank's maps.
        subject: the table's name for messages.
    Raises: ConfigError naming maps that only one side knows, or that the bank holds twice.
    """
    fix = "run `synthseg sampler` on the bank that the recipe names"
    unknown = [name for name in names if name not in weights]
    if unknown:
        raise ConfigError(subject, found=f"no weight for {_listed(unknown)} of the bank", fix=fix)
    known = set(names)
    gone = [name for name in weights if name not in known]
    if gone:
        raise ConfigError(subject, found=f"a weight for {_listed(gone)}, which the bank does not hold", fix=fix)
    if len(known) < len(names):
        twice = [name for name in known if list(names).count(name) > 1]
        fix = "name the label maps apart and pack them again"
        raise ConfigError(subject, found=f"two maps named {_listed(sorted(twice))} in the bank", fix=fix)
    return tuple(float(weights[name]) for name in names)


def stratified_map(weights: Tensor, *, seed: int, step: int, element: int) -> int:
    """The map of one element of one step, so that every N steps show each map as often as its weight says.

    Systematic sampling: N steps make a block (N maps), whose draws lie at equal distances along the summed weights,
    from a random start and in a random order. A map of weight w comes floor(N w) or ceil(N w) times a block; over all
    blocks, each step's choice has exactly the distribution of an independent draw. The stream is its own, on the CPU:
    it depends on (seed, step, element) alone and is the same on every device.

    Args:
        weights: [N] non-negative.
    Source: reference B.4, pitfalls 15 and 16.
    """
    count = len(weights)
    block, place = divmod(step, count)
    digest = hashlib.blake2b(f"maps/{seed}/{block}/{element}".encode(), digest_size=8).digest()
    rng = torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
    start = torch.rand((), generator=rng, dtype=torch.float64)
    position = (torch.randperm(count, generator=rng)[place] + start) / count
    summed = weights.detach().cpu().double().cumsum(0)
    # Never past the last map that may be drawn, whatever rounding does to the sum.
    last = int(torch.nonzero(weights)[-1])
    return min(int(torch.searchsorted(summed, position * summed[-1], right=True)), last)


def _weight(text: str | None, path: Path, name: str) -> float:
    try:
        weight = float(text or "")
    except ValueError:
        weight = math.nan
    if not 0 <= weight < math.inf:
        raise ConfigError(path, found=f"the weight {text!r} of {name}", fix="give a finite number of at least 0")
    return weight


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
