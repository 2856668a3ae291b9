"""A file that is written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path


def write_whole(path: Path, data: bytes, *, alone: bool = False) -> None:
    """Put `data` in the place of whatever is at `path`; nothing is left behind where that fails.  Raises OSError.

    Who writes `alone` to a path, again and again, writes over what a process that was killed has left, and the data is on disk
    before it takes the place of the old.  Without it several processes may write to one path at a time.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if alone:
        temporary = path.with_name(f".{path.name}.new")
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    else:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            if alone:
                file.flush()
                os.fsync(file.fileno())
        if not alone:
            mask = os.umask(0)
            os.umask(mask)
            temporary.chmod(0o666 & ~mask)
        temporary.replace(path)
    except BaseException:  # Ctrl-C as well
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
