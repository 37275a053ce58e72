"""`ckptool convert`: what is written, judged by plain torch, and what is said of the rest."""

import argparse
import collections
import datetime as dt
import enum
import functools
import os
import pathlib
import pickle
import zipfile

import numpy as np
import pytest
import torch
from files import rewrite_archive, same_bits, save, save_dcp
from formats.early_pickler import early_pickle
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn

import ckptool
from ckptool import api
from ckptool.config import ProjectConfig
from ckptool.errors import PlanError, UsageError
from ckptool.formats import open_checkpoint

pytestmark = pytest.mark.filterwarnings("ignore")


class Payload:
    def __init__(self, marker: str) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


class Settings:
    def __init__(self) -> None:
        self.width, self.folder, self.hook = 3, pathlib.PurePosixPath("a/b"), functools.partial(int)


def make_training(**more: object) -> dict[str, object]:
    module = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    optimizer = torch.optim.Adam(module.parameters())
    module(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    return {"epoch": 3, "model": module.state_dict(), "optimizer": optimizer.state_dict(), **more}


def load_converted(source, target, **options):
    """Convert, and return what torch.load(weights_only=True) reads, and the one conversion."""
    (conversion,) = ckptool.convert(source, target, **options).conversions
    return torch.load(target, weights_only=True), conversion


def list_places(changes) -> set[str]:
    return {change.place for change in changes}


def check_same_state(found, expected) -> None:
    assert found.keys() == expected.keys()
    assert all(same_bits(found[key], expected[key]) for key in expected)


def test_a_payload_is_left_out_and_named(tmp_path):
    marker = tmp_path / "ran"
    content = make_training(cfg=Payload(str(marker)), args=argparse.Namespace(lr=1))
    save(tmp_path / "evil.pt", content)
    found, conversion = load_converted(tmp_path / "evil.pt", tmp_path / "clean.pt")
    assert {*found} == {"epoch", "model", "optimizer", "args"}
    assert found["args"] == {"lr": 1}
    assert list_places(conversion.left_out) == {"cfg"}
    assert list_places(conversion.changed) == {"args"}
    check_same_state(found["model"], content["model"])
    assert not marker.exists()


@pytest.mark.parametrize("how", [{}, {"_use_new_zipfile_serialization": False}])
def test_what_weights_only_reads_is_kept_as_it_is(tmp_path, how):
    kept = {
        "counts": collections.Counter("aab"),
        "ordered": collections.OrderedDict(a=1),
        "words": {"a", "b"},
        "bytes": b"\0\xff",
        "array": bytearray(b"ab"),
        "number": 1 + 2j,
        "device": torch.device("cuda", 1),
        "dtype": torch.float16,
        "size": torch.Size([2, 3]),
        "nested": {"a": [{"b": (1, None, True, 0.5, 1 << 70)}]},
        5: "int key",
        (1, 2): "tuple key",
    }
    save(tmp_path / "a.pt", {"w": torch.ones(2), **kept}, **how)
    found, conversion = load_converted(tmp_path / "a.pt", tmp_path / "b.pt")
    assert {key: value for key, value in found.items() if key != "w"} == kept
    assert all(type(found[key]) is type(value) for key, value in kept.items())
    assert (conversion.left_out, conversion.changed) == ((), ())


def test_what_it_refuses_is_plain_data_or_left_out(tmp_path):
    content = {
        "w": torch.ones(2),
        "step": np.int64(3),
        "arrays": [np.arange(3), {"b": np.float32(0.5)}],
        "path": pathlib.PurePosixPath("a/b"),
        "lists": collections.defaultdict(list, {"a": [1]}),
        "settings": Settings(),
        "when": dt.datetime(2020, 1, 1),  # noqa: DTZ001
        "mixed": [1, dt.date(2020, 1, 1), 2],
        "module": nn.Linear(2, 2),
        "loop": {},
    }
    content["loop"]["itself"] = content["loop"]
    content["again"] = content["when"]
    save(tmp_path / "a.pt", content)
    found, conversion = load_converted(tmp_path / "a.pt", tmp_path / "b.pt")
    assert found["step"] == 3
    assert torch.equal(found["arrays"][0], torch.arange(3))
    assert found["arrays"][1] == {"b": 0.5}
    assert (found["path"], found["lists"], found["loop"]) == ("a/b", {"a": [1]}, {})
    assert found["settings"] == {"width": 3, "folder": "a/b"}
    check_same_state(found["module"], content["module"].state_dict())
    assert list_places(conversion.left_out) == {
        "settings.hook", "when", "again", "mixed", "loop.itself",
    }  # fmt: skip
    assert list_places(conversion.changed) >= {"step", "path", "lists", "settings", "module"}


BAD = st.sampled_from([dt.date(2020, 1, 1), functools.partial(int), range(3)])
GOOD = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
LEFT_OUT = object()


def prune(value: object) -> object:
    """Return what is left of a value without what torch.load(weights_only=True) refuses."""
    if isinstance(value, dict):
        pairs = {key: prune(child) for key, child in value.items()}
        return {key: child for key, child in pairs.items() if child is not LEFT_OUT}
    if isinstance(value, list | tuple):
        items = [prune(child) for child in value]
        is_whole = all(item is not LEFT_OUT for item in items)
        return type(value)(items) if is_whole else LEFT_OUT
    is_bad = isinstance(value, dt.date | functools.partial | range)
    return LEFT_OUT if is_bad else value


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    value=st.recursive(
        BAD | GOOD,
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.tuples(inner, inner)
            | st.dictionaries(st.text(max_size=3), inner, max_size=3)
        ),
        max_leaves=12,
    )
)
def test_any_object_is_pruned_to_what_weights_only_reads(tmp_path, value):
    save(tmp_path / "a.pt", {"model": {"w": torch.ones(2)}, "value": value})
    found, conversion = load_converted(tmp_path / "a.pt", tmp_path / "b.pt", force=True)
    expected = prune(value)
    assert found.get("value", LEFT_OUT) == expected
    assert bool(conversion.left_out) == (repr(expected) != repr(value))


