"""Zip archives about which readers could disagree: ours, torch's (miniz) and Python's zipfile.

Each is the file with `w` = [0, 1, 2, 3], one property changed. A file that a gate passes is one
that torch reads, and all three read the same from it.
"""

import struct
import zipfile
import zlib

import pytest
from hostile.pickles import HOOKS, call, group, mapping, name, number, pickled, text
from hostile.zip_archives import (
    DATA,
    MARK,
    PICKLE,
    PLAIN,
    add_member,
    change_member,
    deflate,
    deflated,
    entries,
    raw_archive,
    two_directories,
    zip64_field,
)

from ckptool.formats import open_checkpoint
from ckptool.values.elements import iter_elements

pytestmark = pytest.mark.process

OTHER = struct.pack("<4f", 9, 9, 9, 9)
WHOLE = raw_archive(entries())
FIRST_MEMBER = WHOLE[: WHOLE.index(b"archive/byteorder") - 30]


def extra_field(body: bytes, field_id: int = 0x9999) -> bytes:
    return struct.pack("<HH", field_id, len(body)) + body


def second_name(key: bytes) -> bytes:
    """Return Info-ZIP's field of a name in UTF-8, which some readers prefer to the name."""
    return extra_field(struct.pack("<BL", 1, zlib.crc32(b"archive/data/0")) + key, 0x7075)


def descriptor(nbytes: int = 16, mark: bytes = b"PK\7\x08", layout: str = "<LLL") -> bytes:
    return mark + struct.pack(layout, zlib.crc32(DATA), nbytes, nbytes)


def described_behind(after: bytes, **fields) -> bytes:
    """Return the archive with the sizes of data/0 behind its data and not before them."""
    return change_member(2, flags=8, local_crc=0, local_size=0, after=after, **fields)


def renamed(old: str, new: str, **fields) -> bytes:
    """Return the archive with `old` replaced in all names; `fields` are changed where it was."""
    return raw_archive(
        [
            {**member, "name": member["name"].replace(old, new)}
            | (fields if old in member["name"] else {})
            for member in entries()
        ]
    )


def keyed(key: str, record: str) -> bytes:
    """Return the archive whose pickle asks for storage `key`, with its bytes in `record`."""
    kind = name("torch", "FloatStorage")
    storage = group(text("storage"), kind, text(key), text("cpu"), number(4)) + b"Q"
    parts = (storage, number(0), group(number(4)), group(number(1)), b"\x89", HOOKS)
    pickle = pickled(mapping(w=call(name("torch._utils", "_rebuild_tensor_v2"), *parts)))
    members = [{**m, "name": m["name"].replace("data/0", record)} for m in entries(pickle)]
    return raw_archive(members)


def many(members: int, **end) -> bytes:
    empty = [{"name": f"archive/f{index}", "data": b""} for index in range(members - 4)]
    return raw_archive(entries() + empty, **end)


def behind_deflated(index: int, data: bytes, more: bytes) -> bytes:
    packed = deflate(data) + more
    return change_member(index, **(deflated(data) | {"data": packed, "packed_size": len(packed)}))


def longer_than_said(index: int, data: bytes) -> bytes:
    sizes = {"size": len(data), "crc": zlib.crc32(data)}
    return change_member(index, **(deflated(data + b"more") | sizes))


def nested_member() -> bytes:
    """Return the archive with a member within the bytes of another one."""
    inside = raw_archive([{"name": "archive/data/1", "data": OTHER}])
    outer = add_member("archive/x", inside)
    at = outer.index(inside)
    inner = {"name": "archive/data/1", "data": OTHER, "offset": at}
    return add_member("archive/x", inside, more=(inner,))


