"""Every error a user can meet: what it is about, what was found, and what to do.

The command line turns a :class:`UsageError` into exit code 2 and any other :class:`SynthsegError` into exit code 1.
"""

from __future__ import annotations

from pathlib import Path

_LONGEST = 620  # characters of each of the three parts of a message


def one_line(text: str) -> str:
    """Text without line ends and control characters (a terminal obeys some of them), spelled out instead."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def _part(text: str) -> str:
    """A part of a message: its middle is left out where it is long, as a path's own name is at its end."""
    half = _LONGEST // 2
    # Cut before anything is spelled out: it may be megabytes.
    line = one_line(text if len(text) <= _LONGEST else f"{text[:half]}{text[-half:]}")
    return line if len(line) <= _LONGEST and len(text) <= _LONGEST else f"{line[:half]} ... {line[-half:]}"


class SynthsegError(Exception):
    """Base of all our errors.

    Args:
        subject: the file, setting or thing the message is about (always named first).
        found: what was found there.
        fix: what the user can do about it.

    The message is one line that can be printed anywhere, of at most 2,000 characters: control characters and bytes that
    are no text, as in file names, are written as ``\\n``, ``\\x1b``, ``\\udcff``; what is too long is cut.
    """

    exit_code = 1

    def __init__(self, subject: str | Path, *, found: str, fix: str) -> None:
        self.subject = str(subject)
        self.found = found
        self.fix = fix
        super().__init__(f"{_part(self.subject)}: found {_part(found)}. Fix: {_part(fix)}")

    def __reduce__(self) -> tuple[object, ...]:  # keyword-only arguments need help to cross process borders
        return _rebuild, (type(self), self.subject, self.found, self.fix)


def _rebuild(kind: type[SynthsegError], subject: str, found: str, fix: str) -> SynthsegError:
    return kind(subject, found=found, fix=fix)


class UsageError(SynthsegError):
    """The command line or call itself is wrong (exit code 2)."""

    exit_code = 2


class ConfigError(UsageError):
    """A recipe or configuration has a wrong key, type or value."""


class LabelError(SynthsegError):
    """A label protocol is invalid, or a label map holds values its protocol does not know."""


class VolumeError(SynthsegError):
    """A scan or label map cannot be read, or is not a usable 3D volume."""


class ShapeError(SynthsegError):
    """Arrays or tensors that must agree in shape do not."""


class WeightsError(SynthsegError):
    """Weights are missing, damaged, or do not fit what they are asked to do."""


class TrainingError(SynthsegError):
    """Training cannot start, continue or resume."""


class InvariantError(SynthsegError):
    """A segmentation broke one of the promises checked before writing."""


class OutputError(SynthsegError):
    """A result cannot be written."""
