"""Desikan-Killiany parcels for brain maps that have none, by the votes of several atlases.

    pip install SimpleITK
    python recipes/parcels/propagate.py BRAIN_MAPS TEMPLATE ATLAS [ATLAS ...] -o OUT --work WORK

Every atlas and every map is registered to the template (labels only, no image); there each map's cortex asks that of
all atlases (fuse.py). Maps that are in OUT are left as they are; registrations in WORK are used again as long as both
files are the same. No two files may have one name. Then: ``merge.py BRAIN_MAPS OUT -o MERGED``.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from atlases import kept_in, read_atlases, registered, require_own_names
from fuse import Vote, label_cortex
from maps import read_cerebrum
from merge import CORTEX, exit_code_of

from synthseg.volumes import is_volume_path, strip_extension, write_volume


def main(arguments: list[str] | None = None) -> int:
    """Label every map; 0 = done, 1 or 2 = an error that was printed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("brain_maps", type=Path)
    parser.add_argument("template", type=Path)
    parser.add_argument("atlases", type=Path, nargs="+")
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    given = parser.parse_args(arguments)
    return exit_code_of(lambda: propagate(given))


def propagate(given: argparse.Namespace) -> None:
    """Label every map that has no labels yet. Raises: UsageError, LabelError, VolumeError as reading them does."""
    maps = sorted(path for path in given.brain_maps.iterdir() if is_volume_path(path))
    require_own_names((given.template, *given.atlases, *maps))
    template, atlases = read_atlases(given.template, given.atlases, given.work)
    votes = [Vote(side, [atlas.points[side] for atlas in atlases]) for side in CORTEX]
    for path in maps:
        name = strip_extension(path)
        out = given.out / f"{name}_dk.nii.gz"
        if out.exists():
            continue
        brain = read_cerebrum(path)
        link = registered(brain, template, kept_in(given.work, path, given.template))
        write_volume(brain.on_file_grid(label_cortex(brain, link, votes)), out, header_like=path)
        print(out, flush=True)


if __name__ == "__main__":
    sys.exit(main())
