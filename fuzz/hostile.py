"""Changes to text that know where parsers of tables, JSON and TOML turn."""

from __future__ import annotations

import random
import re

from fuzz.mutate import any_bytes

_CELL = re.compile(rb"[\w.+\-]+")
_MOST = 1 << 19  # bytes
_QUOTED = re.compile(rb"\"[^\"\n]*\"")
TOKENS: tuple[bytes, ...] = (
    b"",
    b"-1",
    b"0",
    b"1e999",
    b"-1e999",
    b"nan",
    b"NaN",
    b"inf",
    b"Infinity",
    b"-Infinity",
    b"true",
)
TOKENS += (
    b"null",
    b"None",
    b"1" * 5000,
    b"0x" + b"f" * 5000,
    b"9" * 25,
    b"-" + b"9" * 25,
    b"1_0",
    b"1.5",
    b"07",
    b"+3",
    b"[]",
    b"{}",
)
TOKENS += (
    "٣".encode(),
    "²".encode(),
    b"..",
    b"../../etc/passwd",
    b"/dev/zero",
    b"a" * 300,
    b"a" * 140_000,
    b"x\0y",
    b"\x1b[2J",
)
TOKENS += (
    b"[[1]]",
    b"{a=1}",
    b'"\\ud800"',
    b'"\\u0000"',
    b"1979-05-27",
    b"[1, 'a', {}]",
    b"\xff",
    "\u2028".encode(),
    "\u202e".encode(),
)
TOKENS += (
    b"value",
    b"n/a",
    b"sub-01",
    b"stage:a",
    b"17",
    b"255",
    b"256",
    b"2147483647",
    b"2147483648",
    b"9223372036854775808",
)
_JOINTS: tuple[bytes, ...] = (
    b"\t",
    b",",
    b";",
    b"\n",
    b"\r",
    b"\r\n",
    b" ",
    b"=",
    b":",
    b"#",
    b'"',
    b"'",
    b"\0",
    b"\x0b",
    b"\x1c",
    b"/",
)


def hostile_text(rng: random.Random, content: bytes) -> bytes:
    """One value, separator, line or the whole text replaced by what readers stumble over."""
    content = content[:_MOST]  # changes come after changes: what has grown must not grow without end
    how = rng.randrange(12)
    if how < 5:
        places = list((_QUOTED if rng.random() < 0.3 else _CELL).finditer(content))
        if not places:
            return any_bytes(rng, content)
        place = rng.choice(places)
        quoted = rng.random() < 0.2
        token = b'"' + rng.choice(TOKENS) + b'"' if quoted else rng.choice(TOKENS)
        return content[: place.start()] + token + content[place.end() :]
    if how == 5:
        joint, found = rng.choice(_JOINTS), [m.start() for m in re.finditer(rb"[\t,;\n=: ]", content)]
        at = rng.choice(found) if found else 0
        return content[:at] + joint + content[at + 1 :]
    if how == 6:
        return _lines(rng, content)
    if how == 7:
        depth = rng.choice((3, 100, 2000, 100_000))
        opening, closing = rng.choice(((b"[", b"]"), (b'{"a":', b"}"), (b"{a=", b"}"), (b"a.", b""), (b"[[", b"]]")))
        at = rng.choice([m.start() for m in _CELL.finditer(content)] or [0])
        return content[:at] + opening * depth + content[at:] + closing * depth
    if how == 8:
        return _encoded(rng, content)
    if how == 9:
        return content.replace(b"\n", rng.choice((b"\r\n", b"\r", b"\n\n", b"\n\r", b" ")))
    if how == 10:
        return content + rng.choice((b"\n", b"")) + content
    return any_bytes(rng, content)


def _lines(rng: random.Random, content: bytes) -> bytes:
    lines = content[:20_000].split(b"\n")
    at = rng.randrange(len(lines))
    how = rng.randrange(4)
    if how == 0:
        lines[at] = lines[at] * rng.choice((2, 50, 5000))
    elif how == 1:
        lines[at : at + 1] = [lines[at]] * rng.choice((2, 3, 2000))
    elif how == 2:
        lines[at] = lines[at].split(b"\t")[0]
    else:
        rng.shuffle(lines)
    return b"\n".join(lines)


def _encoded(rng: random.Random, content: bytes) -> bytes:
    text = content.decode("utf-8", "replace")
    how = rng.randrange(5)
    if how == 0:
        return b"\xef\xbb\xbf" * rng.choice((1, 2)) + content
    if how == 1:
        return (text + "é").encode("latin-1", "replace")
    if how == 2:
        return text.encode(rng.choice(("utf-16", "utf-16-le", "utf-32")))
    if how == 3:
        return content.replace(b"e", "ё".encode()).replace(b"1", "１".encode())
    return bytes(rng.sample(list(content[:2000]), min(len(content), 2000))) + content[2000:]
