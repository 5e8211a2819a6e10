"""Out of memory: a message that names the settings to lower, instead of a traceback. Torch only."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from synthseg.errors import TrainingError
from synthseg.training.recipe import Recipe

# How allocators, cuBLAS and cuDNN say it inside a RuntimeError (torch.OutOfMemoryError is one).
_SIGNS = ("out of memory", "not enough memory", "can't allocate memory", "cannot allocate memory", "alloc_failed")


@contextmanager
def explain_lack_of_memory(recipe: Recipe) -> Iterator[None]:
    """Turn running out of memory, on a GPU or a CPU, into a TrainingError that says what to lower.

    Other errors pass unchanged. A process that the system itself kills for memory cannot be helped here.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not _lacks_memory(error):
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise TrainingError("memory", found=f"too little for a step ({reason})", fix=_fix(recipe)) from error


def _lacks_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError) or any(sign in str(error).lower() for sign in _SIGNS)


def _fix(recipe: Recipe) -> str:
    config, sides = recipe.optimizer, " x ".join(map(str, recipe.generation.grid.shape))
    ways = [f"a smaller generation.grid.shape (now {sides})"]
    if config.batch > 1:
        ways.append(f"a smaller optimizer.batch (now {config.batch}) with more optimizer.accumulate")
    if config.precision == "float32":
        ways.append('optimizer.precision = "bfloat16"')
    return f"try {', or '.join(ways)}; --resume goes on with such changes from the newest checkpoint, if there is one"
