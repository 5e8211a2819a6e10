"""Filter files: which scans of a BIDS dataset are wanted, as fMRIPrep and other BIDS-Apps take it."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path

from synthseg.cohort.bids import ANY, DATATYPES, ENTITIES, LONG_NAMES, OTHER_KEYS, Query, plain
from synthseg.errors import UsageError
from synthseg.reading import read_json

# How fMRIPrep's filter files spell pybids' own values; "Query.OPTIONAL" asks for nothing.
_SPELLED = {"Query.NONE": None, "Query.ANY": ANY, "Query.REQUIRED": ANY}
_OPTIONAL = "Query.OPTIONAL"


def read_queries(path: Path) -> tuple[Query, ...]:
    """The queries of a ``--bids-filter-file``: a JSON object of named objects, each of which picks scans.

    Keys are entities, by their short or long names, ``suffix``, ``datatype`` and ``extension``; a value is one or a
    list of texts, null for "must not be there" (in a list: "may be absent"), "*" for "must be there"; pybids' words for
    these, such as "Query.NONE", are understood. Queries of other data types (``"func"``, ``"fmap"``) are left aside.

    Raises: UsageError for a file that cannot be read, or a key or value that is none.
    """
    fix = 'write a JSON object such as {"t1w": {"suffix": "T1w", "acquisition": null}}'
    given = read_json(path, error=UsageError, fix=fix)
    if not isinstance(given, dict) or not all(isinstance(query, dict) for query in given.values()):
        raise UsageError(path, found="something else than an object of objects", fix=fix)
    anatomical = tuple(_query(q, f"{path}: {name}") for name, q in given.items() if _is_anatomical(q))
    if not anatomical:
        found = "no query for anatomical images"
        raise UsageError(path, found=found, fix='add one, e.g. {"t1w": {"datatype": "anat", "suffix": "T1w"}}')
    return anatomical


def _is_anatomical(given: Mapping[str, object]) -> bool:
    value = given.get("datatype")
    values = value if isinstance(value, list) else [value]
    anatomical = (None, *DATATYPES, ANY, *_SPELLED, _OPTIONAL)
    return not values or any(one is None or (isinstance(one, str) and one in anatomical) for one in values)


def _query(given: Mapping[str, object], where: str) -> Query:
    known = (*ENTITIES, *LONG_NAMES, *OTHER_KEYS)
    query: dict[str, tuple[str, ...] | None] = {}
    for key, value in given.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean '{near[0]}'? " if near else ""
            raise UsageError(where, found=f"unknown key '{key}'", fix=f"{hint}known keys: {', '.join(known)}")
        values = value if isinstance(value, list) else [value]
        if _OPTIONAL in values:
            continue
        values = [_SPELLED.get(one, one) if isinstance(one, str) else one for one in values]
        short = LONG_NAMES.get(key, key)
        if all(one is None for one in values):
            query[short] = None
        elif all(isinstance(one, str | int | None) and not isinstance(one, bool) for one in values):
            query[short] = tuple("" if one is None else plain(short, str(one)) for one in values)
        else:
            raise UsageError(f"{where}.{key}", found=repr(value), fix="give a text, a list of texts, or null")
    return query