@pytest.mark.parametrize("to", ["bfloat16", "float16", "float32", "float64", "float8_e4m3fn"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
def test_a_cast_is_that_of_torch_to_the_bit(tmp_path, dtype, to):
    bits = torch.arange(1 << 16, dtype=torch.int32)
    values = (bits << 16).view(torch.float32).clone()
    low = torch.randint(0, 1 << 16, (1 << 16,), dtype=torch.int32)
    values = torch.cat([values, ((bits << 16) | low).view(torch.float32)]).to(getattr(torch, dtype))
    state = {"w": values, "view": values[::2], "n": torch.arange(3), "c": torch.ones(2) * 1j}
    save(tmp_path / "a.pt", state)
    found, _ = load_converted(tmp_path / "a.pt", tmp_path / "b.pt", dtype=to)
    for key in ("w", "view"):
        assert same_bits(found[key], state[key].to(getattr(torch, to)))
    assert same_bits(found["n"], state["n"])
    assert same_bits(found["c"], state["c"])


def test_device_tags_are_removed(tmp_path):
    save(tmp_path / "cpu.pt", make_training())
    with zipfile.ZipFile(tmp_path / "cpu.pt") as archive:
        (data,) = [archive.read(n) for n in archive.namelist() if n.endswith("data.pkl")]
    tagged = data.replace(b"X\x03\0\0\0cpu", b"X\x06\0\0\0cuda:3")
    assert tagged != data
    source = rewrite_archive(tmp_path / "cpu.pt", tmp_path / "gpu.pt", {"data.pkl": tagged})
    assert "cuda:3" in repr(ckptool.inspect(source).checkpoints)
    for name in ("a.pt", "a.safetensors"):
        ckptool.convert(source, tmp_path / name)
        assert "cuda" not in repr(ckptool.inspect(tmp_path / name).checkpoints)
    check_same_state(
        torch.load(tmp_path / "a.pt", weights_only=True)["model"],
        torch.load(tmp_path / "cpu.pt", weights_only=True)["model"],
    )


def test_an_archive_that_was_zipped_again_is_repaired(tmp_path):
    content = make_training()
    save(tmp_path / "a.pt", content)
    with (
        zipfile.ZipFile(tmp_path / "a.pt") as old,
        zipfile.ZipFile(tmp_path / "b.pt", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in sorted(old.namelist(), reverse=True):
            new.writestr(f"folder/{name}", old.read(name))
    with pytest.raises(Exception, match=r"."):
        torch.load(tmp_path / "b.pt", weights_only=True)
    found, _ = load_converted(tmp_path / "b.pt", tmp_path / "c.pt")
    check_same_state(found["model"], content["model"])
    assert found["epoch"] == 3


class Color(enum.Enum):
    RED = 1
    BLUE = 2


class Interval(enum.Enum):
    SHORT = (1, (2, 3))
    LONG = (1, (2, 9))


def swap_archive(path: pathlib.Path, target: pathlib.Path) -> pathlib.Path:
    """Write an archive as a big-endian machine does: typed storages swapped, others not."""
    state = torch.load(path)
    records = {"byteorder": b"big"}
    for number, tensor in enumerate(state.values()):
        words = torch.view_as_real(tensor) if tensor.is_complex() else tensor
        data = words.contiguous().view(torch.uint8)
        if tensor.dtype not in {torch.uint16, torch.float8_e4m3fn}:
            data = data.reshape(-1, words.element_size()).flip(1)
        records[f"data/{number}"] = data.numpy().tobytes()
    return rewrite_archive(path, target, records)


@pytest.mark.parametrize("compressed", [False, True])
def test_a_big_endian_archive_is_written_as_torch_loads_it(tmp_path, compressed):
    state = {
        "double": torch.arange(6.0).double(),
        "short": torch.arange(300, dtype=torch.int16),
        "complex": torch.complex(torch.arange(3.0), torch.ones(3)),
        "bfloat16": torch.arange(5.0).bfloat16(),
        "bool": torch.tensor([True, False]),
        "uint16": torch.tensor([1, 258], dtype=torch.uint16),
        "float8": torch.arange(4.0).to(torch.float8_e4m3fn),
    }
    big = swap_archive(save(tmp_path / "little.pth", state), tmp_path / "big.pth")
    if compressed:
        with (
            zipfile.ZipFile(big) as source,
            zipfile.ZipFile(tmp_path / "c.pth", "w", zipfile.ZIP_DEFLATED) as made,
        ):
            for name in source.namelist():
                made.writestr(name, source.read(name))
        big = tmp_path / "c.pth"
    loaded = torch.load(big)
    assert all(same_bits(loaded[key], tensor) for key, tensor in state.items())
    for name in ("out.pth", "out.safetensors"):
        api.convert(big, tmp_path / name)
        assert ckptool.diff(big, tmp_path / name).value_keys == ()
    written = torch.load(tmp_path / "out.pth")
    assert all(same_bits(written[key], tensor) for key, tensor in state.items())


both_pickles = pytest.mark.parametrize(
    "pickle_module", [pickle, early_pickle], ids=lambda module: module.__name__
)


@both_pickles
def test_values_under_keys_that_weights_only_refuses_are_left_out_and_named(
    tmp_path, pickle_module
):
    content = {"w": torch.ones(2), "colors": {Color.RED: 1, Color.BLUE: [2], "none": 3}}
    old = save(tmp_path / "old.pth", content, pickle_module=pickle_module)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(old)
    loaded, conversion = load_converted(old, tmp_path / "new.pth")
    assert loaded["colors"] == {"none": 3}
    left_out = list_places(conversion.left_out)
    assert len(left_out) == 2
    assert all(place.startswith("colors.") and "Color" in place for place in left_out)


@both_pickles
def test_tensors_under_keys_that_weights_only_refuses_are_named(tmp_path, pickle_module):
    content = {Color.RED: torch.ones(2), Color.BLUE: torch.zeros(2)}
    old = save(tmp_path / "old.pth", content, pickle_module=pickle_module)
    names = r"`.*Color(\(1\)|\.RED)`, `.*Color(\(2\)|\.BLUE)`"
    with pytest.raises(PlanError, match=f"would refuse {names}"):
        api.convert(old, tmp_path / "new.pth")
    assert not (tmp_path / "new.pth").exists()
    api.convert(old, tmp_path / "new.safetensors")
    assert sorted(t.sum().item() for t in load_file(tmp_path / "new.safetensors").values()) == [
        0,
        2,
    ]


KEYS = {
    "objects of a class": (Settings(), Settings()),
    "members of an enum that only their places tell apart": (Interval.SHORT, Interval.LONG),
    "frozensets": (frozenset({1}), frozenset({2})),
    "tuples of frozensets": ((1, frozenset({1})), (1, frozenset({2}))),
    "a path and its text": (pathlib.PurePosixPath("a"), "a"),
    "the text of a path and the path": ("a", pathlib.PurePosixPath("a")),
    "complex numbers": (1 + 2j, 2 + 1j),
    "bytes and their text": (b"a", "a"),
    "a number and its text": (1, "1"),
    "sizes": (torch.Size([1]), torch.Size([2])),
    "dtypes": (torch.float32, torch.int8),
}


def is_refused(tmp_path, key) -> bool:
    try:
        torch.load(save(tmp_path / "key.pth", {key: 1}))
    except pickle.UnpicklingError:
        return True
    return False


@pytest.mark.parametrize("name", KEYS)
def test_values_under_keys_that_weights_only_reads_are_kept_and_others_are_named(tmp_path, name):
    """A key that was an object was a TypeError; of two of the same name one was not looked for."""
    keys = KEYS[name]
    refused = [key for key in keys if is_refused(tmp_path, key)]
    values = dict(zip(keys, ([1], {"x": 2}), strict=True))
    old = save(tmp_path / "old.pth", {"w": torch.ones(2), "values": {**values, "last": [3]}})
    loaded, conversion = load_converted(old, tmp_path / "new.pth")
    assert loaded["values"] == {k: values[k] for k in keys if k not in refused} | {"last": [3]}
    assert len(list_places(conversion.left_out)) == len(conversion.left_out) == len(refused)


@pytest.mark.parametrize("name", KEYS)
def test_tensors_under_keys_that_weights_only_refuses_are_never_lost(tmp_path, name):
    keys = KEYS[name]
    tensors = dict(zip(keys, (torch.ones(2), torch.zeros(2)), strict=True))
    old = save(tmp_path / "old.pth", {**tensors, "w": torch.arange(2)})
    if any(is_refused(tmp_path, key) for key in keys):
        with pytest.raises(PlanError, match="would refuse"):
            api.convert(old, tmp_path / "new.pth")
        assert not (tmp_path / "new.pth").exists()
        return
    loaded, _ = load_converted(old, tmp_path / "new.pth")
    assert all(torch.equal(loaded[key], tensor) for key, tensor in tensors.items())


@pytest.mark.parametrize("name", KEYS)
def test_a_place_of_the_file_can_be_stripped_whatever_its_key_is(tmp_path, name):
    """Bytes and calls of `builtins` have another form in the pickle than in the description."""
    values = {key: [1] for key in KEYS[name]} | {Color.RED: [3]}
    old = save(tmp_path / "old.pth", {"w": torch.ones(2), "values": values, "last": 4})
    places = [entry.at for entry in open_checkpoint(old).entries if entry.at.startswith("values.")]
    assert len(places) == 3
    loaded, conversion = load_converted(old, tmp_path / "new.pth", strip=places[:2])
    assert (loaded["values"], loaded["last"]) == ({}, 4)
    reasons = {change.place: change.reason for change in conversion.left_out}
    assert [reasons.pop(place) for place in places[:2]] == ["--strip", "--strip"]
    assert reasons.keys() == {*places[2:]}


@pytest.mark.parametrize("write", [lambda content, path: save(path, content), save_dcp])
def test_a_storage_that_no_tensor_has_is_kept(tmp_path, write):
    """weights_only=True reads it; it was dropped as refused, and an error for a DCP folder."""
    content = {"w": torch.ones(2), "bytes": torch.arange(3.0).untyped_storage()}
    old = write(content, tmp_path / "old")
    loaded, conversion = load_converted(old, tmp_path / "new.pth")
    assert bytes(loaded["bytes"].untyped()) == bytes(content["bytes"])
    assert (conversion.left_out, conversion.changed) == ((), ())


def make_parameter(**attributes):
    parameter = nn.Parameter(torch.ones(2))
    vars(parameter).update(attributes)
    return parameter


@pytest.mark.parametrize(
    "tensor",
    [
        make_parameter(tag="a", range=[torch.zeros(2), 1]),
        nn.Buffer(torch.ones(2)),
        nn.Buffer(torch.ones(2), persistent=False),
    ],
    ids=["parameter", "buffer", "non-persistent"],
)
def test_attributes_that_weights_only_reads_are_kept(tmp_path, tensor):
    old = save(tmp_path / "old.pth", {"w": tensor})
    expected = torch.load(old)["w"]
    loaded, conversion = load_converted(old, tmp_path / "new.pth")
    assert type(loaded["w"]) is type(expected)
    assert repr(vars(loaded["w"])) == repr(vars(expected))
    assert (conversion.left_out, conversion.changed) == ((), ())


def test_attributes_that_weights_only_refuses_are_left_out_and_named(tmp_path):
    old = save(tmp_path / "old.pth", {"w": make_parameter(tag=Settings())})
    with pytest.raises(pickle.UnpicklingError):
        torch.load(old)
    loaded, conversion = load_converted(old, tmp_path / "new.pth")
    assert torch.equal(loaded["w"], torch.ones(2))
    assert list_places(conversion.left_out) == {"w (attributes)"}


@pytest.mark.parametrize("how", [{}, {"pickle_protocol": 4}])
def test_a_frozenset_that_becomes_a_set_is_named(tmp_path, how):
    old = save(tmp_path / "old.pth", {"w": torch.ones(2), "s": frozenset({1, 2})}, **how)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(old)
    loaded, conversion = load_converted(old, tmp_path / "new.pth")
    assert loaded["s"] == {1, 2}
    assert list_places(conversion.changed) == {"s"}


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_pickled_dict_of_arrays_becomes_tensors(tmp_path, protocol):
    arrays = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "f": np.asfortranarray(np.eye(3))}
    big = arrays["w"].astype(">f4")
    content = {"model": {**arrays, "big": big}, "epoch": 2}
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(content, protocol=protocol))
    found, _ = load_converted(tmp_path / "a.pkl", tmp_path / "b.pt")
    assert found["epoch"] == 2
    check_same_state(
        found["model"],
        {
            **{k: torch.from_numpy(a.copy()) for k, a in arrays.items()},
            "big": torch.from_numpy(arrays["w"]),
        },
    )


def test_a_module_that_two_keys_share_is_written_for_both(tmp_path):
    module = nn.Linear(2, 2)
    save(tmp_path / "a.pt", {"model": module, "ema": module, "best": nn.Linear(3, 3)})
    found, conversion = load_converted(tmp_path / "a.pt", tmp_path / "b.pt")
    assert conversion.left_out == ()
    check_same_state(found["model"], module.state_dict())
    check_same_state(found["ema"], module.state_dict())
    assert {*found["best"]} == {"weight", "bias"}


class Marked(torch.Tensor):
    pass


@pytest.mark.parametrize("how", [{}, {"_use_new_zipfile_serialization": False}])
@pytest.mark.parametrize(
    "content",
    [
        [torch.ones(2), torch.zeros(3)],
        (torch.ones(2), {"epoch": 1}),
        torch.ones(3),
        {"a": [{"w": torch.ones(1)}, {"w": torch.zeros(1)}]},
        {"w": torch.ones(2, requires_grad=True), "v": torch.eye(3).to_sparse()},
    ],
    ids=["list", "tuple", "tensor", "list of states", "kinds of tensors"],
)
def test_an_object_of_any_form_keeps_it(tmp_path, content, how):
    save(tmp_path / "a.pt", content, **how)
    found, conversion = load_converted(tmp_path / "a.pt", tmp_path / "b.pt")
    assert repr(found) == repr(content)
    assert (conversion.left_out, conversion.changed) == ((), ())


def test_a_tensor_of_a_subclass_is_a_tensor(tmp_path):
    save(tmp_path / "a.pt", {"w": torch.ones(2).as_subclass(Marked)})
    found, conversion = load_converted(tmp_path / "a.pt", tmp_path / "b.pt")
    assert type(found["w"]) is torch.Tensor
    assert torch.equal(found["w"], torch.ones(2))
    assert list_places(conversion.changed) == {"w"}


def test_ties_views_and_versions_are_kept(tmp_path):
    module = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 3))
    module[2].weight = module[0].weight
    save(tmp_path / "a.pt", {"model": module.state_dict(), "args": argparse.Namespace()})
    found, _ = load_converted(tmp_path / "a.pt", tmp_path / "b.pt", dtype="fp16")
    state = found["model"]
    assert state["0.weight"].data_ptr() == state["2.weight"].data_ptr()
    assert state._metadata == module.state_dict()._metadata


