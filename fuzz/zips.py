"""Changes to arrays in .npy and .npz files that know their formats."""

from __future__ import annotations

import random
import re
import struct
import warnings
import zipfile
from io import BytesIO

from fuzz.mutate import any_bytes

_SHAPES: tuple[str, ...] = (
    "()",
    "(0,)",
    "(6, 7)",
    "(6, 7, 8)",
    "(6, 7, 8, 1)",
    "(-6, 7, 8)",
    "(32767, 32767, 32767)",
    "(2**62, 4)",
)
_SHAPES += (
    "(4611686018427387904, 4, 4)",
    "(500, 500, 500)",
    "(1000, 1000, 100)",
    "(6.0, 7, 8)",
    "(True, 336)",
    "6",
    "None",
)
_TYPES: tuple[str, ...] = (
    "'<i2'",
    "'<f4'",
    "'>f8'",
    "'|O'",
    "'<U1000000'",
    "'|S0'",
    "'<c16'",
    "'<M8[ns]'",
    "[('a', '<i4')]",
    "'|V4'",
    "'x'",
)
_TYPES += ("'<f16'", "'|b1'", "'<u8'", "('<i4', (1000000,))", "1", "'|V2147483647'")
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)


def structured_npy(rng: random.Random, content: bytes) -> bytes:
    """A header that states another shape, type or order, a longer header, or another version."""
    if not content.startswith(b"\x93NUMPY") or len(content) < 12:
        return any_bytes(rng, content)
    length = struct.unpack("<H", content[8:10])[0]
    text, data = content[10 : 10 + length].decode("latin1"), content[10 + length :]
    how = rng.randrange(6)
    if how == 0:
        text = re.sub(r"'shape': \([^)]*\)", lambda _: f"'shape': {rng.choice(_SHAPES)}", text)
    elif how == 1:
        text = re.sub(r"'descr': '[^']*'", lambda _: f"'descr': {rng.choice(_TYPES)}", text)
    elif how == 2:
        text = text.replace("False", rng.choice(("True", "None", "1", "[]"))).replace(
            "'shape'", rng.choice(("'shape'", "'Shape'"))
        )
    elif how == 3:
        return (
            content[:6]
            + rng.choice((b"\2\0", b"\3\0", b"\1\1", b"\xff\0"))
            + struct.pack("<I", rng.choice((length, 2**31, 2**32 - 1, 0, 10001)))
            + content[10:]
        )
    elif how == 4:
        text = "(" * rng.choice((100, 5000)) + text
    else:
        data = any_bytes(rng, data)
    coded = text.encode("latin1")
    return content[:8] + struct.pack("<H", len(coded) % 65536) + coded + data


def structured_zip(rng: random.Random, content: bytes) -> bytes:
    """Members changed, renamed, doubled, packed otherwise, added; an .npz is a zip file of .npy files."""
    try:
        with zipfile.ZipFile(BytesIO(content)) as archive:
            members = [(info.filename, archive.read(info)) for info in archive.infolist() if info.file_size < 1 << 20]
    except Exception:  # a zip file of which nothing can be read any more
        return any_bytes(rng, content)
    if not members:
        return any_bytes(rng, content)
    place, how = rng.randrange(len(members)), rng.random()
    name, data = members[place]
    if how < 0.6:
        members[place] = (name, structured_npy(rng, data))
    elif how < 0.7:
        members[place] = (
            rng.choice(("vol_data.npy", "affine.npy", "../x.npy", "a\nb.npy", "\x1b[31m.npy", "", "x")),
            data,
        )
    elif how < 0.8:
        members.append((f"more-{rng.randrange(9)}.npy", data))
    elif how < 0.85:
        members.append((name, data))
    elif how < 0.9:
        members[place] = (name, data + bytes(8 << 20))
    else:
        del members[place]
    out = BytesIO()
    method = rng.choice(_METHODS)
    with warnings.catch_warnings(), zipfile.ZipFile(out, "w", method) as archive:
        warnings.simplefilter("ignore")  # two members of one name are meant
        for member, held in members:
            archive.writestr(zipfile.ZipInfo(member), held, method)
    return out.getvalue()
