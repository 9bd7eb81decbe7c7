# SPDX-License-Identifier: Apache-2.0
"""Write files atomically: a reader, or a process that is killed, never leaves or sees half of one."""

from __future__ import annotations

import getpass
import glob
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

#: Age in seconds after which the temporary file of another process counts as left by a killed one.
_ABANDONED_AFTER_S = 3600


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write a whole file, text as UTF-8, and replace `path` with it. Raises OSError and leaves `path` as it was."""
    temporary = _temporary(path)
    try:
        with named_errors(path):
            temporary.write_bytes(data.encode() if isinstance(data, str) else data)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def named_errors(path: Path) -> Iterator[None]:
    """Name `path` in an OSError that names no file, as that of a full disk does."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, and move the file written there to `path` when the block ends.

    For large files: the data reaches the disk before `path` is replaced, so `path` is whole even after a loss of power.
    The folder is created if missing. If the block raises, `path` stays as it was. Raises OSError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(path)
    temporary = _temporary(path)
    try:
        with named_errors(path):
            yield temporary
            _sync(temporary)
        temporary.replace(path)
        _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def user_cache_folder() -> Path:
    """Return nightlab's folder in the user's cache folder; it may not exist.

    Raises RuntimeError if the user has no home folder, for example in a container as an unknown user.
    """
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nightlab"


def set_torch_cache() -> None:
    """Name torch's cache folder in TORCHINDUCTOR_CACHE_DIR if the user has no name, without which torch fails."""
    try:
        getpass.getuser()
    except (KeyError, OSError):  # OSError from Python 3.13 on
        folder = Path(tempfile.gettempdir()) / f"torchinductor_{os.getuid()}"
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder))


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}")


def _remove_abandoned(path: Path) -> None:
    """Delete temporary files of killed processes, each of which may be as large as a checkpoint."""
    for other in path.parent.glob(f".{glob.escape(path.name)}.*"):
        if not other.name.removeprefix(f".{path.name}.").isdecimal():  # the user's, such as .a.pt.swp
            continue
        try:
            if time.time() - other.stat().st_mtime > _ABANDONED_AFTER_S:
                other.unlink()
        except FileNotFoundError:  # another process removed it first
            continue


def _sync(path: Path) -> None:
    """Force a file, or a folder's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
