"""Find, load, verify, describe, save and import weights: safetensors files with a card, and the original's Keras files.

Nothing is ever unpickled or executed.

Names load on first use, so that importing this package, or listing weights, does not load torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from synthseg.lazy import lazy_names

if TYPE_CHECKING:
    from synthseg.weights.card import ROLES, make_card, role_of
    from synthseg.weights.files import Weights, load_weights, save_weights
    from synthseg.weights.importing import Imported, import_keras
    from synthseg.weights.network import Verification, build_network, protocol_of, verify_weights
    from synthseg.weights.original import FAMILIES
    from synthseg.weights.places import use_model_dir
    from synthseg.weights.store import SHIPPED_DIR, WeightsEntry, find_weights, list_weights, locate

__all__ = [
    "FAMILIES",
    "ROLES",
    "SHIPPED_DIR",
    "Imported",
    "Verification",
    "Weights",
    "WeightsEntry",
    "build_network",
    "find_weights",
    "import_keras",
    "list_weights",
    "load_weights",
    "locate",
    "make_card",
    "protocol_of",
    "role_of",
    "save_weights",
    "use_model_dir",
    "verify_weights",
]

__getattr__ = lazy_names(
    __name__,
    {
        "card": ("ROLES", "make_card", "role_of"),
        "files": ("Weights", "load_weights", "save_weights"),
        "importing": ("Imported", "import_keras"),
        "network": ("Verification", "build_network", "protocol_of", "verify_weights"),
        "original": ("FAMILIES",),
        "places": ("use_model_dir",),
        "store": ("SHIPPED_DIR", "WeightsEntry", "find_weights", "list_weights", "locate"),
    },
)
