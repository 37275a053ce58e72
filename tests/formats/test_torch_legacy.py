"""Files of torch.save before 1.6, and bare pickles: pickles first, then raw storages."""

import pickle

import pytest
import torch
from files import content, corruption_reason, describe, described, same_bits
from torch import nn

from ckptool.formats.files.source import open_source
from ckptool.formats.torch.legacy import MAGIC_NUMBER, matches
from ckptool.model import Container, Kind, Safety, tied_keys

OLD = {"_use_new_zipfile_serialization": False}
EVIL = b"\x80\x02cposix\nsystem\nU\x04true\x85R."


@pytest.mark.parametrize("protocol", range(2, 6))
def test_a_state_dict(protocol):
    weight = torch.arange(6.0).reshape(2, 3)
    state = {"w": weight, "t": weight.t(), "s": torch.tensor(3), "h": torch.ones(2).half()}
    found = described(state, pickle_protocol=protocol, **OLD)
    assert found.container is Container.TORCH_LEGACY
    tensors = found.states[0].tensors
    assert list(tensors) == list(state)
    assert all(same_bits(content(tensors[key]), state[key]) for key in state)
    assert tensors["w"].storage == tensors["t"].storage


@pytest.mark.filterwarnings("ignore:Couldn't retrieve source")
def test_a_module_and_its_source():
    """Torch kept the code of a module's class beside it, as a persistent id."""
    module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    (state,) = described(module, **OLD).states
    assert (state.role, list(state.tensors)) == ("module", list(module.state_dict()))
    assert state.tensors["0.weight"].kind is Kind.PARAMETER
    assert state.modules["1"].name == "torch.nn.modules.batchnorm.BatchNorm1d"


def pieces(obj, tmp_path) -> tuple[list[bytes], bytes]:
    """Return the five pickles of a legacy file, and the storages behind them."""
    path = tmp_path / "whole.pt"
    torch.save(obj, path, **OLD)
    data, ends = path.read_bytes(), []
    for _ in range(5):
        start = ends[-1] if ends else 0
        ends.append(start + length(data[start:]))
    bounds = zip([0, *ends], ends, strict=False)
    return [data[a:b] for a, b in bounds], data[ends[-1] :]


def length(data: bytes) -> int:
    import pickletools

    return next(pos + 1 for op, _, pos in pickletools.genops(data) if op.name == "STOP")


def joined(path, head: list[bytes], storages: bytes):
    path.write_bytes(b"".join(head) + storages)
    return path


@pytest.mark.parametrize(
    ("index", "data", "reason"),
    [
        (0, pickle.dumps(MAGIC_NUMBER + 1), "not torch's magic number"),
        (1, pickle.dumps(1002), "protocol version is not 1001"),
        (1, pickle.dumps(None), "protocol version is not 1001"),
        (2, pickle.dumps([]), "its system information is not a dict"),
        (3, b"\x80\x02\xff", "its object: 0xff is not an opcode"),
        (4, pickle.dumps({}, 2), "its list of storages is not a list of keys"),
        (4, pickle.dumps([1], 2), "its list of storages is not a list of keys"),
        (4, pickle.dumps([], 2), "is used but not in the list of storages"),
    ],
)
def test_heads_that_are_wrong(tmp_path, index, data, reason):
    head, storages = pieces({"w": torch.ones(3)}, tmp_path)
    head[index] = data
    assert reason in corruption_reason(describe, joined(tmp_path / "x.pt", head, storages))


def test_keys_must_be_the_storages_that_are_used(tmp_path):
    head, storages = pieces({"w": torch.ones(3)}, tmp_path)
    keys = pickle.loads(head[4])
    head[4] = pickle.dumps([*keys, "9"], 2)
    assert "'9' is in the list of storages but not used" in corruption_reason(
        describe, joined(tmp_path / "x.pt", head, storages + bytes(8))
    )
    head[4] = pickle.dumps(keys * 2, 2)
    assert "twice" in corruption_reason(describe, joined(tmp_path / "x.pt", head, storages * 2))


def test_storages_must_be_what_the_pickle_says(tmp_path):
    head, storages = pieces({"w": torch.ones(3)}, tmp_path)
    for changed, reason in [
        ((2).to_bytes(8, "little") + storages[8:], "has 2 elements instead of 3"),
        ((-1).to_bytes(8, "little", signed=True) + storages[8:], "a storage of -1 elements"),
        (storages[:-1], "it is truncated"),
        (storages[:4], "it is truncated"),
        (storages + b"x", "1 bytes follow the last storage"),
    ]:
        assert reason in corruption_reason(describe, joined(tmp_path / "x.pt", head, changed))


def test_every_cut_is_refused(tmp_path):
    head, storages = pieces({"w": torch.ones(30)}, tmp_path)
    data = b"".join(head) + storages
    for end in range(2, len(data), 5):
        (tmp_path / "x.pt").write_bytes(data[:end])
        corruption_reason(describe, tmp_path / "x.pt")


