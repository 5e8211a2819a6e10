"""Find, load, verify, describe and save weights: safetensors files with a card. Nothing is ever unpickled.

Names load on first use, so that importing this package, or listing weights, does not load torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from synthseg.lazy import lazy_names

if TYPE_CHECKING:
    from synthseg.weights.card import ROLES, make_card, role_of
    from synthseg.weights.files import Weights, load_weights, save_weights
    from synthseg.weights.network import Verification, build_network, protocol_of, verify_weights
    from synthseg.weights.store import SHIPPED_DIR, WeightsEntry, find_weights, list_weights

__all__ = [
    "ROLES",
    "SHIPPED_DIR",
    "Verification",
    "Weights",
    "WeightsEntry",
    "build_network",
    "find_weights",
    "list_weights",
    "load_weights",
    "make_card",
    "protocol_of",
    "role_of",
    "save_weights",
    "verify_weights",
]

__getattr__ = lazy_names(
    __name__,
    {
        "card": ("ROLES", "make_card", "role_of"),
        "files": ("Weights", "load_weights", "save_weights"),
        "network": ("Verification", "build_network", "protocol_of", "verify_weights"),
        "store": ("SHIPPED_DIR", "WeightsEntry", "find_weights", "list_weights"),
    },
)
