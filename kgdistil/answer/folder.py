"""A folder of files that is replaced as a whole: whoever looks finds the old one or the new one, never half of each."""

from __future__ import annotations

import contextlib
import ctypes
import glob
import os
import secrets
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from kgdistil.errors import ConfigError, KgdistilError

AT_FDCWD, RENAME_EXCHANGE = -100, 2  # Linux: fcntl.h, renameat2(2)


def check_free(output: Path, replace: bool) -> None:
    """ConfigError where a file, or a folder that holds something, is there and may not be written over."""
    if not replace and (output.is_file() or (output.is_dir() and any(output.iterdir()))):
        raise ConfigError(f"{output} is there already; name another, or add --replace")


def replace_folder(folder: Path, write: Callable[[Path], object], names: Sequence[str]) -> None:
    """Let `write` fill a folder beside `folder`, flush it to disk, and exchange the two in one move.

    Other files than `names` stay. What a killed call left is cleared away. A folder that cannot be exchanged (a mount
    point, the current folder, one in a folder that is read-only) gets its files one by one, in the order of `names`.

    Raises:
        KgdistilError: a folder is read-only or the disk is full; what was there before is untouched.
    """
    folder = Path(os.path.realpath(folder))  # Path.resolve raises where links lead in a circle
    fresh, old = (folder.with_name(f".{folder.name}.{what}-{secrets.token_hex(4)}") for what in ("new", "old"))
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        recover(folder)
        in_place = folder.is_dir() and (
            folder.is_mount() or folder.samefile(Path.cwd()) or not os.access(folder.parent, os.W_OK)
        )
        fresh = folder / fresh.name if in_place else fresh
        fresh.mkdir()
        write(fresh)
        if in_place:
            sync(fresh)
            for name in names:
                if (fresh / name).exists():
                    (fresh / name).replace(folder / name)
            sync(folder)
            return
        if folder.is_dir():
            ours = {*names, *(path.name for name in names for path in folder.glob(f".{name}.*"))}
            shutil.copytree(
                folder,
                fresh,
                symlinks=True,
                ignore=lambda where, _: ours if Path(where) == folder else (),
                copy_function=link,
                dirs_exist_ok=True,
            )
        sync(fresh)
        if folder.is_dir() and any(folder.iterdir()):
            if not exchange(fresh, folder):
                folder.rename(old)
                fresh.rename(folder)
        else:
            fresh.rename(folder)  # an empty folder gives way
        sync(folder.parent)
    except KgdistilError as error:  # of one file: name it where it would have been
        raise KgdistilError(str(error).replace(str(fresh), str(folder))) from None
    except OSError as error:
        reason = error.strerror or error
        raise KgdistilError(f"cannot write {folder}: {reason}; earlier files are untouched") from None
    finally:
        with contextlib.suppress(OSError):
            recover(folder)


def recover(folder: Path) -> None:
    """Put back what a killed call had moved away, and clear the rest of it away."""
    name = glob.escape(folder.name)
    if not folder.exists():
        for path in folder.parent.glob(f".{name}.old-*"):
            path.rename(folder)
            break
    for place in (folder.parent, folder):
        for path in (*place.glob(f".{name}.new-*"), *place.glob(f".{name}.old-*")):
            shutil.rmtree(path, ignore_errors=True)


def exchange(one: Path, other: Path) -> bool:
    """Exchange two folders in one move; False where the system cannot."""
    move = getattr(ctypes.CDLL(None), "renameat2", None) if os.name == "posix" else None
    return move is not None and not move(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE)


def sync(folder: Path) -> None:
    """Flush a folder's entries to disk, where a folder can be opened."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def link(source: str, target: str) -> None:
    """A second name for a file, or a copy where the file system knows no such."""
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        shutil.copy2(source, target, follow_symlinks=False)
