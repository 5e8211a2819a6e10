"""What a run tells: a CSV that survives, TensorBoard on request, and lines on stderr with rate and remaining time."""

from __future__ import annotations

import csv
import io
import sys
import time
from pathlib import Path
from typing import Any, TextIO

from synthseg.errors import TrainingError
from synthseg.files import atomic_file

# skipped, returns: so far, steps left out and times the run went back to its last good state
COLUMNS = (
    "step",
    "loss",
    "learning_rate",
    "samples_per_s",
    "generation_share",
    "seconds",
    "dice",
    "skipped",
    "returns",
)


class RunLog:
    """Log of a run in ``folder/log.csv``, appended to on resumption and cut back to the step resumed from."""

    def __init__(self, folder: Path, *, tensorboard: bool, resume_step: int, stream: TextIO | None = None) -> None:
        self.path = folder / "log.csv"
        self.stream = stream or sys.stderr
        rows = [row for row in _read(self.path) if int(row["step"]) <= resume_step] if resume_step else []
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
        with atomic_file(self.path) as file:
            file.write(text.getvalue().encode())
        self.board = _tensorboard(folder, resume_step + 1) if tensorboard else None

    def row(self, **values: Any) -> None:
        """Append a line; unknown cells stay empty. Raises: TrainingError if it cannot be written."""
        try:
            with self.path.open("a", newline="", encoding="utf-8") as file:
                csv.DictWriter(file, COLUMNS).writerow({k: _short(v) for k, v in values.items()})
        except OSError as error:
            found = f"no way to write the log ({error.strerror or error})"
            fix = "free space, or see that the folder can be written to; --resume goes on from the newest checkpoint"
            raise TrainingError(self.path, found=found, fix=fix) from error
        if self.board is not None:
            for name, value in values.items():
                if name != "step" and value is not None:
                    self.board.add_scalar(name, float(value), int(values["step"]))

    def say(self, text: str) -> None:
        """A line for the person who watches."""
        print(f"{time.strftime('%H:%M:%S')} {text}", file=self.stream, flush=True)

    def close(self) -> None:
        """Flush TensorBoard."""
        if self.board is not None:
            self.board.close()


def _read(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    # A by-product, which must not keep a run from going on: lines that a power cut left are dropped.
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        reader = csv.DictReader(line.replace("\0", "") for line in file)
        known = reader.fieldnames or ()  # a log begun by an older release has fewer columns
        try:
            read = [{column: row[column] if column in known else "" for column in COLUMNS} for row in reader]
        except csv.Error:
            return []
    whole = [row for row in read if None not in row.values()]  # a power cut can leave half a line
    return [row for row in whole if (row["step"] or "").isdigit()]


def _short(value: Any) -> Any:
    return f"{value:.6g}" if isinstance(value, float) else value


def _tensorboard(folder: Path, first_step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise TrainingError(
            "output.tensorboard",
            found="no tensorboard installed",
            fix='pip install "synthseg[tensorboard]", or set tensorboard = false',
        ) from error
    return SummaryWriter(str(folder / "tensorboard"), purge_step=first_step)  # hides steps that are done again


def duration(seconds: float) -> str:
    """Seconds as 1h02m or 3m05s."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}h{minutes % 60:02d}m" if minutes >= 60 else f"{minutes}m{rest:02d}s"
