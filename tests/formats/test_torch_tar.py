"""Tar checkpoints of torch before 0.1.10: built by hand, as no torch writes them today."""

import pickle
import tarfile

import pytest
from files import content, corruption_reason, same_bits
from formats.tar_files import DATA, MEMBERS, STORAGES, object_, tensor, write

from ckptool.formats.files.source import open_source
from ckptool.formats.limits import DEFAULT_LIMITS
from ckptool.formats.torch.tar import matches, read
from ckptool.model import Checkpoint, Container, Safety

EVIL = b"\x80\x02cposix\nsystem\nU\x04true\x85R."


def describe(path) -> Checkpoint:
    with open_source(path) as source:
        assert matches(source)
        return read(source, DEFAULT_LIMITS)


@pytest.mark.parametrize("format_", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_a_checkpoint(tmp_path, format_):
    found = describe(write(tmp_path / "x.pt", format=format_))
    assert found.container is Container.TORCH_TAR
    assert found.states[0].non_tensors == {"epoch": "3"}
    assert same_bits(content(found.states[0].tensors["w"]), DATA.reshape(2, 3))
    assert all(use.safety is Safety.SAFE for use in found.globals)


def test_a_view_of_a_storage(tmp_path):
    views = STORAGES + pickle.dumps([(8, 7, 2, 3)], 2)
    one = pickle.dumps(1, 2) + tensor(storage=8, size=(2,), stride=(1,), offset=1)
    found = describe(write(tmp_path / "x.pt", {**MEMBERS, "storages": views, "tensors": one}))
    assert same_bits(content(found.states[0].tensors["w"]), DATA[3:5])


def test_times_in_extended_headers_are_nothing(tmp_path):
    info = tarfile.TarInfo("sys_info")
    info.mtime = 1.5
    found = describe(write(tmp_path / "x.pt", [("", info), *list(MEMBERS.items())[1:]]))
    assert same_bits(content(found.states[0].tensors["w"]), DATA.reshape(2, 3))


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"storages": None}, "without 'storages'"),
        ({"pickle": None}, "without 'pickle'"),
        ({"storages": link("storages", "/etc/hostname")}, "is not a regular file"),
        ({"storages": link("storages", "pickle", tarfile.LNKTYPE)}, "is not a regular file"),
        ({"x": link("x", "", tarfile.CHRTYPE)}, "is not a regular file"),
        ({"../x": b"x"}, "is outside the archive"),
        ({"storages": STORAGES}, "a record"),
        ({"storages": STORAGES[:-1]}, "it is truncated"),
        ({"storages": STORAGES + pickle.dumps([]) + b"x"}, "1 bytes follow the last record"),
        ({"storages": STORAGES + pickle.dumps({})}, "its list of views is not a list"),
        ({"storages": STORAGES + pickle.dumps([(8, 7, 4, 3)])}, "a view outside its storage"),
        ({"storages": STORAGES + pickle.dumps([(8, 6, 0, 1)])}, "a view outside its storage"),
        (
            {"storages": STORAGES + pickle.dumps([(7, 7, 0, 1)])},
            "two records with the same number, or a record without a number",
        ),
        ({"storages": STORAGES + pickle.dumps([7])}, "a view of an invalid storage"),
        ({"storages": pickle.dumps(-1)}, "an impossible number of records"),
        ({"storages": pickle.dumps(10**9)}, "an impossible number of records"),
        ({"storages": pickle.dumps(1) + pickle.dumps(3)}, "a record that is not a triple"),
        ({"storages": pickle.dumps(1) + pickle.dumps((1, "cpu", int))}, "unknown class"),
        ({"tensors": pickle.dumps(1, 2) + tensor(storage=1)}, "without its storage"),
        ({"tensors": pickle.dumps(1, 2) + tensor(offset=1)}, "uses element 6"),
        ({"tensors": pickle.dumps(1, 2) + tensor()[:-1]}, "it is truncated"),
        ({"tensors": pickle.dumps(1, 2) + tensor() + b"x"}, "1 bytes follow"),
        (
            {"tensors": pickle.dumps(1, 2) + tensor(key=7)},
            "two records with the same number, or a record without a number",
        ),
        ({"tensors": pickle.dumps(1, 2) + tensor(size=(-2, 3))}, "-2 elements"),
        ({"tensors": pickle.dumps(1, 2) + tensor(size=(1,) * 65, stride=(1,) * 65)}, "65 dim"),
        ({"pickle": object_(8)}, "the pickle refers to a tensor that is missing"),
        ({"pickle": object_()[:-1]}, "'pickle': "),
        ({"pickle": object_() + b"N."}, "2 bytes follow"),
        ({"pickle": pickle.dumps({"a": 1})}, "contains no tensors"),
    ],
)
def test_archives_that_are_wrong(tmp_path, change, reason):
    changed = {name: data for name, data in {**MEMBERS, **change}.items() if data is not None}
    assert reason in corruption_reason(describe, write(tmp_path / "x.pt", changed))


def test_a_number_may_be_written_as_text(tmp_path):
    assert describe(write(tmp_path / "x.pt", {**MEMBERS, "pickle": object_("9")})).states


def test_a_name_twice_is_refused(tmp_path):
    listed = [*MEMBERS.items(), ("pickle", object_())]
    assert "appears twice" in corruption_reason(describe, write(tmp_path / "x.pt", listed))


def test_an_archive_that_was_changed_is_refused(tmp_path):
    path = write(tmp_path / "x.pt")
    data = path.read_bytes()
    for changed in (b"X" + data[1:], data[:1500], data[:-1] + b"x", data[:124] + b"9" + data[125:]):
        path.write_bytes(changed)
        corruption_reason(describe, path)


@pytest.mark.parametrize("name", ["pickle", "tensors", "storages", "sys_info", "other"])
def test_a_payload_in_any_member_is_named(tmp_path, name):
    found = describe(write(tmp_path / "x.pt", {**MEMBERS, name: EVIL}))
    assert [u.qualified_name for u in found.globals if u.safety is Safety.DANGEROUS] == [
        "posix.system"
    ]


def test_a_payload_in_a_second_member_of_a_name_is_named(tmp_path):
    found = describe(write(tmp_path / "x.pt", [*MEMBERS.items(), ("pickle", EVIL)]))
    assert "appears twice" in found.damage
    assert [u.qualified_name for u in found.globals if u.safety is Safety.DANGEROUS] == [
        "posix.system"
    ]
