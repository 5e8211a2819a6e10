"""Who a page is about: ids that tell nothing of a patient, and texts from which file names are taken out."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from synthseg.errors import UsageError, one_line
from synthseg.report.html import printable
from synthseg.volumes import strip_extension

Naming = Literal["hidden", "bids", "files"]
DIGITS = (
    10  # of the scan's SHA-256: a pair among 100,000 scans shares them with a probability of 0.5 %, and is told apart
)
_BIDS = re.compile(r"(?:^|/)(sub-[A-Za-z0-9]+(?:_[a-z]+-[A-Za-z0-9]+)*(?:_[A-Za-z0-9]+)?)(?=_|\.|$)")
_ABSOLUTE = re.compile(r"(?<![\w.])(?:[A-Za-z]:)?[/\\](?:[^\s/\\]+[/\\])+[^\s:,;'\"]*")
_EDGES = (r"(?<![A-Za-z0-9])", r"(?![A-Za-z0-9])")
LEAST_LETTERS = 3  # of a stem that may be somebody's name or number: shorter ones are in every other sentence
_NOBODY = frozenset({"scan", "image", "brain", "head", "template", "t1", "t2", "t1w", "flair", "pd", "ct", "mri"})


@dataclass(frozen=True)
class Identity:
    """A scan's id on pages, and every text that must not be seen there, the longest first."""

    id: str
    secrets: tuple[str, ...] = ()

    def scrub(self, text: str) -> str:
        """The text with the scan's path, name and stem replaced by its id, and folders left out."""
        for secret in self.secrets:
            # A number is taken for a name only where it is not part of a decimal number, such as a setting.
            before, after = (r"(?<![A-Za-z0-9.])", r"(?![A-Za-z0-9]|\.\d)") if secret.isdecimal() else _EDGES
            text = re.sub(rf"{before}{re.escape(secret)}{after}", lambda _: self.id, text)
        if not self.secrets:
            return text
        text = re.sub(rf"[^\s'\"]*[/\\](?={re.escape(self.id)})", "", text)
        return _ABSOLUTE.sub("(a path)", text)


def check_naming(text: str) -> Naming:
    """One of "hidden", "bids", "files". Raises: UsageError."""
    for naming in get_args(Naming):
        if text == naming:
            return naming
    raise UsageError("--names", found=repr(text), fix=f"use one of: {', '.join(get_args(Naming))}")


def identify(
    scan: Path, sha256: str | None, number: int, naming: Naming, taken: set[str], *, results: Path | None = None
) -> Identity:
    """A new identity, whose id is added to ``taken``.

    Args:
        scan: the path as it was given, which may hold a patient's name or number in any of its parts.
        sha256: of the scan's content. Not of its name: names can be guessed and hashed until one fits.
        number: what the id is made of where there is no such sum.
        naming: "files" shows the file's name without folder and extension; "bids" the part of a BIDS name from ``sub-``
            on, and hides other names; "hidden" shows neither.
        results: a file of the scan's results, whose folder may hold names, too.
    """
    stem = strip_extension(scan)
    match = _BIDS.search(stem)
    if naming == "files":
        wanted = stem
    elif naming == "bids" and match is not None:
        wanted = match.group(1)
    else:
        wanted = f"scan-{sha256[:DIGITS]}" if sha256 else f"scan-{number:05d}"
    wanted = printable(wanted)
    unique, count = wanted, 1
    while unique.casefold() in taken:
        count += 1
        unique = f"{wanted}-{count}"
    taken.add(unique.casefold())
    return Identity(unique, () if naming == "files" else _secrets(scan, results))


def _secrets(scan: Path, results: Path | None) -> tuple[str, ...]:
    """Spellings of a path: whole, absolute, its name, and its stem unless that is a word that names nobody; and the
    absolute folders of scan and results, which errors about other files in them begin with."""
    stem = strip_extension(scan)
    nobody = stem.lower() in _NOBODY or len(stem) < LEAST_LETTERS
    spellings = {str(scan), str(scan.absolute()), scan.name, "" if nobody else stem}
    spellings |= {str(path.absolute().parent) for path in (scan, results) if path is not None} - {scan.anchor, "/"}
    # A BIDS dataset has its subjects' labels in folders' names, too.
    folders = [part for part in scan.parts[:-1] if part.startswith(("sub-", "ses-")) and len(part) > 4 + 1]
    spellings |= {*folders}
    spellings |= {one_line(spelling) for spelling in spellings}  # as messages spell control characters in names
    return tuple(sorted(spellings - {""}, key=len, reverse=True))
