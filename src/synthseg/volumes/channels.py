"""Images of several channels, kept along a fourth axis: one volume a channel."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from synthseg.errors import VolumeError
from synthseg.volumes.checks import check_affine, check_image, check_shape, check_size
from synthseg.volumes.promised import check_held, open_image, shape_of
from synthseg.volumes.read import nibabel_complaints, read_volume, require_volume_file, translated
from synthseg.volumes.volume import Volume, extension_of


def read_channels(path: str | Path, channels: int = 1) -> tuple[Volume, ...]:
    """Read an image of so many channels.

    Args:
        channels: 1 reads a plain 3D image as :func:`synthseg.volumes.read_volume` does; more need a NIfTI or MGH file
            of shape [X, Y, Z, channels].
    Returns: a float32 volume each, in the file's own axis order, all on one grid.
    Raises: VolumeError naming the file, for another number of channels and all that :func:`read_volume` refuses.
    """
    path = Path(path)
    if channels == 1:
        return (read_volume(path),)
    if extension_of(path) in ("", ".npz"):
        raise VolumeError(path, found="a file type without channels", fix="give a 4D .nii, .nii.gz, .mgz or .mgh")
    require_volume_file(path)
    with translated(path), nibabel_complaints([]):
        image = open_image(path)
        shape, affine = shape_of(image), np.array(image.affine, dtype=np.float64)
        if len(shape) != 4 or shape[3] != channels:
            found = f"an image of shape {shape}, not [X, Y, Z, {channels}]"
            raise VolumeError(
                path, found=found, fix="give the number of channels the files have, or one file a channel"
            )
        check_shape(shape[:3], path)
        check_affine(affine, path)
        check_size(shape[:3], affine, path)
        check_held(image, path)
        data = np.asarray(image.dataobj, dtype=np.float32)
    volumes = []
    for channel in range(channels):
        values, notes = check_image(np.ascontiguousarray(data[..., channel]), path)
        volume = Volume(values, affine, path)
        volumes.append(replace(volume, notes=tuple(f"Channel {channel + 1}: {note}" for note in notes)))
    return tuple(volumes)
