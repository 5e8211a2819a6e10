"""``python -m synthseg.training RECIPE``: the same as ``synthseg train``, with the standard library's parser only.

For bare GPU machines, where torch, numpy and safetensors are all there is. Exit codes: see :data:`CODES`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from synthseg.allocator import keep_freed_memory
from synthseg.errors import SynthsegError

CODES = (
    "exit code: 0 when the run is finished, or was stopped early (Ctrl-C, SIGTERM, --max-minutes) with a checkpoint "
    "and weights written; 1 for an error, 2 for a wrong command line or recipe, 130 when Ctrl-C came twice"
)


def main(arguments: list[str] | None = None) -> int:
    """Parse, train, print; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m synthseg.training", description="Train a network, or a chain of them.", epilog=CODES
    )
    parser.add_argument("recipe", type=Path, help="a recipe, or a chain of recipes (recipes/plus/chain.toml)")
    parser.add_argument("-o", "--out", type=Path, help="run folder (default: runs/RECIPE_NAME)")
    parser.add_argument("--resume", action="store_true", help="continue from the newest checkpoint")
    parser.add_argument("--max-minutes", type=float, help="stop cleanly after so many minutes")
    parser.add_argument("--init", help="weights to start from: a name or a file")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--threads", type=int, help="CPU threads")
    given = parser.parse_args(arguments)
    keep_freed_memory()
    from synthseg.training import Chain, RunOptions, load_training, train, train_chain

    try:
        options = RunOptions(
            out=given.out or Path("runs") / given.recipe.stem,
            resume=given.resume,
            max_minutes=given.max_minutes,
            init=given.init,
            device=given.device,
            threads=given.threads,
        )
        asked = load_training(given.recipe)
        if isinstance(asked, Chain):
            train_chain(asked, options)
        else:
            train(asked, options)
    except SynthsegError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted; --resume goes on from the newest checkpoint", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