def test_the_weights_alone(tmp_path):
    content = make_training()
    content["model"]["head._extra_state"] = {"scale": 2}
    save(tmp_path / "a.pt", content)
    found, conversion = load_converted(tmp_path / "a.pt", tmp_path / "b.pt", weights_only=True)
    assert (
        found.pop("head._extra_state") == content["model"].pop("head._extra_state") == {"scale": 2}
    )
    check_same_state(found, content["model"])
    assert list_places(conversion.left_out) == {"epoch", "optimizer", "optimizer.param_groups"} or (
        list_places(conversion.left_out) == {"epoch", "optimizer"}
    )


@pytest.mark.parametrize(
    ("strip", "places"),
    [
        (["optimizer"], {"optimizer"}),
        (["model.1.*"], None),
        (["epoch", "opt*"], {"epoch", "optimizer"}),
    ],
)
def test_what_is_stripped_is_gone_and_named(tmp_path, strip, places):
    content = make_training()
    save(tmp_path / "a.pt", content)
    found, conversion = load_converted(tmp_path / "a.pt", tmp_path / "b.pt", strip=strip)
    if places is None:
        assert {*found["model"]} == {"0.weight", "0.bias"}
        return
    assert {*found} == content.keys() - places
    assert list_places(conversion.left_out) == places


