"""Files that are written whole or not at all."""

from __future__ import annotations

import json
import os
import secrets
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import platformdirs

from kgdistil.errors import KgdistilError

SUM = "sum"  # CRC-32, as in zip and PNG, of everything else that a file holds
CHANGED = "it was damaged or changed since it was written"


def user_folder(kind: Literal["cache", "data"]) -> Path:
    """The user's folder for what can be made again, or for what cannot.

    Raises:
        KgdistilError: the user has no home folder; what platformdirs names then lies below the current one.
    """
    try:
        path = {"cache": platformdirs.user_cache_path, "data": platformdirs.user_data_path}[kind]("kgdistil")
    except RuntimeError:  # newer releases of platformdirs say so, older ones leave the "~" as it is
        path = Path()
    if not path.is_absolute():
        mend = "KGDISTIL_DATA and KGDISTIL_CACHE" if kind == "cache" else "KGDISTIL_RUNS and KGDISTIL_RESULTS"
        raise KgdistilError(f"there is no home folder for kgdistil's {kind}: set HOME, or name folders in {mend}")
    return path


def write_atomically(path: Path, write: Callable[[str], object]) -> None:
    """Let `write` fill a temporary file beside `path`, flush it to disk, and put it in place in one move.

    Raises:
        KgdistilError: the folder is read-only or the disk is full; what was there before is untouched.
    """
    scratch = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        os.close(os.open(scratch, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        mode = scratch.stat().st_mode  # less what the user's umask keeps back; safetensors makes a file of its own
        write(str(scratch))
        scratch.chmod(mode)
        with scratch.open("rb+") as file:
            os.fsync(file.fileno())
        scratch.replace(path)
    except OSError as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise KgdistilError(f"cannot write {path}: {reason}; earlier files are untouched") from None
    finally:
        if scratch is not None:
            scratch.unlink(missing_ok=True)


def sealed(value: dict[str, Any]) -> dict[str, Any]:
    """A JSON object with the sum of all else in it, by which `unsealed` tells a damaged one."""
    return {**value, SUM: f"{zlib.crc32(json.dumps(value, sort_keys=True).encode()):08x}"}


def unsealed(value: dict[str, Any]) -> dict[str, Any]:
    """What `sealed` was given. An object without a sum, as earlier releases wrote it, is taken as it is.

    Raises:
        ValueError: changed since it was written.
    """
    rest = {key: x for key, x in value.items() if key != SUM}
    if SUM in value and sealed(rest)[SUM] != value[SUM]:
        raise ValueError(CHANGED)
    return rest


def write_json(path: Path, value: Any) -> None:
    """`value` as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """A text as UTF-8, atomically."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Bytes, atomically."""
    write_atomically(path, lambda scratch: Path(scratch).write_bytes(content))
