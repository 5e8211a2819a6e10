"""The layers of a Keras HDF5 file and their tensors. No torch here.

Only groups, number arrays and name lists are looked at: nothing in a file is executed (``model_config`` may hold Python
bytecode, which is never read), no link leads out of the file, and no array is larger than the file can mean.

Layout from the reference, section 4.3: a group a layer, at the root or under ``/model_weights``; its attribute
``weight_names`` lists its arrays in Keras' order.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from synthseg.errors import WeightsError
from synthseg.reading import require_file

KERAS_SUFFIXES = (".h5", ".hdf5")
MAGIC = b"\x89HDF\r\n\x1a\n"
TENSOR_BYTES = 1 << 30  # more than any layer of a network for volumes needs
FILE_BYTES = 4 << 30  # of all arrays, unpacked; the original's largest file has 0.2
DEPTH = 8  # groups inside a layer's group
OBJECTS = 20_000  # groups and arrays in a file's layers; a network has about 250
NAMES = 20_000  # in a list
TEXT_BYTES = 16 << 20  # of a list
FILTERS = {1: "gzip", 2: "shuffle", 3: "fletcher32", 32000: "lzf"}  # those that h5py itself brings
OPTIMIZER = "optimizer_weights"
_COPY = "copy or download the file again"
_FLOAT32 = "save the network from Keras with float32 weights, as the original's are"
_NOT_KERAS = "use a file that Keras wrote: model.save_weights(NAME.h5), or a checkpoint of the original's training"
# gamma:0, kernel_1:0 (a graph made twice), kernel
_VARIABLE = re.compile(r"(kernel|bias|gamma|beta|moving_mean|moving_variance)(_\d+)?(:\d+)?")


@dataclass(frozen=True)
class Stored:
    """An array of the file: where it is, and its shape. Its numbers are float32."""

    path: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class KerasLayers:
    """What a file holds: by layer and by variable ("kernel", "bias", "gamma", ...), in the order of ``weight_names``.

    ``plain`` are the layers without arrays; ``optimizer`` tells whether the state of an optimizer lies beside them.
    """

    layers: Mapping[str, Mapping[str, Stored]]
    plain: tuple[str, ...]
    optimizer: bool


def is_keras(path: Path) -> bool:
    """Whether a file is an HDF5 file by its first bytes or its name. Raises WeightsError if it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC or path.suffix.lower() in KERAS_SUFFIXES
    except OSError as error:
        found = f"a file that cannot be read ({error.strerror or error})"
        raise WeightsError(path, found=found, fix="check its permissions, or give another file") from error


@contextmanager
def open_keras(path: Path) -> Iterator[Any]:
    """The file, opened for reading. What h5py cannot read inside the ``with`` block is a WeightsError too."""
    fix = "check the path, or copy the file again; `synthseg weights list` shows the known names"
    require_file(path, error=WeightsError, fix=fix, empty=True)
    try:
        import h5py
    except ImportError as error:
        found = "a Keras HDF5 file, and no h5py to read it with"
        raise WeightsError(path, found=found, fix='pip install "synthseg[keras]"') from error
    size = path.stat().st_size
    try:
        # without locks: FreeSurfer's folder may lie on a disk that can only be read
        with h5py.File(path, "r", locking=False) as file:
            yield file
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError, UnicodeError) as error:
        told = str(error).strip().splitlines()[-1][:200] if str(error).strip() else type(error).__name__
        found = f"{size:,} bytes that are not a whole HDF5 file ({told})"
        raise WeightsError(path, found=found, fix=f"it was cut off or is something else: {_COPY}") from error


