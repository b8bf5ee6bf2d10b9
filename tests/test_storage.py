"""The one way to write a file: whatever kills the writer, a reader finds the old file or the new one, and no zip that
was not written by it gets past the first look."""

from __future__ import annotations

import errno
import json
import os
import stat
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from markets import storage
from markets.errors import ArtefactError

NAMES = ("body.bin", "tail.bin")
forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")


def members(number: int) -> dict[str, bytes]:
    """Two members that only fit together: both hold the number, in 200 kB."""
    return {name: str(number).encode().ljust(100_000, b".") for name in NAMES}


def write(path: Path, number: int) -> Path:
    return storage.write(path, {"number": number}, members(number))


def number_of(path: Path) -> int:
    manifest, found = storage.read(path, NAMES)
    numbers = {int(data.rstrip(b".")) for data in found.values()} | {manifest["number"]}
    assert len(numbers) == 1, f"a mixture: {numbers}"
    return numbers.pop()


def write_in_place(path: Path, number: int) -> Path:
    """Planted fault: opens the file that stands there and writes."""
    hashes = {name: storage.hashlib.sha256(data).hexdigest() for name, data in members(number).items()}
    manifest = {"number": number, "sha256": hashes}
    with open(path, "wb") as file, zipfile.ZipFile(file, "w") as archive:
        for name, data in {"manifest.json": json.dumps(manifest).encode(), **members(number)}.items():
            archive.writestr(name, data)
    return path


Read = Callable[..., tuple[dict[str, Any], dict[str, bytes]]]


# Kills

# Forks writers that save again and again, kills each at a random moment, and reads what it left. In a process of its
# own, because forking one that has threads is asking for trouble.
KILLS = """
import os, random, signal, sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_storage import *

save = {{"atomic": write, "naive": write_in_place}}[{writer!r}]
path, draw = Path({folder!r}) / "agent.zip", random.Random({seed})
save(path, 0)
damaged = leftovers = last = 0
for repetition in range({repetitions}):
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        number = last
        while True:
            number += 1
            save(path, number)
            os.write(writer, b".")  # saved once more
    os.read(reader, 1)  # it is under way
    until = time.perf_counter() + draw.uniform(0.0, 0.01)
    while time.perf_counter() < until:
        pass
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(writer)
    saved = 1 + len(os.read(reader, 65536))
    os.close(reader)
    leftovers += len(list(path.parent.glob(".*.tmp")))
    try:
        found = number_of(path)
        assert found in (last + saved, last + saved + 1), (found, last, saved)  # the last finished, or the one in work
        last = found
    except ArtefactError:
        damaged += 1
        save(path, last)
save(path, last)
print(damaged, leftovers, sorted(item.name for item in path.parent.iterdir()))
"""


def kills(run_python: Callable[..., str], folder: Path, writer: str, seed: int, repetitions: int = 50) -> list[str]:
    code = KILLS.format(
        tests=str(Path(__file__).parent), writer=writer, folder=str(folder), seed=seed, repetitions=repetitions
    )
    return run_python(code).split(maxsplit=2)


@forks
def test_fifty_kills_while_saving_leave_the_old_file_or_the_new_one(
    run_python: Callable[..., str], tmp_path: Path
) -> None:
    """C01, C02. 50 SIGKILLs at random moments; what they left behind is gone after the next save."""
    damaged, leftovers, files = kills(run_python, tmp_path, "atomic", seed=1)
    print(f"seed 1: {damaged} damaged, {leftovers} temporary files left by kills, then {files}")
    assert damaged == "0"
    assert int(leftovers) > 0, "no kill hit a writer while it wrote: the test is empty"
    assert files.strip() == "['agent.zip']"


@forks
def test_a_naive_writer_is_caught_by_the_same_kills(run_python: Callable[..., str], tmp_path: Path) -> None:
    """Twin of C01. Open the file and write."""
    damaged, _, _ = kills(run_python, tmp_path, "naive", seed=1)
    print(f"seed 1: {damaged} of 50 kills left a damaged file")
    assert int(damaged) > 0


