"""Changes to bytes and to folders of files, all drawn from one ``random.Random``."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

Structured = Callable[[random.Random, bytes], bytes]

# Numbers at which headers and parsers turn: limits of types, their neighbours, and sizes of half a gigabyte and more.
NUMBERS = (0, 1, -1, 2, 3, 4, 7, 8, 127, 128, 255, 256, 32767, 32768, 65535, 65536, 2**29, 2**31 - 1, 2**31, 2**32 - 1)
NUMBERS_64 = (2**33, 2**53, 2**62, 2**63 - 1, 2**63, 2**64 - 1)
WORDS: tuple[bytes, ...] = (
    b"nan",
    b"-inf",
    b"1e400",
    b"-1",
    b"99999999999999999999",
    b"0x10",
    b"\t",
    b"\n",
    b"\r\n",
    b"\0",
    b'"',
    b"'",
)
WORDS += (b"[", b"]", b"{", b"}", b",", b"=", b"#", b"\xef\xbb\xbf", b"\xff\xfe", b"\xc3\x28", b"../", b"/", b"null")
MOST_BYTES = 4 << 20  # a mutant is a small file: what it may ask of memory is no excuse of its own size


@dataclass(frozen=True)
class Example:
    """A file, or a folder of files, held in memory: bytes by relative path; a single file has the path ""."""

    name: str
    files: Mapping[str, bytes]

    @classmethod
    def read(cls, path: Path) -> Example:
        """What lies under a path. Empty folders and links inside a folder are left out."""
        if not path.is_dir():
            return cls(path.name, {"": path.read_bytes()})
        inside = sorted(file for file in path.rglob("*") if file.is_file() and not file.is_symlink())
        return cls(path.name, {str(file.relative_to(path)): file.read_bytes() for file in inside})

    def write(self, folder: Path) -> Path:
        """Write it into a folder under its own name; returns its path."""
        whole = folder / self.name
        if set(self.files) != {""}:
            whole.mkdir(parents=True, exist_ok=True)
        for relative, content in self.files.items():
            place = whole / relative if relative else whole
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(content)
        return whole

    @property
    def size(self) -> int:
        """Bytes of all files together."""
        return sum(map(len, self.files.values()))


def mutant(rng: random.Random, parent: Example, others: list[Example], structured: Structured | None) -> Example:
    """A changed copy: one file changed by one to four steps; of a folder perhaps its files moved about."""
    if "" not in parent.files and rng.random() < 0.15:
        return _moved(rng, parent)
    place = rng.choice(sorted(parent.files)) if parent.files else ""
    content = parent.files.get(place, b"")
    for _ in range(rng.choice((1, 1, 1, 2, 2, 4))):
        if structured is not None and rng.random() < 0.6:
            content = _structured(structured, rng, content)
        else:
            donor = rng.choice(others)
            content = any_bytes(rng, content, donor.files.get(place, b""))
    return replace(parent, files={**parent.files, place: content[:MOST_BYTES]})


def _structured(change: Structured, rng: random.Random, content: bytes) -> bytes:
    """A change that knows the format; where it stumbles over what earlier changes left, any change."""
    try:
        return change(rng, content)
    except Exception:
        return any_bytes(rng, content)


def any_bytes(rng: random.Random, content: bytes, donor: bytes = b"") -> bytes:
    """One generic change of bytes."""
    changes = (
        _flip,
        _flip,
        _set_number,
        _set_number,
        _set_number,
        _cut,
        _drop,
        _repeat,
        _insert,
        _word,
        _splice,
        _text,
    )
    return rng.choice(changes)(rng, bytearray(content), donor)


def number_bytes(rng: random.Random) -> bytes:
    """A number at which parsers turn, in 1 to 8 bytes of either order, or as a float."""
    import struct

    width = rng.choice((1, 2, 2, 4, 4, 4, 8))
    order = rng.choice("<>")
    if width >= 4 and rng.random() < 0.3:
        value = rng.choice((0.0, -0.0, 1e-45, 1e30, -1e30, float("nan"), float("inf"), -float("inf"), 3.4e38, 0.5))
        return struct.pack(order + ("f" if width == 4 else "d"), value)
    number = rng.choice(NUMBERS + NUMBERS_64 if width == 8 else NUMBERS)
    return (number % 256**width).to_bytes(width, "little" if order == "<" else "big")


def _place(rng: random.Random, content: bytearray) -> int:
    """Headers come first: half of all changes go to the first 400 bytes."""
    return rng.randrange(min(len(content), 400) if rng.random() < 0.5 else len(content)) if content else 0


def _flip(rng: random.Random, content: bytearray, _: bytes) -> bytes:
    for _n in range(rng.choice((1, 1, 1, 2, 8)) if content else 0):
        content[_place(rng, content)] ^= 1 << rng.randrange(8)
    return bytes(content)


def _set_number(rng: random.Random, content: bytearray, _: bytes) -> bytes:
    new, at = number_bytes(rng), _place(rng, content)
    if rng.random() < 0.5:
        at -= at % len(new)
    content[at : at + len(new)] = new
    return bytes(content)


def _cut(rng: random.Random, content: bytearray, _: bytes) -> bytes:
    return bytes(content[: rng.randrange(len(content) + 1)])


def _span(rng: random.Random, content: bytearray) -> tuple[int, int]:
    start = _place(rng, content)
    return start, min(len(content), start + rng.choice((1, 2, 4, 8, 16, 64, 1024)))


def _drop(rng: random.Random, content: bytearray, _: bytes) -> bytes:
    start, stop = _span(rng, content)
    return bytes(content[:start] + content[stop:])


def _repeat(rng: random.Random, content: bytearray, _: bytes) -> bytes:
    start, stop = _span(rng, content)
    return bytes(content[:start] + content[start:stop] * rng.choice((2, 2, 3, 100)) + content[stop:])


def _insert(rng: random.Random, content: bytearray, _: bytes) -> bytes:
    at = _place(rng, content)
    return bytes(content[:at] + rng.randbytes(rng.choice((1, 2, 4, 16))) + content[at:])


def _word(rng: random.Random, content: bytearray, _: bytes) -> bytes:
    at, word = _place(rng, content), rng.choice(WORDS)
    replaced = rng.choice((0, len(word)))
    return bytes(content[:at] + word + content[at + replaced :])


def _splice(rng: random.Random, content: bytearray, donor: bytes) -> bytes:
    """The beginning of one file and the end of another, or a piece of the other in the same place."""
    if not donor:
        return bytes(content)
    at = rng.randrange(len(donor))
    if rng.random() < 0.5:
        return bytes(content[:at]) + donor[at:]
    stop = at + rng.choice((4, 16, 64, 348))
    return bytes(content[:at]) + donor[at:stop] + bytes(content[stop:])


def _text(rng: random.Random, content: bytearray, _: bytes) -> bytes:
    """A line doubled, dropped or swapped with another."""
    lines = bytes(content).split(b"\n")
    first, second = rng.randrange(len(lines)), rng.randrange(len(lines))
    how = rng.randrange(3)
    if how == 0:
        lines.insert(second, lines[first])
    elif how == 1:
        del lines[first]
    else:
        lines[first], lines[second] = lines[second], lines[first]
    return b"\n".join(lines)


def _moved(rng: random.Random, parent: Example) -> Example:
    """A folder with a file gone, emptied, doubled, or two of them exchanged."""
    files = dict(parent.files)
    if not files:
        return parent
    first, second = rng.choice(sorted(files)), rng.choice(sorted(files))
    how = rng.randrange(4)
    if how == 0:
        del files[first]
    elif how == 1:
        files[first] = b""
    elif how == 2:
        files[str(Path(first).with_name(f"copy {Path(first).name}"))] = files[first]
    else:
        files[first], files[second] = files[second], files[first]
    return replace(parent, files=files)
