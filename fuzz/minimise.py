"""Making a finding smaller: undo what the finding does not need of its changes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from fuzz.mutate import Example

_TRIES = 60


def smaller(found: Example, parent: Example, still: Callable[[Example], bool]) -> Example:
    """The finding with as many of its bytes as possible put back to its parent's, or cut off, by halves.

    Args:
        still: whether an example still ends in the same defect; asked at most some 60 times.
    """
    tries = _TRIES

    def holds(files: dict[str, bytes]) -> bool:
        nonlocal tries
        tries -= 1
        return tries >= 0 and still(replace(found, files=files))

    files = dict(found.files)
    for name in sorted(files):
        if name in parent.files and files[name] != parent.files[name]:
            trial = {**files, name: parent.files[name]}
            if holds(trial):
                files = trial
    for name in sorted(files):
        original = parent.files.get(name, b"")
        if len(original) == len(files[name]):
            files[name] = _put_back(files[name], original, lambda b, name=name: holds({**files, name: b}))  # type: ignore[misc]
        elif files[name] != original:
            files[name] = _cut(files[name], lambda b, name=name: holds({**files, name: b}))  # type: ignore[misc]
    return replace(found, files=files)


def _put_back(content: bytes, original: bytes, holds: Callable[[bytes], bool]) -> bytes:
    changed = [i for i, (new, old) in enumerate(zip(content, original, strict=True)) if new != old]
    size = len(changed)
    while size >= 1 and changed:
        start = 0
        while start < len(changed):
            chosen = changed[start : start + size]
            trial = bytearray(content)
            for i in chosen:
                trial[i] = original[i]
            if len(chosen) < len(changed) and holds(bytes(trial)):
                content, changed = bytes(trial), [i for i in changed if i not in chosen]
            else:
                start += size
        size //= 2
    return content


def _cut(content: bytes, holds: Callable[[bytes], bool]) -> bytes:
    step = len(content) // 2
    while step >= 1:
        while len(content) > step and holds(content[:-step]):
            content = content[:-step]
        step //= 2
    return content