TWO_WRITERS = """
import os, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_storage import *
path = Path({folder!r}) / "agent.zip"
children = []
for base in (1_000, 2_000):
    child = os.fork()
    if child == 0:
        for number in range(base, base + 100):
            write(path, number)
        os._exit(0)
    children.append(child)
seen = set()
while children:
    for child in list(children):
        if os.waitpid(child, os.WNOHANG)[0]:
            children.remove(child)
    if path.exists():
        seen.add(number_of(path))
print(number_of(path), len(seen), len(list(path.parent.iterdir())))
"""


@forks
def test_two_processes_that_save_to_one_path_leave_one_whole_file(
    run_python: Callable[..., str], tmp_path: Path
) -> None:
    """C05. The reader never sees a mixture, and the last file is the last one of one of the two."""
    code = TWO_WRITERS.format(tests=str(Path(__file__).parent), folder=str(tmp_path))
    last, seen, files = run_python(code).split()
    assert int(last) in (1_099, 2_099)
    assert int(seen) > 1
    assert files == "1"


def check_a_save_within_a_save(path: Path, save: Callable[[Path, int], Path], other: int) -> None:
    """Let a process with the id ``other`` save whole while another one has written half of its file."""
    honest, written = zipfile.ZipFile.writestr, []

    def writestr(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
        honest(archive, name, data)
        written.append(name)
        if written == ["manifest.json", "body.bin"]:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(os, "getpid", lambda: other)
                save(path, 2)
            assert number_of(path) == 2

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zipfile.ZipFile, "writestr", writestr)
        save(path, 1)
    assert len(written) == 6
    assert number_of(path) == 1, "the one that ends last wins"
    assert [item.name for item in path.parent.iterdir()] == ["agent.zip"]


def test_a_save_in_the_middle_of_another_one_leaves_two_whole_files_one_after_the_other(tmp_path: Path) -> None:
    """C05."""
    check_a_save_within_a_save(tmp_path / "agent.zip", write, os.getppid())


def test_writers_in_place_mix_and_a_temporary_name_that_two_share_is_caught(tmp_path: Path) -> None:
    """Twin of C05."""
    with pytest.raises(ArtefactError, match="Bad CRC"):
        check_a_save_within_a_save(tmp_path / "agent.zip", write_in_place, os.getppid())
    with pytest.raises(FileNotFoundError, match=r"\.tmp"):
        check_a_save_within_a_save(tmp_path / "agent.zip", write, os.getpid())


def check_leftovers(folder: Path) -> None:
    living = folder / f".agent.zip.{os.getppid()}.tmp"
    dead, tensors = folder / ".agent.zip.99999999.tmp", folder / ".training.safetensors.99999999.tmp"
    foreign = [folder / name for name in (".notes.tmp", ".agent.zip.tmp", "agent.zip.99999999.tmp")]
    for file in (living, dead, tensors, *foreign):
        file.write_bytes(b"half")
    write(folder / "agent.zip", 1)
    assert not dead.exists(), "what a killed writer left stays"
    assert not tensors.exists(), "what a killed writer left stays"
    for file in (living, *foreign):
        assert file.exists(), f"{file.name} is no leftover and gone"


def test_leftovers_of_processes_that_live_stay_and_files_of_others_too(tmp_path: Path) -> None:
    """C02."""
    check_leftovers(tmp_path)


def remove_everything(folder: Path) -> None:
    for file in folder.glob(".*.tmp"):
        file.unlink()


@pytest.mark.parametrize(
    ("remove", "said"),
    [(lambda _: None, "what a killed writer left stays"), (remove_everything, "is no leftover and gone")],
    ids=["never removed", "removed while in use"],
)
def test_leftovers_that_are_never_removed_and_files_in_use_that_are_get_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, remove: Callable[[Path], None], said: str
) -> None:
    """Twin of C02."""
    monkeypatch.setattr(storage, "remove_leftovers", remove)
    with pytest.raises(AssertionError, match=said):
        check_leftovers(tmp_path)


# Disks that refuse