def read_layers(file: Any, path: Path) -> KerasLayers:
    """Every layer of an open file, with the places and shapes of its arrays; the arrays are not read.

    Raises: WeightsError, naming the layer, for links, arrays that are not float32 or not all there, lists of names
        that do not agree with the arrays, and arrays outside any layer.
    """
    reader = _Reader(path)
    members = reader.members(file, "/")
    optimizer = OPTIMIZER in members
    base, start = (file["model_weights"], "/model_weights/") if "model_weights" in members else (file, "/")
    if base is not file:
        strange = sorted(set(members) - {"model_weights", OPTIMIZER})
        if strange:
            raise _refused(path, f"{strange[0]!r} beside /model_weights, which Keras does not write", _NOT_KERAS)
        members = reader.members(base, start)
    listed = reader.names(base, "layer_names", start)
    lost = [name for name in listed or () if name.split("/")[0] not in members]
    if lost:
        raise _refused(path, f"the layer {lost[0]!r} in the list of layers, and no group of that name", _COPY)
    layers, plain = {}, []
    for name in members:
        if base is file and name == OPTIMIZER:
            continue
        variables = reader.layer(base, name, start)
        if variables:
            layers[name] = variables
        else:
            plain.append(name)
    return KerasLayers(layers, tuple(plain), optimizer)


def read_array(file: Any, stored: Stored, path: Path) -> np.ndarray:
    """The numbers of an array, float32. Raises WeightsError for NaN and infinity."""
    array = np.asarray(file[stored.path][()], dtype=np.float32)
    if not np.isfinite(array).all():
        layer = stored.path.removeprefix("/model_weights").strip("/")
        raise _refused(path, f"NaN or infinity in {layer}", "use a checkpoint from before training diverged")
    return array


