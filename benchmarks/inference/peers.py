"""Peers from the package index, each in an environment of its own: made here, measured with everything else.

    python -m benchmarks.inference.peers FOLDER --make

- Keras (TensorFlow 2.15, the last with the original's Keras): the original's network, written again from its published
  description; given this package's tensors it gives the same posteriors (``peer_keras.py --against``).
- ONNX Runtime: the network as this package exports it.

MONAI has no part in it: it brings no network of this shape, and its sliding windows are other work than one pass.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

KERAS, ONNX = "keras", "onnxruntime"
PINS = {KERAS: ("tensorflow-cpu==2.15.1",), ONNX: ("onnxruntime==1.31.1", "numpy")}
PYTHONS = {KERAS: "python3.11", ONNX: sys.executable}  # TensorFlow 2.15 is for Python 3.9 to 3.11


def python_of(folder: Path, peer: str) -> Path:
    """A peer's interpreter, which may not be there."""
    return folder / peer / "bin" / "python"


def make(folder: Path, peer: str) -> Path:
    """Make a peer's environment, unless it is there. Returns: its interpreter."""
    python = python_of(folder, peer)
    done = folder / peer / "made"
    if not done.is_file():
        subprocess.run([PYTHONS[peer], "-m", "venv", str(folder / peer)], check=True)
        install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*install, *PINS[peer]], check=True)
        done.touch()
    return python


def main() -> None:
    """Make the environments; say how to make a peer's that fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the environments are, or are to be")
    parser.add_argument("--make", action="store_true", help="make those that are missing")
    given = parser.parse_args()
    for peer in PINS:
        python = make(given.folder, peer) if given.make else python_of(given.folder, peer)
        print(f"{peer}: {python if python.is_file() else 'none, make it with --make'}")


if __name__ == "__main__":
    main()