def check_a_disk_that_refuses(folder: Path, save: Callable[[Path, int], Path], code: int, where: str) -> None:
    path = save(folder / "agent.zip", 1)

    def refuse(*_: Any, **__: Any) -> Any:
        raise OSError(code, os.strerror(code))

    with pytest.MonkeyPatch.context() as patch:
        if where == "open":
            patch.setattr(storage, "open", refuse, raising=False)
        elif where == "write":
            patch.setattr(zipfile.ZipFile, "writestr", refuse)
        else:
            patch.setattr(os, {"flush": "fsync", "replace": "replace"}[where], refuse)
        with pytest.raises(OSError, match=os.strerror(code)):
            save(path, 2)
    assert number_of(path) == 1
    assert [item.name for item in folder.iterdir()] == ["agent.zip"], "half a file stays"
    assert number_of(save(path, 3)) == 3


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EIO])
@pytest.mark.parametrize("where", ["open", "write", "flush", "replace"])
def test_a_disk_that_refuses_leaves_the_old_file_and_says_why(tmp_path: Path, code: int, where: str) -> None:
    """C04."""
    check_a_disk_that_refuses(tmp_path, write, code, where)


def test_a_writer_in_place_loses_the_old_file_when_the_disk_is_full(tmp_path: Path) -> None:
    """Twin of C04."""
    with pytest.raises(ArtefactError, match=r"manifest\.json is missing"):
        check_a_disk_that_refuses(tmp_path, write_in_place, errno.ENOSPC, "write")


def test_a_writer_that_leaves_half_a_file_on_a_full_disk_is_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twin of C04."""
    monkeypatch.setattr(Path, "unlink", lambda *_, **__: None)
    with pytest.raises(AssertionError, match="half a file stays"):
        check_a_disk_that_refuses(tmp_path, write, errno.ENOSPC, "write")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="the superuser may write everywhere")
def test_a_folder_without_permission_leaves_the_old_file(tmp_path: Path) -> None:
    """C04."""
    path = write(tmp_path / "agent.zip", 1)
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(PermissionError):
            write(path, 2)
        assert number_of(path) == 1
    finally:
        tmp_path.chmod(0o700)


def test_a_folder_that_cannot_be_flushed_does_not_lose_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = os.fsync

    def fsync(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        honest(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    assert number_of(write(tmp_path / "agent.zip", 1)) == 1


# Zips that nobody here wrote


def forge(path: Path, change: Callable[[zipfile.ZipFile], None]) -> Path:
    """Write an honest file and add something to it."""
    write(path, 1)
    with zipfile.ZipFile(path, "a") as archive:
        change(archive)
    return path


def link(archive: zipfile.ZipFile) -> None:
    info = zipfile.ZipInfo("link")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    archive.writestr(info, "/etc/passwd")


def bomb(archive: zipfile.ZipFile) -> None:
    archive.getinfo("body.bin").file_size = 10 * 2**30
    archive.writestr("more", b"")


def lie(archive: zipfile.ZipFile) -> None:
    archive.getinfo("body.bin").file_size = 1
    archive.writestr("more", b"")


def twice(archive: zipfile.ZipFile) -> None:
    archive.filelist.append(archive.getinfo("body.bin"))
    archive._didModify = True  # type: ignore[attr-defined]


FORGED: dict[str, tuple[Callable[[zipfile.ZipFile], None], str]] = {
    "leads out": (lambda archive: archive.writestr("../evil", b"x"), "'../evil'"),
    "leads out later": (lambda archive: archive.writestr("a/../../evil", b"x"), "evil"),
    "backslashes": (lambda archive: archive.writestr("..\\evil", b"x"), "evil"),
    "absolute": (lambda archive: archive.writestr("/evil", b"x"), "'/evil'"),
    "link": (link, "'link'"),
    "pickle": (lambda archive: archive.writestr("data.pkl", b"x"), "'data.pkl'"),
    "ten gigabytes": (bomb, str(10 * 2**30)),
    "other size than stored": (lie, "body.bin"),
    "compressed": (lambda archive: archive.writestr("more", bytes(9_999), zipfile.ZIP_DEFLATED), "more"),
    "twice": (twice, "twice"),
}


def check_refused_unread(folder: Path, what: str, read: Read) -> None:
    change, said = FORGED[what]
    path = forge(folder / "folder" / "agent.zip", change)
    before = sorted(folder.rglob("*"))
    with pytest.MonkeyPatch.context() as patch:
        for name in ("read", "extract", "extractall"):
            patch.setattr(zipfile.ZipFile, name, lambda *_: pytest.fail("a member was read"))
        with pytest.raises(ArtefactError) as caught:
            read(path, NAMES, ["more"])
    assert said in str(caught.value)
    assert sorted(folder.rglob("*")) == before, "something was written"
    assert not Path("/evil").exists()


@pytest.mark.parametrize("what", FORGED)
def test_a_zip_with_a_member_that_no_writer_of_ours_makes_is_refused_before_anything_is_read(
    tmp_path: Path, what: str
) -> None:
    """C07."""
    check_refused_unread(tmp_path, what, storage.read)


def look_at_nothing(path: Path, found: Any, names: Any, optional: Any, largest: int) -> list[str]:
    """Planted fault: the members are read as they are."""
    return [storage.MANIFEST, *names]


@pytest.mark.parametrize("what", FORGED)
def test_a_reader_that_does_not_look_at_the_members_first_is_caught(
    tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twin of C07."""
    monkeypatch.setattr(storage, "_check_members", look_at_nothing)
    with pytest.raises(pytest.fail.Exception, match="a member was read"):
        check_refused_unread(tmp_path, what, storage.read)


