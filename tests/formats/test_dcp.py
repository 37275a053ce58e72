"""Directories of torch.distributed.checkpoint: described without its plain `pickle.load`."""

import pickle
import shutil
from collections import OrderedDict
from copy import copy

import pytest
import torch
import torch.distributed.checkpoint as dcp
from files import content, corruption_reason, same_bits
from formats.early_pickler import pickle_early
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    MetadataIndex,
)

from ckptool.errors import ReadError
from ckptool.formats.dcp import matches, read
from ckptool.formats.dcp_chunks import check_chunks_cover
from ckptool.formats.limits import DEFAULT_LIMITS, Limits
from ckptool.formats.pickle.nodes import PickleTreeError
from ckptool.model import Container, Safety, TensorComponent, TensorInfo

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """Return a directory that torch wrote, and what is in it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(2, 2)).sum().backward()
    optimizer.step()
    state = {
        "model": model.state_dict(),
        "optim": optimizer.state_dict(),
        "epoch": 3,
        "lists": [torch.ones(2), {"z": torch.zeros(1, dtype=torch.bfloat16)}],
        "config": {"name": "x", "sizes": [1, 2]},
    }
    path = tmp_path_factory.mktemp("dcp") / "checkpoint"
    dcp.save(state, checkpoint_id=path)
    return path, state


@pytest.fixture
def directory(original, tmp_path):
    return shutil.copytree(original[0], tmp_path / "copy")


def test_a_directory(original):
    path, state = original
    assert matches(path)
    found = read(path, DEFAULT_LIMITS)
    by_place = {s.at: s for s in found.states}
    assert found.container is Container.DCP
    assert found.nbytes == sum(file.stat().st_size for file in path.iterdir())
    assert [file.name for file in found.files] == ["__0_0.distcp"]
    model = by_place["model"].tensors
    assert list(model) == list(state["model"])
    assert all(same_bits(content(model[key]), state["model"][key]) for key in model)
    assert by_place["optim"].role == "optimizer"
    moments = by_place["optim"].tensors["state.0.exp_avg"]
    assert same_bits(content(moments), state["optim"]["state"][0]["exp_avg"])
    assert same_bits(content(by_place["lists"].tensors["0"]), torch.ones(2))
    entries = {entry.at: entry.value for entry in found.entries}
    assert (entries["epoch"], entries["config"]) == (3, {"name": "x", "sizes": [1, 2]})
    assert entries["optim.param_groups"][0]["betas"] == [0.9, 0.999]
    assert all(use.safety is Safety.SAFE for use in found.globals)
    assert len({t.storage for s in found.states for t in s.tensors.values()}) == len(
        [t for s in found.states for t in s.tensors.values()]
    )


def metadata(directory):
    return pickle.loads((directory / ".metadata").read_bytes())


def put(directory, made) -> None:
    (directory / ".metadata").write_bytes(made if isinstance(made, bytes) else pickle.dumps(made))


def place(made, key="epoch"):
    return next(info for index, info in made.storage_data.items() if index.fqn == key)


def change_place(**fields):
    def change(made):
        vars(place(made)).update(fields)

    return change


def change_tensor(**fields):
    def change(made):
        vars(made.state_dict_metadata["model.0.weight"]).update(fields)

    return change


def chunk(offsets, sizes):
    return ChunkStorageMetadata(offsets=torch.Size(offsets), sizes=torch.Size(sizes))


def drop_place(made):
    made.storage_data = {i: p for i, p in made.storage_data.items() if i.fqn != "epoch"}


def stray_place(made):
    empty = copy(place(made))
    empty.offset, empty.length = 0, 0
    made.storage_data = {**made.storage_data, MetadataIndex("stray"): empty}


def place_of_another(made):
    made.storage_data[MetadataIndex("stray")] = place(made)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (change_place(relative_path="../x"), ", outside the directory"),
        (change_place(relative_path="/etc/hostname"), ", outside the directory"),
        (change_place(relative_path="a/../../x"), ", outside the directory"),
        (change_place(relative_path=""), ", outside the directory"),
        (change_place(relative_path=3), "without a key or a file"),
        (change_place(offset=-8), "has an impossible location"),
        (change_place(offset="0"), "has an impossible location"),
        (change_place(length=10**9), "ends at byte"),
        (change_place(length=-1), "has an impossible location"),
        (change_tensor(size=torch.Size([3, 4])), "has 12 elements and its chunks have 6"),
        (change_tensor(size=(-3, 2)), "has the size"),
        (change_tensor(chunks=[]), "has 6 elements and its chunks have 0"),
        (change_tensor(chunks=None), "no list of chunks"),
        (change_tensor(chunks=[chunk([0, 0], [3, 1])]), "instead of float32 [3, 1]"),
        (change_tensor(chunks=[chunk([1, 0], [3, 2])]), "no data for its chunk"),
        (change_tensor(chunks=[chunk([0, 0], [3, 2])] * 2), "its chunks have 12"),
        (change_tensor(properties=None), "has no properties"),
        (drop_place, "has no location"),
        (stray_place, "is not in the list of keys"),
        (place_of_another, "is not in the list of keys"),
        (lambda made: made.planner_data.update(epoch=()), "has an invalid path"),
        (lambda made: made.planner_data.update(epoch=("x",) * 65), "has an invalid path"),
        (
            lambda made: made.planner_data.update(epoch=("model",)),
            "has the location of another key",
        ),
        (
            lambda made: made.planner_data.update(epoch=("model", "0.bias", "x")),
            "is nested in another key",
        ),
        (lambda made: made.state_dict_metadata.update(x=3), "not a TensorStorageMetadata"),
        (lambda made: setattr(made, "storage_data", None), "list of locations is missing"),
        (lambda made: setattr(made, "state_dict_metadata", []), "list of keys is missing"),
    ],
)
def test_metadata_that_is_wrong(directory, change, reason):
    made = metadata(directory)
    change(made)
    put(directory, made)
    assert reason in corruption_reason(read, directory, DEFAULT_LIMITS)


def test_metadata_that_is_something_else(directory):
    put(directory, pickle.dumps([1]))
    assert "not a Metadata" in corruption_reason(read, directory, DEFAULT_LIMITS)
    put(directory, pickle.dumps(3)[:-1])
    assert corruption_reason(read, directory, DEFAULT_LIMITS)
    assert "more than any" in corruption_reason(read, directory, Limits(pickle_bytes=2))


def test_a_missing_file_is_an_error(directory):
    (directory / "__0_0.distcp").unlink()
    with pytest.raises(ReadError, match="no such file"):
        read(directory, DEFAULT_LIMITS)


def test_a_cut_file_is_an_error(directory):
    file = directory / "__0_0.distcp"
    file.write_bytes(file.read_bytes()[:-10])
    assert "ends at byte" in corruption_reason(read, directory, DEFAULT_LIMITS)


def test_a_flipped_bit_is_found(directory):
    found = read(directory, DEFAULT_LIMITS)
    span = found.states[-1].tensors["state.0.exp_avg"].span
    data = bytearray(span.path.read_bytes())
    data[span.offset] ^= 1
    span.path.write_bytes(data)
    assert "does not match its checksum" in corruption_reason(read, directory, DEFAULT_LIMITS)
    large = read(directory, Limits(checked_bytes=10))
    assert [s.what for s in large.skipped] == ["checksums of the storages"]
    assert "does not match" in corruption_reason(
        read, directory, Limits(checked_bytes=10, deep=True)
    )


class Runs:
    def __reduce__(self):
        import os

        return os.system, ("true",)


def test_a_payload_in_the_metadata_is_named(directory):
    made = metadata(directory)
    made.storage_meta = Runs()
    put(directory, made)
    found = read(directory, DEFAULT_LIMITS)
    assert [u.qualified_name for u in found.globals if u.safety is Safety.DANGEROUS] == [
        "posix.system"
    ]
    assert len(found.states) == 4
    put(directory, pickle.dumps(Runs()))
    assert "not a Metadata" in read(directory, DEFAULT_LIMITS).damage


def test_members_of_enums_as_early_python_3_11_pickles_them(directory, original):
    data = pickle_early(metadata(directory))
    assert b"getattr" in data
    put(directory, data)
    state = {"model": {key: torch.empty_like(t) for key, t in original[1]["model"].items()}}
    dcp.load(state, checkpoint_id=directory)  # torch loads it
    assert torch.equal(state["model"]["0.weight"], original[1]["model"]["0.weight"])
    found = read(directory, DEFAULT_LIMITS)
    assert all(use.safety is Safety.SAFE for use in found.globals)
    model = {s.at: s for s in found.states}["model"].tensors
    assert same_bits(content(model["0.weight"]), original[1]["model"]["0.weight"])


@pytest.mark.parametrize("attribute", ["__class__", "_member_map_", "a.b"])
def test_other_lookups_of_getattr_are_not_members(directory, attribute):
    put(directory, pickle_early(metadata(directory), attribute))
    found = read(directory, DEFAULT_LIMITS)
    unsafe = [use.qualified_name for use in found.globals if use.safety is not Safety.SAFE]
    assert unsafe == ["builtins.getattr"]


def test_a_payload_in_a_pickled_object_is_named(tmp_path):
    """torch.distributed.checkpoint loads those with weights_only=False."""
    dcp.save({"w": torch.ones(1), "x": {"y": Runs()}}, checkpoint_id=tmp_path / "d")
    found = read(tmp_path / "d", DEFAULT_LIMITS)
    assert [(u.qualified_name, u.at) for u in found.globals if u.safety is Safety.DANGEROUS] == [
        ("posix.system", "x.y")
    ]


def test_without_a_planner_the_keys_are_flat(directory):
    made = metadata(directory)
    made.planner_data = None
    put(directory, made)
    (state,) = read(directory, DEFAULT_LIMITS).states
    assert "model.0.weight" in state.tensors


def sharded(tmp_path, pieces: dict[tuple[int, ...], torch.Tensor], size: tuple[int, ...]):
    """Write a tensor as several ranks would: one chunk each."""
    path = tmp_path / "sharded"
    dcp.save({str(at): piece for at, piece in pieces.items()}, checkpoint_id=path)
    made = metadata(path)
    first = made.state_dict_metadata[str(next(iter(pieces)))]
    first.size = torch.Size(size)
    first.chunks = [chunk(at, piece.shape) for at, piece in pieces.items()]
    made.state_dict_metadata = {"w": first}
    made.planner_data = {"w": ("w",)}
    made.storage_data = {
        MetadataIndex("w", torch.Size(eval(index.fqn))): info
        for index, info in made.storage_data.items()
    }
    put(path, made)
    return path


def test_chunks_are_parts(tmp_path):
    whole = torch.arange(24.0).reshape(4, 6)
    pieces = {
        (r, c): whole[r : r + 2, c : c + 3].clone() for r in (0, 2) for c in (0, 3)
    }  # fmt: skip
    found = read(sharded(tmp_path, pieces, (4, 6)), DEFAULT_LIMITS).states[0].tensors["w"]
    assert (found.layout, found.shape, found.storage, found.nbytes) == ("chunked", (4, 6), None, 96)
    assert [part.offsets for part in found.parts] == sorted(pieces)
    assert all(same_bits(content(part.tensor), pieces[part.offsets]) for part in found.parts)


def part(offsets, sizes) -> TensorComponent:
    return TensorComponent(
        "", offsets, TensorInfo("w", sizes, "float32", (1,) * len(sizes), 0, None)
    )


@st.composite
def cut(draw):
    """Return a size and the boxes that it is cut into, again and again."""
    size = tuple(draw(st.lists(st.integers(1, 6), min_size=1, max_size=3)))
    boxes = [((0,) * len(size), size)]
    for _ in range(draw(st.integers(0, 6))):
        at, sizes = boxes.pop(draw(st.integers(0, len(boxes) - 1)))
        along = draw(st.integers(0, len(size) - 1))
        where = draw(st.integers(0, sizes[along]))
        low = tuple(where if d == along else n for d, n in enumerate(sizes))
        high = tuple(n - where if d == along else n for d, n in enumerate(sizes))
        start = tuple(a + where if d == along else a for d, a in enumerate(at))
        boxes += [(at, low), (start, high)]
    return size, boxes


@given(cut(), st.randoms(use_true_random=False))
def test_boxes_that_cover_a_tensor_are_accepted(cut, random):
    size, boxes = cut
    random.shuffle(boxes)
    check_chunks_cover("w", size, [part(*box) for box in boxes])


@given(cut(), st.data())
def test_boxes_that_do_not_are_refused(cut, data):
    size, boxes = cut
    filled = [box for box in boxes if 0 not in box[1]]
    victim = data.draw(st.sampled_from(filled))
    filled.remove(victim)
    moved = data.draw(st.sampled_from([None, *filled]))
    parts = [part(*box) for box in filled] + ([part(moved[0], victim[1])] if moved else [])
    with pytest.raises(PickleTreeError):
        check_chunks_cover("w", size, parts)


def test_keys_of_the_saved_dict_are_in_its_order(tmp_path):
    state = OrderedDict((name, torch.ones(1)) for name in "zyx")
    dcp.save(state, checkpoint_id=tmp_path / "d")
    assert sorted(read(tmp_path / "d", DEFAULT_LIMITS).states[0].tensors) == ["x", "y", "z"]
