"""One way to write a file that matters and one way to read it back: a zip of plain members with their hashes.

A file is written under a temporary name, flushed to the disk and moved into place, so that a kill at any moment leaves
the old file or the new one, never half of one. ``manifest.json`` holds the SHA-256 of every other member (its own bytes
are covered by the zip's checksum). What is read is refused before any member is touched unless the zip is the kind that
:func:`write` makes: few members, known names, uncompressed, of bounded size. Nothing is extracted or unpickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from markets.errors import ArtefactError, ConfigError

MANIFEST = "manifest.json"
LARGEST = 256 * 2**20  # bytes of one member, unless the reader allows more
DIRECTORY = 2**16  # bytes of the zip's table of contents: a hundred times what ours need
TEMPORARY = re.compile(r"\..+\.(?:zip|json|safetensors)\.(\d+)\.tmp")
END, END_64 = b"PK\x05\x06", b"PK\x06\x07"  # of a zip's directory, and the mark of one with 64-bit counts


def write(path: Path, manifest: Mapping[str, Any], members: Mapping[str, bytes]) -> Path:
    """Write ``path``, a zip of ``manifest`` and ``members``, and return it; leftovers of killed writers are removed.

    Raises:
        OSError: full disk, no permission; the file that stood there is untouched.
        ValueError, TypeError: the manifest holds what JSON cannot.
    """
    content = {**manifest, "sha256": {name: hashlib.sha256(data).hexdigest() for name, data in members.items()}}
    parts = {MANIFEST: json.dumps(content, indent=1, allow_nan=False).encode(), **members}
    with _replacing(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, data in parts.items():
            archive.writestr(name, data)
    return path


def cache_folder() -> Path:
    """Return where this user's logs and caches lie: the folder ``REGIMEGYM_CACHE``, ``~/.cache/regimegym`` without."""
    folder = os.environ.get("REGIMEGYM_CACHE")
    return Path(folder) if folder else Path.home() / ".cache" / "regimegym"


def replace_file(path: Path, data: bytes) -> None:
    """Write ``path`` as plain bytes, so that a kill leaves the old file or the new one."""
    with _replacing(path) as file:
        file.write(data)


@contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file that takes the place of ``path`` once it is on the disk, and never where anything fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path.parent)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)


def read(
    path: Path, names: Sequence[str], optional: Sequence[str] = (), largest: int = LARGEST
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Read the manifest and the members ``names`` (and those of ``optional`` that are there) of a file.

    Raises:
        ArtefactError: not such a zip, or a member is missing, unknown, too large or altered; the member is named.
    """
    with _as_artefact_error(path):
        _check_directory(path)
        with zipfile.ZipFile(path) as archive:
            wanted = _check_members(path, archive.infolist(), names, optional, largest)
            parts = {name: archive.read(name) for name in wanted}
    with naming(path, MANIFEST):
        manifest = json.loads(parts.pop(MANIFEST))
        if not isinstance(manifest, dict):
            raise ArtefactError(f"is a {type(manifest).__name__}, not an object")
        hashes = manifest["sha256"]
        if not isinstance(hashes, dict):
            raise ArtefactError(f"sha256 is {hashes!r}, expected dict")
        for name in (*parts, *hashes):
            if name not in hashes or name not in parts:
                raise ArtefactError(f"sha256 {'lacks the hash of' if name in parts else 'names the absent'} {name}")
    for name, data in parts.items():
        if hashlib.sha256(data).hexdigest() != hashes[name]:
            raise ArtefactError(f"{path}: {name} was altered or is incomplete (its hash differs from the manifest's)")
    return manifest, parts


@contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    """Hold ``path`` for one process; the system lets go of it when the process ends, however it ends.

    Raises:
        ConfigError: another process holds it; ``what`` says what that one is doing.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        try:
            _take(file.fileno())
        except BlockingIOError as error:
            raise ConfigError(f"{path.parent}: {what} (it holds {path.name}); choose another folder") from error
        except OSError:  # a file system without locks: as good as it gets
            pass
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _take(descriptor: int) -> None:
    """Lock an open file or raise ``BlockingIOError``."""
    if os.name == "posix":
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    else:
        import msvcrt

        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined,unused-ignore]
        except OSError as error:
            raise BlockingIOError(*error.args) from error


@contextmanager
def naming(path: Path, member: str, more: type[Exception] = ValueError) -> Iterator[None]:
    """Turn what goes wrong inside into an :class:`ArtefactError` that names the file and its member."""
    try:
        yield
    except KeyError as error:
        raise ArtefactError(f"{path}: {member} lacks {error}") from error
    except (TypeError, ValueError, AttributeError, IndexError, AssertionError, RuntimeError, more) as error:
        raise ArtefactError(f"{path}: {member}: {error}") from error


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files of processes that were killed while they wrote into ``folder``."""
    for leftover in folder.glob(".*.tmp"):
        owner = TEMPORARY.fullmatch(leftover.name)
        if owner and not _is_alive(int(owner[1])):
            leftover.unlink(missing_ok=True)


def _check_directory(path: Path) -> None:
    """Refuse a zip whose table of contents is not small, before anything parses it (a million members take minutes)."""
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - 42, 0))
        tail = file.read()
    end = tail[-22:]
    if len(end) < 22 or end[:4] != END or end[20:] != b"\0\0":
        raise zipfile.BadZipFile("it does not end like a zip without comment")
    count, length = int.from_bytes(end[10:12], "little"), int.from_bytes(end[12:16], "little")
    if len(tail) == 42 and tail[:4] == END_64:
        raise ArtefactError(f"{path}: its directory has 64-bit counts, which no saved file needs")
    if length > DIRECTORY:
        raise ArtefactError(f"{path}: its directory lists {count} members in {length} bytes, more than {DIRECTORY}")


def _check_members(
    path: Path, found: Sequence[zipfile.ZipInfo], names: Sequence[str], optional: Sequence[str], largest: int
) -> list[str]:
    """Return the names to read; raise unless every member is one of ours, uncompressed and of bounded size."""
    sizes = {item.filename: item.file_size for item in found}
    wanted = [MANIFEST, *names, *(name for name in optional if name in sizes)]
    for name in wanted:
        if name not in sizes:
            raise ArtefactError(f"{path}: {name} is missing")
    if len(sizes) != len(found):
        raise ArtefactError(f"{path}: a member's name stands there twice")
    for item in found:
        if item.filename not in wanted:
            raise ArtefactError(f"{path}: unknown member {item.filename!r}")
        if item.file_size > largest:
            raise ArtefactError(f"{path}: {item.filename} claims {item.file_size} bytes, more than {largest}")
        if item.compress_type != zipfile.ZIP_STORED or item.compress_size != item.file_size:
            raise ArtefactError(f"{path}: {item.filename} is compressed; members are stored as they are")
        if stat.S_IFMT(item.external_attr >> 16) not in (0, stat.S_IFREG):
            raise ArtefactError(f"{path}: {item.filename} is a link or a folder, not a file")
    return wanted


@contextmanager
def _as_artefact_error(path: Path) -> Iterator[None]:
    try:
        yield
    except ArtefactError:
        raise
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, RuntimeError, ValueError, zlib.error) as error:
        raise ArtefactError(f"{path} is not a complete file: {error}") from error


def _sync_folder(folder: Path) -> None:
    """Make the new name survive a power cut too, where the system lets a folder be flushed."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)


def _is_alive(pid: int) -> bool:
    """True while the process that owns a temporary file may still be writing it."""
    if os.name != "posix":
        return True
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return pid != os.getpid()