@pytest.mark.parametrize("what", ["leads out", "leads out later"])
def test_a_reader_that_extracts_before_it_refuses_is_caught_outside_of_its_folder(tmp_path: Path, what: str) -> None:
    """Twin of C07. What it writes outside stays within the folder of this test."""

    def extract(path: Path, *rest: Any) -> Any:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                place = Path(os.path.normpath(path.parent / name))
                assert place.is_relative_to(tmp_path)
                place.write_bytes(archive.open(name).read())
        return storage.read(path, *rest)

    with pytest.raises(AssertionError, match="something was written"):
        check_refused_unread(tmp_path, what, extract)
    assert (tmp_path / "evil").exists()


def linked(archive: zipfile.ZipFile) -> None:
    archive.getinfo("body.bin").external_attr = (stat.S_IFLNK | 0o777) << 16
    archive._didModify = True  # type: ignore[attr-defined]


def check_link_refused(folder: Path) -> None:
    with pytest.raises(ArtefactError, match=r"body\.bin is a link"):
        storage.read(forge(folder / "agent.zip", linked), NAMES)


def test_a_link_under_a_name_of_ours_is_refused(tmp_path: Path) -> None:
    """C07."""
    check_link_refused(tmp_path)


def test_a_reader_that_takes_a_link_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twin of C07."""
    monkeypatch.setattr(storage, "_check_members", look_at_nothing)
    with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
        check_link_refused(tmp_path)


def empty_members(count: int) -> bytes:
    """A zip with so many empty members, built by hand: names only, one local header for all."""
    local = struct.pack("<4s5H3L2H", b"PK\x03\x04", 20, 0, 0, 0, 0, 0, 0, 0, 1, 0) + b"a"
    entry = struct.pack("<4s6H3L5H2L", b"PK\x01\x02", 20, 20, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0)
    directory = b"".join(entry + b"%07d" % number for number in range(count))
    head = local + directory
    wide = struct.pack(
        "<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, len(directory), len(local)
    ) + struct.pack("<4sLQL", b"PK\x06\x07", 0, len(head), 1)
    many = count > 65_535
    end = struct.pack(
        "<4s4H2LH", b"PK\x05\x06", 0, 0, 65_535 if many else count, 65_535 if many else count,
        2**32 - 1 if many else len(directory), 2**32 - 1 if many else len(local), 0,
    )  # fmt: skip
    return head + (wide if many else b"") + end


def check_refused_unparsed(folder: Path, count: int) -> None:
    from agents import artefact, checkpoint

    path = folder / "agent.zip"
    path.write_bytes(empty_members(count))
    if count == 10_000:  # the forged file is one that zipfile reads
        with zipfile.ZipFile(path) as archive:
            assert len(archive.infolist()) == count
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zipfile, "ZipFile", lambda *_: pytest.fail("the directory was parsed"))
        for load in (artefact.load, checkpoint.read, lambda file: storage.read(file, NAMES)):
            with pytest.raises(ArtefactError, match="directory"):
                load(path)


@pytest.mark.parametrize("count", [10_000, 1_000_000])
def test_a_zip_with_a_million_members_is_refused_unparsed(tmp_path: Path, count: int) -> None:
    """C07. By the size of its directory, or by the 64-bit counts that a million needs."""
    check_refused_unparsed(tmp_path, count)


def check_small_count_in_front(folder: Path) -> None:
    data = empty_members(70_000)
    path = folder / "agent.zip"
    path.write_bytes(data[:-22] + struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 3, 3, 200, 0, 0))
    with pytest.raises(ArtefactError, match="64-bit"):
        storage.read(path, NAMES)


def test_a_small_count_in_front_of_a_large_one_does_not_pass(tmp_path: Path) -> None:
    """C07. The 64-bit record overrules the small one, so its mere presence is refused."""
    check_small_count_in_front(tmp_path)


def test_a_reader_that_parses_any_directory_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twin of C07."""
    monkeypatch.setattr(storage, "_check_directory", lambda _: None)
    with pytest.raises(pytest.fail.Exception, match="the directory was parsed"):
        check_refused_unparsed(tmp_path, 10_000)
    with pytest.raises(AssertionError, match="64-bit"):
        check_small_count_in_front(tmp_path)


