"""What readers disagree about: what we read is what torch reads, or one of both refuses.

Every file here is harmless: it names only what torch.load(weights_only=True) allows, and torch
itself is asked about each.
"""

import struct

import pytest
import torch
from containers import safetensors_bytes
from files import content, same_bits
from hostile.pickles import (
    HOOKS,
    archive,
    call,
    entries,
    group,
    mapping,
    name,
    number,
    pickled,
    raw_archive,
    storage,
    tensor,
)
from safetensors import safe_open

from ckptool.errors import CkptoolError
from ckptool.formats import open_checkpoint

PICKLE = pickled(mapping(w=tensor()))
OTHER = bytes(range(100, 116))


def torch_reads(path) -> dict | None:
    """Return what torch.load gives, None if it refuses."""
    try:
        return torch.load(path, weights_only=True)
    except Exception:  # noqa: BLE001 (whatever it raises, it is a refusal)
        return None


def we_read(path) -> dict | None:
    try:
        checkpoint = open_checkpoint(path)
    except CkptoolError:
        return None
    if checkpoint.damage or checkpoint.load_refusal:
        return None
    return {key: t for state in checkpoint.states for key, t in state.tensors.items()}


def assert_same_or_refused(path, *, refused: bool) -> None:
    ours, theirs = we_read(path), torch_reads(path)
    if refused:
        assert ours is None
    elif ours is not None and theirs is not None:
        assert set(ours) == set(theirs)
        for key, described in ours.items():
            assert same_bits(content(described), theirs[key])
            assert described.requires_grad == theirs[key].requires_grad


def zip64(*numbers: int) -> bytes:
    return struct.pack("<HH", 1, 8 * len(numbers)) + struct.pack(f"<{len(numbers)}Q", *numbers)


def changed(index: int, **fields) -> list[dict]:
    members = entries(PICKLE)
    members[index] |= fields
    return members


MARK = 0xFFFFFFFF
ARCHIVES = {
    "two zip64 fields in data/0": raw_archive(
        changed(2, size=MARK, local_size=16, extra=zip64(16, 16) + zip64(15, 15))
    ),
    "two zip64 fields in data.pkl": raw_archive(
        changed(0, size=MARK, local_size=len(PICKLE), extra=zip64(*[len(PICKLE)] * 2) + zip64(1, 1))
    ),
    "two zip64 fields that agree": raw_archive(
        changed(2, size=MARK, local_size=16, extra=zip64(16, 16) * 2)
    ),
    "a zip64 field that is too short": raw_archive(
        changed(2, size=MARK, local_size=16, extra=zip64(16))
    ),
    "an extra field that is truncated": raw_archive(changed(2, extra=b"\x99\x99\xff\0ab")),
    "an extra field of three bytes": raw_archive(changed(2, extra=b"\x99\x99\xff")),
    "the folder bit of data/0": raw_archive(changed(2, attributes=0x10)),
    "the folder bit of data.pkl": raw_archive(changed(0, attributes=0x10)),
    "the folder bit of version": raw_archive(changed(3, attributes=0x10)),
    "an entry on disk 1": raw_archive(changed(2, disk=1)),
    "an entry on disk 0xffff": raw_archive(changed(2, disk=0xFFFF)),
    "end record on disk 1": raw_archive(entries(PICKLE), disk=1, start_disk=1),
    "end record on disk 0xffff": raw_archive(entries(PICKLE), disk=0xFFFF, start_disk=0xFFFF),
    "two top folders": raw_archive([*entries(PICKLE), {"name": "other/data/0", "data": OTHER}]),
    "another top folder first": raw_archive(
        [{"name": "other/data/0", "data": OTHER}, *entries(PICKLE)]
    ),
    "a record without a folder": raw_archive([*entries(PICKLE), {"name": "data", "data": OTHER}]),
    "a folder in a folder": raw_archive(entries(PICKLE, folder="one/two")),
    "no folder": raw_archive(
        [{**entry, "name": entry["name"].removeprefix("archive/")} for entry in entries(PICKLE)]
    ),
    "a comment": raw_archive(entries(PICKLE), comment=b"hello"),
    "more entries than counted": raw_archive(entries(PICKLE), count=3, total=3),
    "fewer entries than counted": raw_archive(entries(PICKLE), count=5, total=5),
    "two data/0": raw_archive([*entries(PICKLE), {"name": "archive/data/0", "data": OTHER}]),
    "data/0 and DATA/0": raw_archive([*entries(PICKLE), {"name": "archive/DATA/0", "data": OTHER}]),
    "another size before the data": raw_archive(changed(2, local_size=15)),
    "an end record within a comment": raw_archive(
        entries(PICKLE), comment=raw_archive(entries(PICKLE))[-22:]
    ),
}