DISAGREEMENTS = {
    "another local name": change_member(2, local_name="archive/data/1"),
    "a longer local name": change_member(2, local_name="archive/data/0x"),
    "a shorter local name": change_member(2, local_name="archive/data/"),
    "a local name in upper case": change_member(2, local_name="archive/DATA/0"),
    "deflated, its local header says": change_member(2, local_method=8),
    "deflated, the directory says": change_member(2, method=8, local_method=0),
    "encrypted, its local header says": change_member(2, local_flags=1),
    "encrypted, the directory says": change_member(2, flags=1, local_flags=0),
    "encrypted": change_member(2, flags=1),
    "patched": change_member(2, flags=0x20),
    "strongly encrypted": change_member(2, flags=0x41),
    "local headers are masked": change_member(2, flags=0x2000),
    "an unused flag": change_member(2, flags=0x8000),
    "another local checksum": change_member(2, local_crc=1),
    "another checksum": change_member(2, crc=1),
    "no checksum in the directory": change_member(2, crc=0, local_crc=zlib.crc32(DATA)),
    "no descriptor": described_behind(b""),
    "a descriptor of other sizes": described_behind(descriptor(8)),
    "two descriptors": described_behind(descriptor() * 2),
    "a descriptor without its flag": change_member(2, after=descriptor()),
    "a descriptor, its local header says": change_member(2, local_flags=8, after=descriptor()),
    "another local zip64 size": change_member(
        2, size=MARK, extra=zip64_field(16, 16), local_extra=zip64_field(15, 15)
    ),
    "no local zip64 field": change_member(2, size=MARK, extra=zip64_field(16, 16)),
    "two zip64 fields": change_member(
        2, size=MARK, local_size=16, extra=zip64_field(16, 16) + zip64_field(15, 15)
    ),
    "two zip64 fields of the pickle": change_member(
        0,
        size=MARK,
        local_size=len(PICKLE),
        extra=zip64_field(len(PICKLE), len(PICKLE)) + zip64_field(1, 1),
    ),
    "two zip64 fields that agree": change_member(
        2, size=MARK, local_size=16, extra=zip64_field(16, 16) * 2
    ),
    "a zip64 field that is too short": change_member(
        2, size=MARK, local_size=16, extra=zip64_field(16)
    ),
    "zip64 sizes in the wrong order": change_member(
        2, size=16, packed_size=MARK, local_packed_size=16, extra=zip64_field(99, 16)
    ),
    "an offset for zip64 without a field": change_member(0, offset=MARK),
    "sizes for zip64 without a field": change_member(2, size=MARK, local_size=16),
    "sizes of 2 ** 64 - 1": change_member(
        2, size=MARK, local_size=16, extra=zip64_field(2**64 - 1, 2**64 - 1)
    ),
    "sizes of 2 ** 63": change_member(
        2, size=MARK, local_size=16, extra=zip64_field(2**63 + 16, 2**63 + 16)
    ),
    "an extra field that is cut short": change_member(2, extra=b"\x99\x99\xff\0ab"),
    "an extra field of three bytes": change_member(2, extra=b"\x99\x99\xff"),
    "a byte behind the extra fields": change_member(2, extra=extra_field(b"ab") + b"\0"),
    "a second name": change_member(2, extra=second_name(b"archive/data/1")),
    "a second name that is the same": change_member(2, extra=second_name(b"archive/data/0")),
    "an offset into data": change_member(3, offset=5),
    "one header for two": add_member(
        "archive/data/1", DATA, offset=WHOLE.index(b"archive/data/0") - 30
    ),
    "the header of another": change_member(2, offset=0),
    "a member within another": nested_member(),
    "a program before it": raw_archive(entries(), prefix=b"#!/bin/sh\n"),
    "a program before it, not counted": raw_archive(entries(), prefix=b"#!/bin/sh\n", shift=0),
    "a member before it": raw_archive(entries(), prefix=FIRST_MEMBER),
    "the same, not counted": raw_archive(entries(), prefix=FIRST_MEMBER, shift=0),
    "the mark of several disks": raw_archive(entries(), prefix=b"PK\7\x08"),
    "the mark of one of several disks": raw_archive(entries(), prefix=b"PK00"),
    "wrong offsets": raw_archive(entries(), shift=4),
    "an archive before it": raw_archive(entries(), prefix=WHOLE),
    "an archive before it, not counted": WHOLE + WHOLE,
    "a byte behind it": WHOLE + b"x",
    "zeros behind it": WHOLE + bytes(100),
    "an archive in its comment": raw_archive(entries(), comment=WHOLE),
    "an end record in its comment": raw_archive(entries(), comment=WHOLE[-22:]),
    "a comment": raw_archive(entries(), comment=b"hello"),
    "a comment that is not there": WHOLE[:-2] + b"\5\0",
    "a signature": raw_archive(entries(), between=b"PK\5\5\4\0abcd"),
    "a record of archive data": raw_archive(entries(), between=b"PK\6\x08\4\0\0\0abcd"),
    "no members counted": raw_archive(entries(), count=0, total=0),
    "too few members counted": raw_archive(entries(), count=3, total=3),
    "too many members counted": raw_archive(entries(), count=5, total=5),
    "too few on this disk": raw_archive(entries(), count=3),
    "a count for zip64 without a record": raw_archive(entries(), count=0xFFFF, total=0xFFFF),
    "a directory that is too short": raw_archive(entries(), nbytes=100),
    "a directory that is too long": raw_archive(entries(), nbytes=1000),
    "a directory of no bytes": raw_archive(entries(), nbytes=0),
    "a directory at 0": raw_archive(entries(), start=0),
    "a directory for zip64 without a record": raw_archive(entries(), start=MARK),
    "zip64 counts of another number": raw_archive(entries(), zip64=True, count=5, total=5),
    "bytes in the zip64 end record": raw_archive(entries(), zip64=True, sector=bytes(20)),
    "a zip64 locator without a record": raw_archive(
        entries(), between=struct.pack("<4sLQL", b"PK\6\7", 0, 0, 1)
    ),
    "two directories": two_directories(),
    "an entry on disk 1": change_member(2, disk=1),
    "an entry on disk 0xffff": change_member(2, disk=0xFFFF),
    "end record on disk 1": raw_archive(entries(), disk=1, start_disk=1),
    "end record on disk 0xffff": raw_archive(entries(), disk=0xFFFF, start_disk=0xFFFF),
    "NUL in a name": add_member("archive/data/0\0x", OTHER),
    "NUL behind a name": change_member(2, name="archive/data/0\0"),
    "a backslash": add_member("archive/data\\0", OTHER),
    "backslashes alone": renamed("/", "\\"),
    "an absolute name": add_member("/archive/data/0", OTHER),
    "absolute names": renamed("archive", "/archive"),
    "a drive": renamed("archive", "C:"),
    "a name with ..": add_member("archive/../archive/data/0", OTHER),
    "a name with .": add_member("archive/./data/0", OTHER),
    "names that begin with .": renamed("archive", "./archive"),
    "a name with //": add_member("archive//data/0", OTHER),
    "no name": add_member(""),
    "a name in Latin-1": add_member(b"archive/\xe9", b"x"),
    "a name in Latin-1 that is said to be UTF-8": add_member(b"archive/\xe9", b"x", flags=0x800),
    "a name that torch cuts within a letter": add_member("archive/" + "\xe9" * 255, b"x"),
    "a folder of 511 letters": renamed("archive", "a" * 511),
    "a member in the folder in upper case": add_member("ARCHIVE/data/1", OTHER),
    "two records of one name": add_member("archive/data/0", OTHER),
    "two records of one name, the other first": add_member("archive/data/0", OTHER, at=0),
    "two pickles of one name": add_member("archive/data.pkl", pickled(mapping())),
    "data/0 and DATA/0": add_member("archive/DATA/0", OTHER),
    "version with a long s": add_member("archive/ver\u017fion", b"9\n"),
    "a folder of bytes": add_member("archive/data/", b"x"),
    "a file that is a folder": add_member("archive/data/0/1", OTHER),
    "a folder that is a file": add_member("archive/data.pkl/"),
    "a folder where a storage is": add_member("archive/data/0/"),
    "a storage where a folder is": add_member("archive/data", b"x"),
    "a record below a record": add_member("archive/version/x", b"x"),
    "a pickle in no folder": add_member("data.pkl", PICKLE),
    "two top folders": add_member("other/data/0", OTHER),
    "another top folder first": add_member("other/data/0", OTHER, at=0),
    "a record in no folder": add_member("data", OTHER),
    "a folder in a folder": renamed("archive", "one/two"),
    "no folder": renamed("archive/", ""),
    "a version in another case": renamed("version", "VERSION", data=b"99\n"),
    "two versions": add_member("archive/.data/version", b"99\n"),
    "two versions, one in upper case": add_member("archive/.DATA/VERSION", b"99\n"),
    "no version": raw_archive(entries()[:3]),
    "version 0": change_member(3, data=b"0\n"),
    "version 11": change_member(3, data=b"11\n"),
    "an empty version": change_member(3, data=b""),
    "a version in another alphabet": change_member(3, data="\uff13".encode()),
    "a byte order with a line's end": change_member(1, data=b"little\n"),
    "a byte order with a blank": change_member(1, data=b" little"),
    "another byte order": change_member(1, data=b"middle"),
    "no byte order in its record": change_member(1, data=b""),
    "an alignment that is no number": add_member("archive/.storage_alignment", b"x"),
    "TorchScript's record of constants": add_member("archive/constants.pkl", pickled(b")")),
    "the folder bit of data/0": change_member(2, attributes=0x10),
    "the folder bit of data.pkl": change_member(0, attributes=0x10),
    "the folder bit of version": change_member(3, attributes=0x10),
    "a storage that is a link": change_member(2, attributes=0o120777 << 16),
    **{
        f"a storage of type {file_type:o}": change_member(2, attributes=(file_type | 0o644) << 16)
        for file_type in (0o040000, 0o010000, 0o060000, 0o020000, 0o140000)
    },
    "another size before the data": change_member(2, local_size=15),
    "stored and of two sizes": change_member(2, packed_size=12),
    "bzip2": change_member(2, method=12),
    "deflate64": change_member(2, method=9),
    "xz": change_member(0, method=95),
    "AES": change_member(2, method=99, extra=extra_field(b"\2\0AE\3\0\0", 0x9901)),
    "version 6.4 of the format": change_member(2, version=64, local_version=0),
    "version 9.9 of the format": change_member(0, version=99, local_version=0),
    "deflated, and bytes behind it": behind_deflated(0, PICKLE, b"hidden"),
    "deflated twice": behind_deflated(0, PICKLE, deflate(PICKLE)),
    "deflated to more than is said": longer_than_said(0, PICKLE),
    "deflated to less than is said": change_member(
        0, **(deflated(PICKLE[:-3]) | {"size": len(PICKLE)})
    ),
    "a deflated storage and bytes behind it": behind_deflated(2, DATA, b"hidden"),
    "a storage deflated to more": longer_than_said(2, DATA),
    "a storage deflated a thousandfold": change_member(2, **(deflated(DATA) | {"size": 2**31})),
    "a key with ..": keyed("../data/0", "data/0"),
    "a key with .": keyed("./0", "data/0"),
    "a key with NUL": keyed("0\0x", "data/0"),
    "a wide digit for a key": keyed("\uff10", "data/0"),
    "an empty key": keyed("", "data/"),
}
"""Readers read something else from these, or one of them does not open them: refused."""

