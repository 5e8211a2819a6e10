"""What the system refuses a command, in words: no memory, no space, a terminal that is gone. No torch here."""

from __future__ import annotations

import errno
import os

from synthseg.errors import OutputError, SynthsegError
from synthseg.scarce import MORE_MEMORY, lacks_memory


def explained(error: BaseException) -> SynthsegError | None:
    """The error as one of ours if it is the system that refuses something; None where it is a mistake in the program.

    Readers and writers name their own files; this is for what reaches the command line from anywhere else.
    """
    if lacks_memory(error):
        text = " ".join(str(error).split())
        said = f" ({text[:200]})" if text else ""
        return SynthsegError("memory", found=f"more needed than there is{said}", fix=MORE_MEMORY)
    return _of_files(error) if isinstance(error, OSError) else None


def _of_files(error: OSError) -> SynthsegError | None:
    if error.errno is None:  # not the system's, but somebody's text
        return None
    name = error.filename2 or error.filename
    reason = error.strerror or os.strerror(error.errno)
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        subject, fix = name or "a file or the standard output", "free space, or write elsewhere"
        return OutputError(str(subject), found=f"no way to write it ({reason})", fix=fix)
    if name is None:
        if error.errno not in (errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.EMFILE, errno.ENFILE):
            return None
        name = "a file"
    fix = "check the path, its permissions and the disk"
    return SynthsegError(os.fsdecode(name) if isinstance(name, bytes) else str(name), found=reason, fix=fix)