@pytest.mark.parametrize("index", range(5))
def test_a_payload_in_any_pickle_is_named(tmp_path, index):
    head, storages = pieces({"w": torch.ones(3)}, tmp_path)
    head[index] = EVIL[:-1] + b"0" + head[index][2:]
    found = describe(joined(tmp_path / "x.pt", head, storages))
    assert [u.qualified_name for u in found.globals if u.safety is Safety.DANGEROUS] == [
        "posix.system"
    ]
    assert found.states[0].tensors


def test_a_payload_behind_the_storages_is_named(tmp_path):
    head, storages = pieces({"w": torch.ones(3)}, tmp_path)
    found = describe(joined(tmp_path / "x.pt", head, storages + EVIL))
    assert "bytes follow the last storage" in found.damage
    assert [u.qualified_name for u in found.globals if u.safety is Safety.DANGEROUS] == [
        "posix.system"
    ]


def view_of(key: str, numel: int, view: tuple | None) -> bytes:
    """Return the id of a storage as torch before 0.4 wrote it for a slice."""

    class Id:
        def __init__(self, id_):
            self.id = id_

    import io

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj):
            return obj.id if isinstance(obj, Id) else None

    out = io.BytesIO()
    storage = Id(("storage", torch.FloatStorage, key, "cpu", numel, view))
    Pickler(out, 2).dump({"w": Rebuilt(storage)})
    return out.getvalue()


class Rebuilt:
    def __init__(self, storage):
        self.storage = storage

    def __reduce__(self):
        return torch._utils._rebuild_tensor, (self.storage, 1, (2,), (1,))


@pytest.mark.parametrize(
    ("view", "offset", "reason"),
    [
        (None, 1, ""),
        (("v", 2, 3), 3, ""),
        (("v", 2, 2), 0, "uses element 2 of a storage with 2"),
        (("v", 4, 3), 0, "a view beyond its end"),
        (("v", -1, 3), 0, "has an invalid view"),
        (("v", 1), 0, "has an invalid view"),
    ],
)
def test_views_of_storages(tmp_path, view, offset, reason):
    head, _ = pieces({"w": torch.ones(1)}, tmp_path)
    head[3], head[4] = view_of("7", 6, view), pickle.dumps(["7"], 2)
    data = torch.arange(6.0)
    storages = (6).to_bytes(8, "little") + data.numpy().tobytes()
    path = joined(tmp_path / "x.pt", head, storages)
    if reason:
        assert reason in corruption_reason(describe, path)
    else:
        tensor = describe(path).states[0].tensors["w"]
        assert (tensor.storage_offset, tensor.storage.nbytes) == (offset, 24)
        assert same_bits(content(tensor), data[offset : offset + 2])


# -- bare pickles ---------------------------------------------------------------------


@pytest.mark.parametrize("protocol", range(6))
def test_tensors_in_a_bare_pickle_are_described(tmp_path, protocol):
    """`pickle.dump` keeps each storage as a whole file of torch.save."""
    weight = torch.arange(6.0).reshape(2, 3)
    state = {"w": weight, "t": weight.t(), "h": torch.ones(2).half(), "p": nn.Parameter(weight)}
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps(state, protocol))
    if protocol < 3:  # the bytes are written as text
        assert "a storage inside the pickle" in str(describe(path).damage)
        return
    found = describe(path)
    tensors = found.states[0].tensors
    assert found.container is Container.PICKLE
    assert all(same_bits(content(tensors[key]), state[key]) for key in state)
    assert ("torch.storage._load_from_bytes", Safety.DANGEROUS) in [
        (use.qualified_name, use.safety) for use in found.globals
    ]
    assert tied_keys(found.states[0].tensors.values()) == ()


def test_a_pickle_without_tensors_is_no_checkpoint(tmp_path):
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"a": 1}))
    assert (
        corruption_reason(describe, tmp_path / "x.pkl")
        == "a pickle that contains no tensors, but a dict with `a`"
    )


def test_a_payload_without_tensors_is_named(tmp_path):
    (tmp_path / "x.pkl").write_bytes(EVIL)
    found = describe(tmp_path / "x.pkl")
    assert [(u.qualified_name, u.safety) for u in found.globals] == [
        ("posix.system", Safety.DANGEROUS)
    ]
    assert (found.container, found.damage) == (Container.PICKLE, "")


def test_what_follows_a_pickle_is_refused_and_looked_at(tmp_path):
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({}) + EVIL)
    found = describe(tmp_path / "x.pkl")
    assert "bytes follow its first pickle" in found.damage
    assert [u.qualified_name for u in found.globals] == ["posix.system"]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (pickle.dumps({}, 2), True),
        (pickle.dumps({}, 5), True),
        (pickle.dumps({"a": 1}, 0), True),
        (b"cposix\nsystem\n(S'true'\ntR", True),
        (b"", False),
        (b"\x80", False),
        (b"\x80\x09abc", False),
        (b"PK\3\4", False),
        (b"<html></html>", False),
        (b"{}", False),
        (b"class A:\n    pass\n", False),
        (b"config: 1\nb: 2\n", False),
        (b"version https://git-lfs.github.com/spec/v1\n", False),
    ],
    ids=repr,
)
def test_a_pickle_is_known_by_its_bytes(tmp_path, data, expected):
    (tmp_path / "x").write_bytes(data)
    with open_source(tmp_path / "x") as source:
        assert matches(source) is expected