AGREEMENTS = {
    "the plain file": WHOLE,
    "padding before the data": change_member(2, local_extra=extra_field(b"Z" * 10, 0x4246)),
    "an unknown extra field": change_member(2, extra=extra_field(b"abcd")),
    "an archive in an extra field": change_member(2, local_extra=extra_field(WHOLE)),
    "a second name before the data": change_member(2, local_extra=second_name(b"archive/data/1")),
    "a comment of a member": change_member(2, comment=b"hello"),
    "an end record in a member's comment": change_member(2, comment=WHOLE[-22:]),
    "names in UTF-8": change_member(2, flags=0x800),
    "sizes before and behind the data": change_member(2, flags=8, after=descriptor()),
    "sizes behind the data": described_behind(descriptor()),
    "sizes behind the data, without a mark": described_behind(descriptor(mark=b"")),
    "sizes of 64 bits behind the data": described_behind(descriptor(layout="<LQQ")),
    "a zip64 field that nothing refers to": change_member(2, extra=zip64_field(99, 99)),
    "sizes of 64 bits": change_member(
        2, size=MARK, extra=zip64_field(16, 16), local_extra=zip64_field(16, 16)
    ),
    "sizes of 64 bits in the directory": change_member(
        2, size=MARK, local_size=16, extra=zip64_field(16, 16)
    ),
    "one size of 64 bits": change_member(
        2, size=16, packed_size=MARK, local_packed_size=16, extra=zip64_field(16)
    ),
    "an offset of 64 bits": change_member(0, offset=MARK, extra=zip64_field(0)),
    "a zip64 field in another field": change_member(
        2,
        size=MARK,
        local_size=16,
        extra=extra_field(zip64_field(15, 15)) + zip64_field(16, 16),
    ),
    "a zip64 end record": raw_archive(entries(), zip64=True),
    "a folder of its own": add_member("archive/", at=0),
    "a folder of storages": add_member("archive/data/"),
    "another folder": add_member("archive/other/"),
    "a record in a folder": add_member("archive/other/notes", b"words"),
    "a pickle in a folder": add_member("archive/x/data.pkl", PICKLE),
    "a name in UTF-8": add_member("archive/\xe9", b"x"),
    "a name of 5,000 letters": add_member("archive/" + "n" * 5000, b"x"),
    "a folder of 510 letters": renamed("archive", "a" * 510),
    "a pickle in upper case": renamed("data.pkl", "DATA.PKL"),
    "a storage in upper case": renamed("data/0", "DATA/0"),
    "a version in upper case": renamed("version", "VERSION"),
    "a byte order in upper case": renamed("byteorder", "BYTEORDER", data=b"big"),
    "big byte order": change_member(1, data=b"big"),
    "no byte order": raw_archive([entries()[index] for index in (0, 2, 3)]),
    "constants of no TorchScript": add_member("archive/Constants.pkl", pickled(b")")),
    "an alignment": add_member("archive/.storage_alignment", b"1"),
    "a version with a line's end": change_member(3, data=b"3\n"),
    "version 10": change_member(3, data=b"10\n"),
    "a deflated pickle": change_member(0, **deflated(PICKLE)),
    "version 6.3 of the format": change_member(0, version=63),
    "version 2.0 before the data": change_member(0, local_version=20),
    "version 9.9 before the data": change_member(2, local_version=99),
    "a regular file": change_member(2, attributes=0o100644 << 16),
    "a file that is read only": change_member(2, attributes=1),
    "a key of two parts": keyed("x/0", "data/x/0"),
    "a key in another case": keyed("a", "data/A"),
    "a key in UTF-8": keyed("\xe9", "data/\xe9"),
    "a key of 600 letters": keyed("k" * 600, "data/" + "k" * 600),
}