def test_lists_of_optimizers_are_stripped(tmp_path):
    content = make_training()
    content["optimizer_states"] = [content.pop("optimizer")]
    save(tmp_path / "a.ckpt", content)
    found, _ = load_converted(tmp_path / "a.ckpt", tmp_path / "b.pt", strip=["optimizer"])
    assert {*found} == {"epoch", "model"}


def test_what_cannot_be_done_is_said_and_nothing_is_written(tmp_path):
    source = save(tmp_path / "a.pt", {"model": {"w": torch.ones(2)}, "ema": {"w": torch.ones(2)}})
    with pytest.raises(PlanError, match=r"`ema`.*name one with --at|`model`.*name one with --at"):
        ckptool.convert(source, tmp_path / "b.safetensors")
    with pytest.raises(PlanError, match="did you mean `model`"):
        ckptool.convert(source, tmp_path / "b.pt", strip=["modle"])
    with pytest.raises(PlanError, match="is not one of"):
        ckptool.convert(source, tmp_path / "b.pt", at="ema", dtype="int8")
    save(tmp_path / "sparse.pt", {"w": torch.eye(2).to_sparse()})
    with pytest.raises(PlanError, match="CK311"):
        ckptool.convert(tmp_path / "sparse.pt", tmp_path / "b.safetensors")
    with pytest.raises(UsageError, match="makes one file"):
        ckptool.convert(source, tmp_path / "b", merge_shards=True, max_shard_size=5)
    assert {p.name for p in tmp_path.iterdir()} == {"a.pt", "sparse.pt"}


