"""Label maps of brains with shapes that no map shows: deformations and edits that follow the labels.

Names load on first use.
"""

from typing import TYPE_CHECKING

from synthseg.lazy import lazy_names

if TYPE_CHECKING:
    from synthseg.anatomies.shapes.kinds import KINDS
    from synthseg.anatomies.shapes.spec import Edit, ShapeDraw, ShapeSpec, load_spec, spec_with
    from synthseg.anatomies.shapes.versions import edit, vary

__all__ = ["KINDS", "Edit", "ShapeDraw", "ShapeSpec", "edit", "load_spec", "spec_with", "vary"]

__getattr__ = lazy_names(
    __name__,
    {
        "kinds": ("KINDS",),
        "spec": ("Edit", "ShapeDraw", "ShapeSpec", "load_spec", "spec_with"),
        "versions": ("edit", "vary"),
    },
)