@pytest.mark.parametrize("kind", DISAGREEMENTS)
def test_what_readers_disagree_about_does_not_pass(folder, run_gate, kind):
    path = folder / "x.pth"
    path.write_bytes(DISAGREEMENTS[kind])
    assert run_gate(path)[0] in {1, 2}


@pytest.mark.parametrize("kind", AGREEMENTS)
def test_what_all_read_alike_passes(folder, run_gate, ask_torch, kind):
    path = folder / "x.pth"
    path.write_bytes(AGREEMENTS[kind])
    values = assert_all_read_alike(path, run_gate, ask_torch)
    assert (values == PLAIN) == ("big" not in kind and "byte order in upper" not in kind)


def assert_all_read_alike(path, run_gate, ask_torch) -> list[float]:
    """Return the elements of `w` in a file that the gate passes."""
    code, output = run_gate(path)
    assert code == 0, output
    (state,) = open_checkpoint(path).states
    values = list(struct.unpack("<4f", b"".join(iter_elements(state.tensors["w"]))))
    assert ask_torch(path, "weights only")["values"] == {"w": values}
    with zipfile.ZipFile(path) as archive:
        assert DATA in (archive.read(name) for name in archive.namelist())
    return values


@pytest.mark.parametrize(("members", "end"), [(65535, {}), (65540, {"zip64": True})])
def test_as_many_members_as_16_bits_count_and_more(folder, run_gate, ask_torch, members, end):
    path = folder / "x.pth"
    path.write_bytes(many(members, **end))
    assert assert_all_read_alike(path, run_gate, ask_torch) == PLAIN


def test_members_counted_in_16_bits_do_not_pass(folder, run_gate):
    path = folder / "x.pth"
    path.write_bytes(many(65540, count=4, total=4))
    with zipfile.ZipFile(path) as archive:
        assert len(archive.namelist()) == 65540
    assert run_gate(path)[0] == 2


def test_most_of_what_is_refused_torch_refuses_or_reads_otherwise(folder, ask_torch):
    """The rest is what zipfile or other readers read otherwise, or what hides bytes."""
    others = []
    for index, (kind, data) in enumerate(DISAGREEMENTS.items()):
        path = folder / f"{index}.pth"
        path.write_bytes(data)
        answer = ask_torch(path, "weights only")
        if not answer["loads"] or answer["values"] != {"w": PLAIN}:
            others.append(kind)
    assert len(others) > len(DISAGREEMENTS) // 2