@pytest.mark.parametrize("kind", ARCHIVES)
def test_an_archive_that_readers_read_differently_is_refused(folder, kind):
    path = folder / "x.pth"
    path.write_bytes(ARCHIVES[kind])
    assert_same_or_refused(path, refused=True)


def test_the_archive_that_these_are_made_of_is_read_as_torch_reads_it(folder):
    path = folder / "x.pth"
    path.write_bytes(raw_archive(entries(PICKLE)))
    assert torch_reads(path) is not None
    assert we_read(path) is not None
    assert_same_or_refused(path, refused=False)


TRUE, FALSE, NONE = b"\x88", b"\x89", b"N"


def rebuilt(function: str, *arguments: bytes) -> bytes:
    return call(name("torch._utils", function), *arguments)


VIEW = (storage(), number(0), group(number(4)), group(number(1)))
PARAMETER = rebuilt("_rebuild_parameter", tensor(), TRUE, HOOKS)
TENSORS = {
    "v2 of 4 arguments": rebuilt("_rebuild_tensor_v2", *VIEW),
    "v2 of 5 arguments": rebuilt("_rebuild_tensor_v2", *VIEW, FALSE),
    "v2 of 8 arguments": rebuilt("_rebuild_tensor_v2", *VIEW, FALSE, HOOKS, NONE, NONE),
    "v1 of 6 arguments": rebuilt("_rebuild_tensor", *VIEW, FALSE, HOOKS),
    "v3 of 6 arguments": rebuilt("_rebuild_tensor_v3", *VIEW, FALSE, HOOKS),
    "a parameter of 2 arguments": rebuilt("_rebuild_parameter", tensor(), TRUE),
    "a parameter of 4 arguments": rebuilt("_rebuild_parameter", tensor(), TRUE, HOOKS, b"}"),
    "a parameter with state of 3": rebuilt("_rebuild_parameter_with_state", tensor(), TRUE, HOOKS),
    "a gradient of integers": tensor(grad=TRUE, kind="IntStorage"),
    "a gradient of bools": tensor(grad=TRUE, kind="BoolStorage"),
    "a parameter of integers": rebuilt(
        "_rebuild_parameter", tensor(kind="IntStorage"), TRUE, HOOKS
    ),
    "a gradient of 1": tensor(grad=b"K\x01"),
    "a gradient of None": tensor(grad=NONE),
    "a parameter's gradient of 1": rebuilt("_rebuild_parameter", tensor(), b"K\x01", HOOKS),
    "location nowhere": tensor(location="nowhere"),
    "location cpu:0": tensor(location="cpu:0"),
    "location cudax": tensor(location="cudax"),
    "location meta:1": tensor(location="meta:1"),
    "location CPU": tensor(location="CPU"),
    "location cuda:": tensor(location="cuda:"),
    "an offset of True": rebuilt("_rebuild_tensor_v2", storage(), TRUE, *VIEW[2:], FALSE, HOOKS),
}


@pytest.mark.parametrize("kind", TENSORS)
def test_a_tensor_that_torch_refuses_is_refused(folder, kind):
    path = archive(folder / "x.pth", pickled(mapping(w=TENSORS[kind])))
    if kind != "an offset of True":
        assert torch_reads(path) is None
    assert_same_or_refused(path, refused=True)


@pytest.mark.parametrize(
    "made", [tensor(), tensor(grad=TRUE), tensor(kind="IntStorage"), PARAMETER, tensor(b"}")]
)
def test_a_tensor_that_torch_reads_is_read(folder, made):
    path = archive(folder / "x.pth", pickled(mapping(w=made)), bytes(range(16)))
    assert torch_reads(path) is not None
    assert we_read(path) is not None
    assert_same_or_refused(path, refused=False)


@pytest.mark.parametrize(
    "header",
    [
        '{"w":{"dtype":"F32","shape":[4],"data_offsets":[-0,16]}}',
        '{"w":{"dtype":"F32","shape":[-0],"data_offsets":[0,0]}}',
        '{"w":{"dtype":"F32","shape":[4.0],"data_offsets":[0,16]}}',
        '{"w":{"dtype":"F32","shape":[4],"data_offsets":[0,1.6e1]}}',
        '{"w":{"dtype":"F32","shape":[4],"data_offsets":[0,16],"shape":[2]}}',
        '{"w":{"dtype":"f32","shape":[4],"data_offsets":[0,16]}}',
        '{"w":{"dtype":"F32","shape":[04],"data_offsets":[0,16]}}',
        '{"w":{"dtype":"F32","shape":[4],"data_offsets":[0,16]},}',
    ],
)
def test_a_header_that_safetensors_refuses_is_refused(folder, header):
    path = folder / "x.safetensors"
    path.write_bytes(safetensors_bytes(header))
    with pytest.raises(CkptoolError):
        open_checkpoint(path)
    if header.count("shape") == 1:
        with pytest.raises(Exception, match=r"safetensors|Safetensor|header|deserializ"):
            safe_open(path, "pt")
