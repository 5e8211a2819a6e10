"""All targets, from the files that describe them."""

from __future__ import annotations

import importlib
import importlib.util

from fuzz.harness import Target

MODULES = ("fuzz.volumes", "fuzz.weights", "fuzz.texts", "fuzz.datasets")


def all_targets() -> dict[str, Target]:
    """Targets by name."""
    found: dict[str, Target] = {}
    for module in MODULES:
        if importlib.util.find_spec(module) is not None:
            for target in importlib.import_module(module).TARGETS:
                if target.name in found:
                    raise ValueError(f"two targets called {target.name!r}")
                found[target.name] = target
    return found
