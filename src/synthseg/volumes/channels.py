"""Images of several channels, kept along a fourth axis: one volume a channel."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from synthseg.errors import VolumeError
from synthseg.volumes.checks import check_affine, check_image, check_shape, check_size
from synthseg.volumes.read import read_volume
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
    try:
        image: Any = nib.load(path, mmap=False)
        shape, affine = tuple(image.shape), np.array(image.affine, dtype=np.float64)
        if len(shape) != 4 or shape[3] != channels:
            found = f"an image of shape {shape}, not [X, Y, Z, {channels}]"
            raise VolumeError(
                path, found=found, fix="give the number of channels the files have, or one file a channel"
            )
        check_shape(shape[:3], path)
        check_affine(affine, path)
        check_size(shape[:3], affine, path)
        data = np.asarray(image.dataobj, dtype=np.float32)
    except VolumeError:
        raise
    except Exception as error:  # damaged files make the parsers raise anything
        message = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise VolumeError(path, found=f"no readable image ({message})", fix="copy or export it again") from error
    volumes = []
    for channel in range(channels):
        values, notes = check_image(np.ascontiguousarray(data[..., channel]), path)
        volume = Volume(values, affine, path)
        volumes.append(replace(volume, notes=tuple(f"Channel {channel + 1}: {note}" for note in notes)))
    return tuple(volumes)
