"""From plain values (TOML, JSON) to frozen dataclasses and back, with errors that name the key.

Standard library only: recipes must load on a bare training machine.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from synthseg.errors import ConfigError

T = TypeVar("T")


def config_from_dict(cls: type[T], values: Mapping[str, Any], *, where: str) -> T:
    """Build a frozen dataclass from nested plain values.

    Args:
        cls: a dataclass whose fields are bool, int, float, str, tuples of those, optional ones, or such dataclasses.
        values: the given keys; missing ones keep their defaults.
        where: dotted place named in errors, e.g. ``"recipe.toml: generation"``.
    Raises: ConfigError for an unknown key (with the nearest known one), a wrong type, or a value the class refuses.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(where, found=f"{values!r}", fix="write a table of keys here")
    hints = typing.get_type_hints(cls)
    known = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    converted = {}
    for key, value in values.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean '{near[0]}'? " if near else ""
            raise ConfigError(where, found=f"unknown key '{key}'", fix=f"{hint}known keys: {', '.join(known)}")
        converted[key] = _convert(hints[key], value, f"{where}.{key}")
    missing = [
        name
        for name, field in known.items()
        if field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
        and name not in converted
    ]
    if missing:
        raise ConfigError(where, found=f"no value for {', '.join(missing)}", fix="add the missing keys")
    return cls(**converted)


@contextmanager
def told_at(where: str | Path) -> Iterator[None]:
    """Errors of configs' own checks, which know their keys only, with the file that they are in.

    Raises: ConfigError.
    """
    try:
        yield
    except ConfigError as error:
        if str(where) in error.subject:
            raise
        raise ConfigError(f"{where}: {error.subject}", found=error.found, fix=error.fix) from error


def config_to_dict(config: Any) -> dict[str, Any]:
    """Plain nested values of a dataclass, fit for JSON; the inverse of :func:`config_from_dict`."""
    return {
        field.name: _plain(getattr(config, field.name))
        for field in dataclasses.fields(config)
        if getattr(config, field.name) is not None
    }


def flatten(values: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dataclasses or tables as one table with dotted keys, tuples as the lists that JSON makes of them.

    Unlike :func:`config_to_dict`, what is None stays: two configs can be compared key by key.
    """
    if dataclasses.is_dataclass(values):
        values = {field.name: getattr(values, field.name) for field in dataclasses.fields(values)}
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if dataclasses.is_dataclass(value) or isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = _plain(value)
    return flat


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return config_to_dict(value)
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value


def _convert(kind: Any, value: Any, where: str) -> Any:
    origin = typing.get_origin(kind)
    if dataclasses.is_dataclass(kind):
        if isinstance(value, kind):  # type: ignore[arg-type]
            return value
        return config_from_dict(kind, value, where=where)  # type: ignore[arg-type]
    if origin in (typing.Union, types.UnionType):
        return _convert_union(kind, value, where)
    if origin is typing.Literal:
        choices = typing.get_args(kind)
        if value in choices:
            return value
        raise ConfigError(where, found=repr(value), fix=f"choose one of {', '.join(map(repr, choices))}")
    if origin is tuple:
        return _convert_tuple(typing.get_args(kind), value, where)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    raise ConfigError(where, found=repr(value), fix=f"give a value of type {getattr(kind, '__name__', kind)}")


def _convert_union(kind: Any, value: Any, where: str) -> Any:
    choices = typing.get_args(kind)
    if value is None and type(None) in choices:
        return None
    problem: ConfigError | None = None
    for choice in choices:
        if choice is type(None):
            continue
        try:
            return _convert(choice, value, where)
        except ConfigError as error:
            problem = error
    assert problem is not None
    raise problem


def _convert_tuple(items: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise ConfigError(where, found=repr(value), fix="give a list")
    if len(items) == 2 and items[1] is Ellipsis:
        return tuple(_convert(items[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if len(value) != len(items):
        raise ConfigError(where, found=f"{len(value)} values", fix=f"give {len(items)}")
    return tuple(_convert(kind, item, f"{where}[{i}]") for i, (kind, item) in enumerate(zip(items, value, strict=True)))