class _Reader:
    """Walks through a file's groups, counting what it meets."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.objects = 0
        self.bytes = 0

    def members(self, group: Any, where: str) -> list[str]:
        """Names inside a group, all of them ordinary links."""
        import h5py

        names = list(group)
        self.objects += len(names)
        if self.objects > OBJECTS:
            raise _refused(self.path, f"more than {OBJECTS:,} groups and arrays", _NOT_KERAS)
        for name in names:
            link = group.get(name, getlink=True)
            if not isinstance(link, h5py.HardLink):
                kind = "another file" if isinstance(link, h5py.ExternalLink) else "another place"
                raise _refused(self.path, f"a link to {kind} at {where}{name}, which is not followed", _NOT_KERAS)
        return names

    def layer(self, base: Any, name: str, start: str) -> dict[str, Stored]:
        """The arrays of a layer by variable; empty for a layer without."""
        import h5py

        group = base[name]
        if not isinstance(group, h5py.Group):
            raise _refused(self.path, f"an array {name!r} outside any layer", _NOT_KERAS)
        arrays = dict(self.arrays(group, f"{start}{name}/", ""))
        listed = self.names(group, "weight_names", f"{start}{name}")
        if listed is None:
            listed = sorted(arrays, key=_by_kind)
        missing = [entry for entry in listed if entry not in arrays]
        extra = [entry for entry in arrays if entry not in listed]
        if missing or extra or len(set(listed)) != len(listed):
            what = f"{missing[0]!r} missing" if missing else f"{(extra or listed)[0]!r} not listed, or listed twice,"
            raise _refused(self.path, f"{what} among the weights of layer {name!r}", _COPY)
        variables: dict[str, Stored] = {}
        for entry in listed:
            match = _VARIABLE.fullmatch(entry.rsplit("/", 1)[-1])
            kind = match[1] if match else entry
            if kind in variables:
                raise _refused(self.path, f"two arrays {kind!r} in layer {name!r}", _NOT_KERAS)
            variables[kind] = arrays[entry]
        return variables

    def arrays(self, group: Any, start: str, below: str, depth: int = 0) -> Iterator[tuple[str, Stored]]:
        """Arrays in a layer's group, at any depth: (path inside the group, where and what)."""
        import h5py

        if depth > DEPTH:
            raise _refused(self.path, f"groups more than {DEPTH} deep in {start}", _NOT_KERAS)
        for name in self.members(group, start + below):
            inside, item = f"{below}{name}", group[name]
            if isinstance(item, h5py.Group):
                yield from self.arrays(item, start, f"{inside}/", depth + 1)
            elif isinstance(item, h5py.Dataset):
                yield inside, self.stored(item, f"{start}{inside}")

    def stored(self, array: Any, where: str) -> Stored:
        """An array that can be read safely: float32, all of it in this file, of a sane size."""
        if array.dtype.kind != "f" or array.dtype.itemsize != 4:
            fix = _FLOAT32 if array.dtype.kind == "f" else _NOT_KERAS
            raise _refused(self.path, f"numbers of type {array.dtype} in {where}, not float32", fix)
        shape = tuple(int(side) for side in array.shape or ())
        size = 4 * int(np.prod(shape, dtype=object))
        self.bytes += size
        if size > TENSOR_BYTES or self.bytes > FILE_BYTES:
            what = f"an array of {size:,} bytes" if size > TENSOR_BYTES else f"{self.bytes:,} bytes of arrays"
            raise _refused(self.path, f"{what} at {where}", _NOT_KERAS)
        plan = array.id.get_create_plist()
        filters = [plan.get_filter(i)[0] for i in range(plan.get_nfilters())]
        if array.is_virtual or plan.get_external_count() or not set(filters) <= set(FILTERS):
            raise _refused(
                self.path, f"numbers kept outside the file, or packed in another way, at {where}", _NOT_KERAS
            )
        if array.chunks is None:
            stored, whole, what = array.id.get_storage_size(), size, "bytes"
        else:
            if 4 * int(np.prod(array.chunks, dtype=object)) > TENSOR_BYTES:
                raise _refused(self.path, f"chunks of {array.chunks} at {where}", _NOT_KERAS)
            counts = [-(-side // chunk) for side, chunk in zip(shape, array.chunks, strict=True)]
            stored, whole, what = array.id.get_num_chunks(), int(np.prod(counts, dtype=object)), "chunks"
        if stored != whole:
            raise _refused(self.path, f"{stored:,} of {whole:,} {what} of {where}", _COPY)
        return Stored(where, shape)

    def names(self, group: Any, key: str, where: str) -> list[str] | None:
        """A list of names among a group's attributes, whole or split into ``key0``, ``key1``, ...; None without.

        Texts of fixed length, as the original's files have them, lie beside their group. Those of any length (h5py 3)
        lie in HDF5's heap, in whose damage the library goes round for ever: they are left unread, and the order of
        arrays follows from their kinds. Which layers and arrays must be there, the network's shape tells all the same.
        """
        if key in group.attrs:
            return self.texts(group, key, where)
        parts: list[list[str] | None] = []
        while f"{key}{len(parts)}" in group.attrs:
            parts.append(self.texts(group, f"{key}{len(parts)}", where))
        known = [part for part in parts if part is not None]
        return [name for part in known for name in part] if parts and len(known) == len(parts) else None

    def texts(self, group: Any, key: str, where: str) -> list[str] | None:
        import h5py

        attribute = group.attrs.get_id(key)
        count = int(np.prod(attribute.shape or (0,), dtype=object))
        size = count * attribute.dtype.itemsize
        if attribute.dtype.kind == "O" and h5py.check_string_dtype(attribute.dtype) is not None:
            return None
        if count > NAMES or size > TEXT_BYTES or (count and attribute.dtype.kind != "S"):
            raise _refused(self.path, f"an attribute {key} at {where} that is no list of names", _NOT_KERAS)
        values = group.attrs[key] if count else []
        return [text.decode() if isinstance(text, bytes) else str(text) for text in np.ravel(values).tolist()]


def _by_kind(entry: str) -> tuple[int, str]:
    """Keras' order of a layer's arrays, where the file does not say it."""
    order = ("kernel", "gamma", "bias", "beta", "moving_mean", "moving_variance")
    match = _VARIABLE.fullmatch(entry.rsplit("/", 1)[-1])
    return (order.index(match[1]) if match else len(order), entry)


def _refused(path: Path, found: str, fix: str) -> WeightsError:
    return WeightsError(path, found=found, fix=fix)
