"""What label values mean: protocols as tables, read-only facts for every other room."""

from synthseg.labels.label import Label
from synthseg.labels.protocol import LabelProtocol, builtin_protocols, load_protocol

__all__ = ["Label", "LabelProtocol", "builtin_protocols", "load_protocol"]
