"""Changes to safetensors, JSON and HDF5 files that know their formats."""

from __future__ import annotations

import hashlib
import json
import random
import struct
from typing import Any

from fuzz.mutate import any_bytes, number_bytes

_VALUES: tuple[Any, ...] = (None, True, 0, -1, 1, 2, 3, 9, 64, 1000, 2**31, 2**63, 10**30, 1e308, -0.5, 0.5, 1e-300, "")
_VALUES += (
    float("nan"),
    float("inf"),
    "x",
    "NaN",
    "../x",
    "a\nb\x1b[31m",
    "\ud800",
    [],
    [[]],
    {},
    {"a": 1},
    "z" * 5000,
)
_TYPES = ("F16", "F32", "F64", "BF16", "I64", "I32", "U8", "BOOL", "F8_E4M3", "C64", "X")
_SIGNATURES = (b"TREE", b"HEAP", b"SNOD", b"OHDR", b"\x89HDF", b"weight_names", b"layer_names", b"kernel", b"unet")


def structured_json(rng: random.Random, content: bytes) -> bytes:
    """One value, key or level of a JSON document changed."""
    try:
        document = json.loads(content)
    except ValueError:
        return any_bytes(rng, content)
    return json.dumps(change_json(rng, document)).encode()


def change_json(rng: random.Random, value: Any) -> Any:
    """A changed copy of a plain value: somewhere in it, something else, something less, or something deeper."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(list(value))
        how = rng.random()
        if how < 0.1:
            return {k: v for k, v in value.items() if k != key}
        if how < 0.15:
            return {(k if k != key else f"{k}x"): v for k, v in value.items()}
        return {**value, key: change_json(rng, value[key])}
    if isinstance(value, list) and value and rng.random() < 0.9:
        place = rng.randrange(len(value))
        how = rng.random()
        if how < 0.1:
            return value[:place] + value[place + 1 :]
        if how < 0.2:
            return [*value, value[place]]
        return [*value[:place], change_json(rng, value[place]), *value[place + 1 :]]
    how = rng.random()
    if isinstance(value, int | float) and not isinstance(value, bool) and how < 0.3:
        return rng.choice((-value, value + 1, value - 1, value * 1000, float(value), str(value)))
    if how < 0.35:
        nested: Any = value
        for _ in range(rng.choice((1, 3, 200))):
            nested = [nested]
        return nested
    return rng.choice(_VALUES)


def structured_safetensors(rng: random.Random, content: bytes) -> bytes:
    """Offsets, shapes and types that lie; a longer header; JSON documents among the metadata changed, hashes mended."""
    try:
        length = struct.unpack("<Q", content[:8])[0]
        header = json.loads(content[8 : 8 + length])
        data, names = content[8 + length :], [name for name in header if name != "__metadata__"]
        assert names
    except (struct.error, ValueError, AssertionError, TypeError):
        return any_bytes(rng, content)
    how = rng.random()
    if how < 0.5 and isinstance(header.get("__metadata__"), dict) and header["__metadata__"]:
        _change_metadata(rng, header["__metadata__"])
    elif how < 0.85:
        name = rng.choice(names)
        entry = header[name]
        what = rng.choice(("dtype", "shape", "data_offsets", "name", "gone", "any"))
        if what == "dtype":
            entry["dtype"] = rng.choice(_TYPES)
        elif what == "name":
            header[rng.choice((name + "x", "a\nb", "", "map.00009", rng.choice(names)))] = header.pop(name)
        elif what == "gone":
            del header[name]
        elif what == "any":
            header[name] = change_json(rng, entry)
        elif isinstance(entry.get(what), list):
            entry[what] = change_json(rng, entry[what])
    elif how < 0.95:
        data = any_bytes(rng, data)
    else:
        return number_bytes(rng)[:8].ljust(8, b"\0") + content[8:]
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def _change_metadata(rng: random.Random, metadata: dict[str, Any]) -> None:
    """A document among the metadata changed; where a hash of it lies beside it, that too, mostly."""
    key = rng.choice(list(metadata))
    old = metadata[key]
    try:
        document = json.loads(old)
    except (ValueError, TypeError):
        metadata[key] = rng.choice(("", "x", "[]", "nul", "{" * 2000, "1e999"))
        return
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        document = change_json(rng, document)
    new = metadata[key] = json.dumps(document)
    digest = hashlib.sha256(str(old).encode()).hexdigest()
    for other, value in metadata.items():
        if value == digest and rng.random() < 0.95:
            metadata[other] = hashlib.sha256(new.encode()).hexdigest()


def structured_hdf5(rng: random.Random, content: bytes) -> bytes:
    """Numbers near the signatures of an HDF5 file's structures: sizes, addresses, versions, counts."""
    signature = rng.choice(_SIGNATURES)
    places = [i for i in range(len(content)) if content.startswith(signature, i)][:300] if content else []
    if not places:
        return any_bytes(rng, content)
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 2))):
        new = number_bytes(rng)
        at = max(0, rng.choice(places) + rng.randrange(-64, 128))
        changed[at : at + len(new)] = new
    return bytes(changed)