def test_shards_are_merged_and_made(tmp_path):
    state = nn.Linear(50, 50).state_dict()
    save(tmp_path / "a.pt", state)
    ckptool.convert(tmp_path / "a.pt", tmp_path / "shards", to="pth", max_shard_size=5000)
    assert (tmp_path / "shards" / "pytorch_model.bin.index.json").exists()
    (tmp_path / "out").mkdir()
    ckptool.convert(tmp_path / "shards", tmp_path / "out", to="pth", merge_shards=True)
    check_same_state(torch.load(tmp_path / "out" / "shards.pth", weights_only=True), state)


def test_an_error_of_one_source_does_not_stop_the_others(tmp_path, run_command):
    folder = tmp_path / "runs" / "deep"
    folder.mkdir(parents=True)
    first = save(tmp_path / "first.pt", make_training())
    (tmp_path / "broken.pt").write_bytes(b"PK\x03\x04nothing")
    save(folder / "second.ckpt", make_training())
    ran = run_command(
        *("convert", first, tmp_path / "broken.pt", tmp_path / "runs", "-o", tmp_path / "out"),
        *("--weights-only", "--no-provenance", "--to", "pth"),
    )
    assert ran.code == 2
    assert "2 of 3 checkpoints converted" in ran.out
    assert "broken.pt" in ran.err
    written = {p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*.*")}
    assert written == {"first.pth", "deep/second.pth"}
    for name in written:
        assert len(torch.load(tmp_path / "out" / name, weights_only=True)) == 7


def test_sources_of_one_name_are_refused_before_anything_is_written(tmp_path):
    for name in ("a.pt", "a.ckpt"):
        save(tmp_path / name, make_training())
    with pytest.raises(UsageError, match="would both be written"):
        ckptool.convert([tmp_path / "a.pt", tmp_path / "a.ckpt"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_migrate_takes_several_sources(tmp_path):
    module = nn.Linear(2, 3)
    for name in ("a.pt", "b.pt"):
        save(tmp_path / name, {"model": module.state_dict(), "epoch": 1})
    save(tmp_path / "c.pt", {"model": nn.Linear(4, 4).state_dict()})
    report = api.migrate_many(
        [tmp_path / "a.pt", tmp_path / "b.pt", tmp_path / "c.pt"],
        tmp_path / "out",
        module="torch.nn:Linear",
        kwargs={"in_features": 2, "out_features": 3},
        to="pth",
        drop_extra=True,
        config=ProjectConfig(),
        provenance=False,
    )
    assert (report.exit_code, len(report.migrations), len(report.errors)) == (2, 2, 1)
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"a.pth", "b.pth"}
    found = torch.load(tmp_path / "out" / "a.pth", weights_only=True)
    check_same_state(found, module.state_dict())


def test_migrate_writes_the_state_alone_where_that_was_asked_for(tmp_path):
    content = make_training(args=argparse.Namespace(lr=1))
    save(tmp_path / "a.pt", content)
    (tmp_path / "plan.toml").write_text('schema = 1\n[[ops]]\nop = "extract"\nat = "model"\n')
    how = {"config": ProjectConfig()}
    ckptool.migrate(tmp_path / "a.pt", tmp_path / "b.pt", at="model", drop_extra=True, **how)
    ckptool.migrate(tmp_path / "a.pt", tmp_path / "c.pt", plan=tmp_path / "plan.toml", **how)
    for name in ("b.pt", "c.pt"):
        check_same_state(torch.load(tmp_path / name, weights_only=True), content["model"])


def test_migrate_never_writes_a_payload(tmp_path):
    marker = tmp_path / "ran"
    content = {**make_training(args=argparse.Namespace(lr=1)), "cfg": Payload(str(marker))}
    save(tmp_path / "evil.pt", content)
    report = ckptool.migrate(tmp_path / "evil.pt", tmp_path / "b.pt", config=ProjectConfig())
    assert "`cfg` (posix.system)" in " ".join(report.notes)
    found = torch.load(tmp_path / "b.pt", weights_only=False)
    assert found["args"] == argparse.Namespace(lr=1)
    assert not marker.exists()
    assert {*found} == {"epoch", "model", "optimizer", "args"}


def test_a_dry_run_says_the_same_and_writes_nothing(tmp_path):
    save(tmp_path / "a.pt", make_training(when=dt.date(2020, 1, 1)))
    planned = ckptool.convert(tmp_path / "a.pt", tmp_path / "b.pt", dry_run=True)
    assert not (tmp_path / "b.pt").exists()
    written = ckptool.convert(tmp_path / "a.pt", tmp_path / "b.pt")
    assert planned.conversions[0].left_out == written.conversions[0].left_out != ()
    assert planned.verdict.startswith("planned (dry run)")