def read_what_is_there(path: Path, *_: Any) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Planted fault: goes from member to member, and asks neither the directory nor checksums nor hashes."""
    data, place, found = path.read_bytes(), 0, {}
    while data[place : place + 4] == b"PK\x03\x04":
        size, name, extra = struct.unpack("<L2H", data[place + 22 : place + 30])
        begin = place + 30 + name + extra
        found[data[place + 30 : place + 30 + name].decode()] = data[begin : begin + size]
        place = begin + size
    return found.pop("manifest.json", {}), found  # type: ignore[return-value]


def check_truncated(folder: Path, fraction: float, read: Read) -> None:
    path = write(folder / "agent.zip", 1)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * fraction)])
    with pytest.raises(ArtefactError, match=r"agent\.zip is not a complete file"):
        read(path, NAMES)


FRACTIONS = [sixteenth / 16 for sixteenth in range(16)]


@pytest.mark.parametrize("fraction", FRACTIONS)
def test_a_truncated_file_is_refused(tmp_path: Path, fraction: float) -> None:
    """C03."""
    check_truncated(tmp_path, fraction, storage.read)


@pytest.mark.parametrize("fraction", FRACTIONS)
def test_a_reader_that_takes_what_is_there_is_caught_by_truncation(tmp_path: Path, fraction: float) -> None:
    """Twin of C03."""
    with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
        check_truncated(tmp_path, fraction, read_what_is_there)


def check_flipped_bit(folder: Path, name: str, read: Read) -> None:
    path = write(folder / "agent.zip", 1)
    with zipfile.ZipFile(path) as archive:
        content = archive.read(name)
        place = archive.getinfo(name).header_offset + 30 + len(name) + len(content) // 2
    data = bytearray(path.read_bytes())
    data[place] ^= 0x04
    path.write_bytes(bytes(data))
    with pytest.raises(ArtefactError, match=name):
        read(path, NAMES)


@pytest.mark.parametrize("name", ["manifest.json", *NAMES])
def test_a_flipped_bit_is_refused_in_every_member(tmp_path: Path, name: str) -> None:
    """C03."""
    check_flipped_bit(tmp_path, name, storage.read)


@pytest.mark.parametrize("name", ["manifest.json", *NAMES])
def test_a_reader_that_skips_the_hashes_is_caught_by_a_flipped_bit(tmp_path: Path, name: str) -> None:
    """Twin of C03."""
    with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
        check_flipped_bit(tmp_path, name, read_what_is_there)


def test_a_name_in_the_hashes_that_no_member_has_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "agent.zip", 1)
    with pytest.raises(ArtefactError, match=r"tail\.bin"):
        storage.read(path, ["body.bin"])
    manifest, found = storage.read(path, NAMES)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("manifest.json", json.dumps(manifest))
        archive.writestr("body.bin", found["body.bin"])
    with pytest.raises(ArtefactError, match=r"absent tail\.bin"):
        storage.read(path, ["body.bin"])
