"""The original's label tables, typed from the behaviour specification (sections 1.3-1.7). Nothing of synthseg."""

from __future__ import annotations

import numpy as np

# value, name, flip partner channel (2.0), topological class, quality group; in channel order of 2.0
STRUCTURES = (
    (0, "background", 0, 0, 0),
    (2, "left cerebral white matter", 19, 4, 1),
    (3, "left cerebral cortex", 20, 4, 2),
    (4, "left lateral ventricle", 21, 4, 3),
    (5, "left inferior lateral ventricle", 22, 4, 3),
    (7, "left cerebellum white matter", 23, 5, 4),
    (8, "left cerebellum cortex", 24, 5, 4),
    (10, "left thalamus", 25, 6, 6),
    (11, "left caudate", 26, 7, 1),
    (12, "left putamen", 27, 8, 7),
    (13, "left pallidum", 28, 9, 7),
    (14, "3rd ventricle", 11, 1, 3),
    (15, "4th ventricle", 12, 2, 3),
    (16, "brain-stem", 13, 3, 5),
    (17, "left hippocampus", 29, 10, 8),
    (18, "left amygdala", 30, 11, 8),
    (24, "csf", 16, 0, 0),
    (26, "left accumbens area", 31, 12, 1),
    (28, "left ventral DC", 32, 13, 1),
    (41, "right cerebral white matter", 1, 14, 1),
    (42, "right cerebral cortex", 2, 14, 2),
    (43, "right lateral ventricle", 3, 14, 3),
    (44, "right inferior lateral ventricle", 4, 14, 3),
    (46, "right cerebellum white matter", 5, 15, 4),
    (47, "right cerebellum cortex", 6, 15, 4),
    (49, "right thalamus", 7, 16, 6),
    (50, "right caudate", 8, 17, 1),
    (51, "right putamen", 9, 18, 7),
    (52, "right pallidum", 10, 19, 7),
    (53, "right hippocampus", 14, 20, 8),
    (54, "right amygdala", 15, 21, 8),
    (58, "right accumbens area", 17, 22, 1),
    (60, "right ventral DC", 18, 23, 1),
)
CSF = 24
CORTEX = (3, 42)

FLIP_1 = (
    *(0, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 11, 12, 13, 28, 29, 30, 31),
    *(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 14, 15, 16, 17),
)
FLIP_2 = tuple(row[2] for row in STRUCTURES)

QUALITY_NAMES = (
    "general white matter",
    "general grey matter",
    "general csf",
    "cerebellum",
    "brainstem",
    "thalamus",
    "putamen+pallidum",
    "hippocampus+amygdala",
)

REGIONS = (
    *((1, "bankssts"), (2, "caudalanteriorcingulate"), (3, "caudalmiddlefrontal"), (5, "cuneus")),
    *((6, "entorhinal"), (7, "fusiform"), (8, "inferiorparietal"), (9, "inferiortemporal")),
    *((10, "isthmuscingulate"), (11, "lateraloccipital"), (12, "lateralorbitofrontal"), (13, "lingual")),
    *((14, "medialorbitofrontal"), (15, "middletemporal"), (16, "parahippocampal"), (17, "paracentral")),
    *((18, "parsopercularis"), (19, "parsorbitalis"), (20, "parstriangularis"), (21, "pericalcarine")),
    *((22, "postcentral"), (23, "posteriorcingulate"), (24, "precentral"), (25, "precuneus")),
    *((26, "rostralanteriorcingulate"), (27, "rostralmiddlefrontal"), (28, "superiorfrontal")),
    *((29, "superiorparietal"), (30, "superiortemporal"), (31, "supramarginal"), (32, "frontalpole")),
    *((33, "temporalpole"), (34, "transversetemporal"), (35, "insula")),
)
PARCELS = (
    (0, "Background"),
    *((1000 + number, f"ctx-lh-{name}") for number, name in REGIONS),
    *((2000 + number, f"ctx-rh-{name}") for number, name in REGIONS),
)
PARCEL_VALUES = np.array([value for value, _ in PARCELS], np.int32)


class Table:
    """Channels of 1.0 (no csf) or 2.0: `values`, `names`, `topology`, `groups` (quality) and `flip`, per channel."""

    def __init__(self, v1: bool = False) -> None:
        rows = [row for row in STRUCTURES if not (v1 and row[0] == CSF)]
        self.values = np.array([row[0] for row in rows], np.int32)
        self.names = [row[1] for row in rows]
        self.flip = np.array(FLIP_1 if v1 else FLIP_2)
        self.topology = np.array([row[3] for row in rows])
        self.groups = np.array([row[4] for row in rows])
