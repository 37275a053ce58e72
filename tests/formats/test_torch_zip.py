"""Files of torch.save: what is described equals what torch.load gives, to the bit."""

import argparse
import collections
import functools
import io
import random
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from files import content, corruption_reason, describe, described, same_bits, saved_meanwhile
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from paths import examples
from torch import nn

from ckptool.errors import CorruptCheckpointError, UnknownFormatError
from ckptool.formats.limits import Limits
from ckptool.model import DTYPE_BITS, Container, Kind, Safety, tied_keys

IS_FLOAT4_SHOWN = tuple(map(int, torch.__version__.split(".")[:2])) > (2, 8)
"""Whether a tensor of float4_e2m1fn_x2 has a repr, which hypothesis asks for."""
DTYPES = sorted(
    name
    for name in DTYPE_BITS
    if isinstance(getattr(torch, name, None), torch.dtype)
    and not name.startswith(("q", "bits", "int1", "int2", "int3", "int4", "int5", "int7"))
    and (not name.startswith("float4") or IS_FLOAT4_SHOWN)
    and name not in {"uint1", "uint2", "uint3", "uint4", "uint5", "uint6", "uint7", "int6"}
)


def filled(shape: tuple[int, ...], dtype: str, seed: int) -> torch.Tensor:
    """Return a tensor of random bits."""
    nbytes = max(1, int(np.prod(shape, dtype=int))) * DTYPE_BITS[dtype] // 8
    data = bytearray(random.Random(seed).randbytes(nbytes))
    if dtype == "bool":
        data = bytearray(b & 1 for b in data)
    flat = torch.frombuffer(data, dtype=torch.uint8).view(getattr(torch, dtype))
    return flat[: int(np.prod(shape, dtype=int))].reshape(shape)


@st.composite
def tensors(draw) -> torch.Tensor:
    shape = tuple(draw(st.lists(st.integers(0, 4), max_size=4)))
    made = filled(shape, draw(st.sampled_from(DTYPES)), draw(st.integers(0, 99)))
    view = draw(st.sampled_from(["whole", "sliced", "transposed", "expanded", "stepped"]))
    if view == "sliced" and shape and shape[0] > 1:
        made = made[1:]
    elif view == "transposed" and len(shape) > 1:
        made = made.transpose(0, -1)
    elif view == "expanded":
        made = made.unsqueeze(0).expand(2, *shape)
    elif view == "stepped" and shape:
        made = made[::2]
    floating = made.is_floating_point() and DTYPE_BITS[str(made.dtype).removeprefix("torch.")] > 8
    return nn.Parameter(made) if floating and draw(st.booleans()) else made


STATES = st.recursive(
    st.dictionaries(st.text(max_size=5), tensors(), max_size=4),
    lambda inner: st.dictionaries(st.text(max_size=5), st.one_of(inner, tensors()), max_size=3),
    max_leaves=6,
)


def leaves(node: object, at: tuple[str, ...] = ()):
    if isinstance(node, torch.Tensor):
        yield at, node
    elif isinstance(node, dict):
        for key, child in node.items():
            yield from leaves(child, (*at, key))


UNTYPED = {"uint16", "uint32", "uint64", "complex32"}
"""dtypes without a typed storage, as the small floats: torch cannot load its own legacy files."""


@pytest.mark.filterwarnings("ignore:ComplexHalf")
@settings(suppress_health_check=[HealthCheck.too_slow], max_examples=examples(120))
@given(STATES, st.booleans(), st.sampled_from([2, 3, 4, 5]))
def test_what_is_described_is_what_torch_loads(state, zipped, protocol):
    dtypes = {str(tensor.dtype).removeprefix("torch.") for _, tensor in leaves(state)}
    assume(zipped or not any(name in UNTYPED or name.startswith("float8") for name in dtypes))
    assume(zipped or not any(name.startswith("float4") for name in dtypes))
    with saved_meanwhile(
        state, _use_new_zipfile_serialization=zipped, pickle_protocol=protocol
    ) as path:
        expected = dict(leaves(torch.load(path, weights_only=False)))
        assume(expected)
        checkpoint = describe(path)
        found = {
            (*place_of(checkpoint_state.at, expected, key), key): tensor
            for checkpoint_state in checkpoint.states
            for key, tensor in checkpoint_state.tensors.items()
        }
        assert sorted(found) == sorted(expected)
        for at, tensor in found.items():
            want = expected[at]
            assert tensor.shape == tuple(want.shape)
            assert tensor.dtype == str(want.dtype).removeprefix("torch.")
            assert tensor.stride == want.stride()
            assert tensor.storage_offset == want.storage_offset()
            assert tensor.requires_grad == want.requires_grad
            assert (tensor.kind is Kind.PARAMETER) == isinstance(want, nn.Parameter)
            assert tensor.storage.nbytes == want.untyped_storage().nbytes()
            assert same_bits(content(tensor), want)
        shared = {
            frozenset(at for at in expected if same_storage(expected[at], expected[other]))
            for other in expected
        }
        described_as = {
            frozenset(at for at in found if found[at].storage == found[other].storage)
            for other in found
        }
        assert {group for group in shared if len(group) > 1} == {
            group for group in described_as if len(group) > 1
        }


def place_of(at: str, expected: dict, key: str) -> tuple[str, ...]:
    """Return the path that a dotted place stands for."""
    return next(path[:-1] for path in expected if ".".join(path[:-1]) == at and path[-1] == key)


def same_storage(one: torch.Tensor, other: torch.Tensor) -> bool:
    where = [t.untyped_storage().data_ptr() for t in (one, other)]
    return one is other or (where[0] == where[1] != 0)


@pytest.mark.filterwarnings("ignore:ComplexHalf")  # once a process, whichever test is first
@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes(dtype):
    made = (
        torch.zeros(3, dtype=torch.uint8).view(getattr(torch, dtype))
        if DTYPE_BITS[dtype] == 8
        else torch.zeros(3, dtype=getattr(torch, dtype))
    )
    found = described({"w": made}).states[0].tensors["w"]
    assert (found.dtype, found.shape, found.nbytes) == (
        dtype,
        (3,),
        made.untyped_storage().nbytes(),
    )


def test_ties_and_views_share_a_storage():
    whole = torch.arange(12.0).reshape(3, 4)
    state = {"a": whole, "b": whole, "t": whole.t(), "row": whole[1], "other": torch.ones(2)}
    found = described(state).states[0].tensors
    assert found["a"].storage == found["b"].storage == found["row"].storage
    assert found["a"].storage != found["other"].storage
    assert tied_keys(found.values()) == (("a", "b"),)
    assert (found["row"].storage_offset, found["row"].span.nbytes) == (4, 16)
    assert found["t"].span is None


def test_a_lone_tensor_and_a_list():
    lone = described(torch.ones(2)).states
    listed = described([torch.ones(1), 3, torch.ones(2)]).states
    assert [(s.at, s.role, list(s.tensors)) for s in lone] == [("", "tensors", [""])]
    assert [(s.at, s.role, list(s.tensors)) for s in listed] == [("", "tensors", ["0", "2"])]
    assert listed[0].non_tensors == {"1": "3"}


def test_keys_that_are_no_strings():
    found = described({1: torch.ones(1), "1": torch.ones(2), None: torch.ones(3)}).states[0]
    assert [t.shape for t in found.tensors.values()] == [(1,), (2,), (3,)]
    assert list(found.tensors) == ["1", "1'", "None"]


def test_versions_are_kept():
    module = nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1))
    expected = {k: v["version"] for k, v in module.state_dict()._metadata.items()}
    for zipped in (True, False):
        state = described(module.state_dict(), _use_new_zipfile_serialization=zipped).states[0]
        assert state.versions == expected == {"": 1, "0": 1, "1": 2}
    assert described(dict(module.state_dict())).states[0].versions is None


def test_extra_state_is_named():
    state = OrderedDict(w=torch.ones(1), _extra_state=None, n=3, s="x", b=b"abc", e={"a": 1})
    found = described(state)
    assert found.states[0].non_tensors == {
        "_extra_state": "None", "n": "3", "s": "'x'", "b": "bytes of 3", "e": "dict of 1",
    }  # fmt: skip
    assert [(e.at, e.value) for e in found.entries] == [("e", {"a": 1})]


def test_a_training_checkpoint():
    model = nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.5)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    found = described(
        {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3, "best": 0.5}
    )
    assert [(s.at, s.role) for s in found.states] == [
        ("model", "state_dict"),
        ("optimizer", "optimizer"),
    ]
    assert list(found.states[1].tensors)[:3] == [
        "state.0.step",
        "state.0.exp_avg",
        "state.0.exp_avg_sq",
    ]
    entries = {entry.at: entry.value for entry in found.entries}
    assert entries["epoch"] == 3
    assert entries["best"] == 0.5
    assert entries["optimizer.param_groups"][0]["lr"] == 0.5
    assert entries["optimizer.param_groups"][0]["params"] == [0, 1]


def test_an_optimizer_without_state_is_still_one():
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.1)
    found = described({"m": torch.ones(1), "o": {"sgd": optimizer.state_dict()}})
    assert [(s.at, s.role, len(s.tensors)) for s in found.states][1:] == [("o.sgd", "optimizer", 0)]


class AttributeDict(dict):
    """As Lightning's: a dict that is no dict to a pickle."""


@pytest.mark.parametrize(
    "parameters",
    [
        {"lr": 0.1, "layers": [1, 2], "name": "x", "nested": {"a": None}},
        AttributeDict(lr=0.1, layers=[1, 2], name="x", nested={"a": None}),
        argparse.Namespace(lr=0.1, layers=(1, 2), name="x", nested={"a": None}),
        OrderedDict(lr=0.1, layers=[1, 2], name="x", nested=OrderedDict(a=None)),
        AttributeDict(lr=np.float64(0.1), layers=[1, 2], name="x", nested={"a": None}),
    ],
    ids=["dict", "AttributeDict", "Namespace", "OrderedDict", "numpy"],
)
def test_hyper_parameters_are_recovered(parameters):
    found = described({"state_dict": {"w": torch.ones(1)}, "hyper_parameters": parameters})
    values = {entry.at: entry.value for entry in found.entries}
    assert values["hyper_parameters"] == {
        "lr": 0.1, "layers": [1, 2], "name": "x", "nested": {"a": None},
    }  # fmt: skip
    assert all(use.safety is not Safety.DANGEROUS for use in found.globals)


def test_entries_are_printable_and_bounded():
    found = described(
        {"w": {"w": torch.ones(1)}, "s": "\x1b[2J" * 99, "v": {f"t{i}": i for i in range(20_000)},
         "n": 2**5000, "l": [[i] for i in range(30_000)], "device": torch.device("cuda", 1),
         "dtype": torch.float16, "size": torch.Size([1, 2]), "path": Path("/a/b"), "c": 1j}
    )  # fmt: skip
    by_place = {entry.at: entry for entry in found.entries}
    assert all(entry.text.isprintable() and len(entry.text) < 400 for entry in found.entries)
    assert by_place["v"].text == "dict of 20000"
    assert by_place["l"].text == "list of 30000"
    assert by_place["n"].text == "a number of 5001 bits"
    assert by_place["device"].value == "cuda:1"
    assert by_place["dtype"].value == "torch.float16"
    assert by_place["size"].value == [1, 2]
    assert by_place["path"].value == "/a/b"
    assert by_place["c"].value == "1j"
    assert found.skipped == ()


def test_there_is_an_end_to_entries():
    many = {f"k{i}": {f"j{j}": b"x" for j in range(100)} for i in range(150)}
    found = described({"w": {"w": torch.ones(1)}, "many": many})
    assert len(found.entries) == 10_000
    assert [s.what for s in found.skipped] == ["entries"]


@pytest.mark.parametrize(
    ("value", "number"),
    [(np.float64(1.5), 1.5), (np.float32(0.5), 0.5), (np.int64(-3), -3), (np.uint8(7), 7),
     (np.bool_(True), True), (np.float16(2.0), 2.0)],
    ids=str,
)  # fmt: skip
def test_numpy_numbers_are_numbers(value, number):
    found = described({"w": {"w": torch.ones(1)}, "best": value})
    assert [(e.at, e.value) for e in found.entries] == [("best", number)]
    assert {u.at for u in found.globals if u.safety is Safety.UNKNOWN} == {"best"}


class Net(nn.Module):
    """Holds tensors in every way that a state_dict() leaves out."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(2, 2)
        self.norm = nn.BatchNorm1d(2)
        self.register_buffer("table", torch.arange(3.0))
        self.register_buffer("cache", torch.arange(4.0), persistent=False)
        self.register_buffer("later", None)
        self.register_parameter("no_bias", None)
        self.mask = torch.triu(torch.ones(3, 3))
        self.scales = [torch.ones(1), torch.ones(2)]
        self.banks = {"k": torch.ones(3), 1: (torch.ones(4),)}
        self.convs = [nn.Conv1d(1, 1, 1)]
        self.means = np.zeros((2, 3), dtype=np.float32)
        self.__dict__["alias"] = self.fc.weight
        self.view = self.fc.weight[0]
        self.queue = collections.deque([torch.ones(5)])
        self.config = argparse.Namespace(mean=torch.ones(6), name="x")
        self.width = 7


def test_a_pickled_module():
    module = Net()
    expected = module.state_dict()
    found = described(module)
    (state,) = found.states
    assert (state.at, state.role, found.container) == ("", "module", Container.TORCH_ZIP)
    assert list(state.tensors) == list(expected)
    assert {k: t.kind for k, t in state.tensors.items()} == {
        k: Kind.PARAMETER if k in dict(module.named_parameters()) else Kind.BUFFER for k in expected
    }
    assert {path: (t.kind, t.shape) for path, t in state.unsaved_tensors.items()} == {
        "cache": (Kind.NON_PERSISTENT_BUFFER, (4,)),
        "mask": (Kind.ATTRIBUTE, (3, 3)),
        "scales[0]": (Kind.CONTAINER, (1,)),
        "scales[1]": (Kind.CONTAINER, (2,)),
        "banks['k']": (Kind.CONTAINER, (3,)),
        "banks[1][0]": (Kind.CONTAINER, (4,)),
        "convs[0].weight": (Kind.MODULE, (1, 1, 1)),
        "convs[0].bias": (Kind.MODULE, (1,)),
        "means": (Kind.ARRAY, (2, 3)),
        "queue[0]": (Kind.CONTAINER, (5,)),
        "config.mean": (Kind.CONTAINER, (6,)),
    }
    assert same_bits(content(state.unsaved_tensors["mask"]), module.mask)
    assert state.unsaved_tensors["means"].dtype == "float32"
    assert {p: m.name for p, m in state.modules.items()} == {
        "": f"{__name__}.Net",
        "fc": "torch.nn.modules.linear.Linear",
        "norm": "torch.nn.modules.batchnorm.BatchNorm1d",
    }
    assert {"width", "fc", "weight", "table"} - state.modules[""].attributes == {"weight"}
    assert "weight" in state.modules["fc"].attributes
    assert {use.at for use in found.globals if use.name == "Net"} == {""}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "module",
    [
        nn.LSTM(2, 2, num_layers=2, bidirectional=True),
        nn.utils.weight_norm(nn.Linear(2, 2)),
        nn.utils.spectral_norm(nn.Linear(2, 2)),
        nn.MultiheadAttention(4, 2),
        nn.DataParallel(nn.Linear(2, 2)),
        nn.ModuleDict({"a": nn.ModuleList([nn.Linear(1, 1), nn.Embedding(2, 2)])}),
        nn.ParameterList([torch.ones(1), torch.ones(2)]),
        nn.ParameterDict({"a": torch.ones(1)}),
        nn.TransformerEncoderLayer(4, 2),
        nn.Sequential(nn.PReLU(), nn.GroupNorm(1, 2), nn.InstanceNorm1d(2, affine=True)),
    ],
    ids=lambda module: type(module).__name__,
)
@pytest.mark.filterwarnings("ignore")
def test_torchs_own_modules_have_nothing_unsaved(module):
    expected = module.state_dict()
    found = described(module)
    (state,) = found.states
    assert list(state.tensors) == list(expected)
    assert state.unsaved_tensors == {}
    assert all(same_bits(content(state.tensors[key]), expected[key]) for key in expected)


def test_modules_anywhere():
    shared = nn.Linear(1, 1)
    found = described({"model": shared, "epoch": 3, "ema": [nn.Linear(2, 2)], "twice": shared})
    assert [(s.at, s.role) for s in found.states] == [("ema.0", "module"), ("model", "module")]
    assert {e.at for e in found.entries} == {"epoch"}


class Cyclic(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(1, 1)
        self.parent = [self]
        self.chain = functools.partial(self.forward)


def test_a_module_that_refers_to_itself():
    state = described({"m": Cyclic()}).states[0]
    assert (list(state.tensors), state.unsaved_tensors) == (["fc.weight", "fc.bias"], {})


def test_the_ema_object_of_a_checkpoint():
    class_ = type("Ema", (), {"__module__": __name__, "__qualname__": "Ema"})
    globals()["Ema"] = class_
    ema = class_()
    ema.shadow, ema.decay = {"w": torch.ones(2)}, 0.9
    found = described({"ema": ema})
    assert [(s.at, s.role, list(s.tensors)) for s in found.states] == [
        ("ema.shadow", "state_dict", ["w"])
    ]
    assert ("ema.decay", 0.9) in [(e.at, e.value) for e in found.entries]


@pytest.mark.parametrize("layout", ["coo", "csr", "csc", "bsr", "bsc"])
@pytest.mark.filterwarnings("ignore:.*[Ss]parse.*")
def test_sparse_tensors(layout):
    dense = torch.eye(4)
    made = (
        dense.to_sparse()
        if layout == "coo"
        else getattr(dense, f"to_sparse_{layout}")(*([(2, 2)] if layout.startswith("b") else []))
    )
    found = described({"w": made}).states[0].tensors["w"]
    assert (found.layout, found.shape, found.dtype) == (f"sparse_{layout}", (4, 4), "float32")
    names = {"coo": ["indices", "values"], "csr": ["crow_indices", "col_indices", "values"]}
    if layout in names:
        assert [part.name for part in found.parts] == names[layout]
    assert same_bits(
        content(found.parts[-1].tensor), made.values() if layout != "coo" else made._values()
    )
    assert found.nbytes == sum(part.tensor.nbytes for part in found.parts)


@pytest.mark.filterwarnings("ignore")
def test_quantized_tensors():
    per_tensor = torch.quantize_per_tensor(torch.ones(2, 3), 0.5, 0, torch.qint8)
    per_channel = torch.quantize_per_channel(
        torch.ones(2, 3), torch.ones(2).double(), torch.zeros(2).long(), 0, torch.quint8
    )
    found = described({"a": per_tensor, "b": per_channel}).states[0].tensors
    assert [(t.layout, t.dtype, t.shape) for t in found.values()] == [
        ("quantized", "qint8", (2, 3)),
        ("quantized", "quint8", (2, 3)),
    ]
    names = ["values", "scales", "zero_points"]
    assert [part.name for part in found["a"].parts] == names
    assert [part.name for part in found["b"].parts] == [*names, "axis"]
    assert found["a"].nbytes == 6


@pytest.mark.filterwarnings("ignore")
def test_other_tensors():
    conj = torch.ones(2, dtype=torch.complex64).conj()
    found = described(
        {
            "meta": torch.empty(3, 4, device="meta"),
            "conj": conj,
            "neg": torch.ones(2, dtype=torch.complex64).conj().imag,
            "nested": torch.nested.nested_tensor([torch.ones(1), torch.ones(2)]),
            "buffer": nn.Buffer(torch.ones(2)),
        }
    ).states[0].tensors  # fmt: skip
    assert (found["meta"].device, found["meta"].shape, found["meta"].span) == ("meta", (3, 4), None)
    assert (found["conj"].layout, found["conj"].span) == ("conj", None)
    assert found["neg"].layout == "neg"
    assert found["nested"].layout == "nested"
    assert found["nested"].parts[0].name == "buffer"
    assert found["buffer"].wrapper in {"", "torch.nn.parameter.Buffer"}


class Marked(torch.Tensor):
    pass


def test_a_tensor_subclass_is_named():
    found = described({"w": torch.ones(2).as_subclass(Marked)})
    tensor = found.states[0].tensors["w"]
    assert (tensor.wrapper, tensor.shape) == (f"{__name__}.Marked", (2,))
    assert {use.at for use in found.globals if use.name == "Marked"} == {"w"}


def test_a_tensor_with_attributes_is_a_tensor():
    weight = nn.Parameter(torch.ones(2))
    weight.note = "x"
    plain = torch.ones(3)
    plain.note = "y"
    found = described({"p": weight, "t": plain}).states[0].tensors
    assert [(t.kind, t.wrapper) for t in found.values()] == [(Kind.PARAMETER, ""), (None, "")]


def test_names_and_their_places():
    found = described({"a": {"w": torch.ones(1)}, "b": [{"c": argparse.Namespace(x=1)}]})
    uses = {use.qualified_name: (use.safety, use.at) for use in found.globals}
    assert uses["argparse.Namespace"] == (Safety.UNKNOWN, "b.0.c")
    assert uses["torch._utils._rebuild_tensor_v2"] == (Safety.SAFE, "")


class Runs:
    def __reduce__(self):
        import os

        return os.system, ("true",)


def test_a_payload_is_named_and_the_rest_described():
    found = described({"w": torch.ones(2), "x": {"y": Runs()}})
    assert list(found.states[0].tensors) == ["w"]
    assert [(u.qualified_name, u.at) for u in found.globals if u.safety is Safety.DANGEROUS] == [
        ("posix.system", "x.y")
    ]
    assert found.damage == ""


# -- the archive ----------------------------------------------------------------------


@pytest.fixture
def archive(tmp_path):
    """Return a small file of torch.save, and a function that rewrites its members."""
    path = tmp_path / "model.pt"
    torch.save({"w": torch.arange(6.0), "v": torch.ones(2)}, path)
    return path


def members(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as opened:
        return {name: opened.read(name) for name in opened.namelist()}


def rewrite(path: Path, content: dict[str, bytes] | list, method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as made:
        for name, data in content.items() if isinstance(content, dict) else content:
            made.writestr(zipfile.ZipInfo(name) if method == 0 else name, data)
    return path


def test_small_records_are_metadata(archive):
    found = describe(archive).metadata
    assert {k: found[k] for k in ("version", "byteorder")} == {
        "version": "3",
        "byteorder": "little",
    }


def test_an_archive_written_again_is_read(archive):
    expected = {k: content(t) for k, t in describe(archive).states[0].tensors.items()}
    again = describe(rewrite(archive, members(archive))).states[0].tensors
    assert all(same_bits(content(again[k]), expected[k]) for k in expected)


def test_a_deflated_archive_is_described_without_spans(archive):
    found = describe(rewrite(archive, members(archive), zipfile.ZIP_DEFLATED))
    assert [(t.shape, t.span) for t in found.states[0].tensors.values()] == [
        ((6,), None),
        ((2,), None),
    ]


def test_folders_in_an_archive_are_nothing(archive):
    listed = [("model/", b""), *members(archive).items(), ("model/data/", b"")]
    assert describe(rewrite(archive, listed)).states[0].tensors


def test_big_endian_is_kept(archive):
    found = describe(rewrite(archive, {**members(archive), "model/byteorder": b"big"}))
    tensor = found.states[0].tensors["w"]
    assert (tensor.storage.byteorder, tensor.span) == ("big", None)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"model/byteorder": b"middle"}, "its byteorder record is 'middle'"),
        ({"model/data/0": b"1234"}, "storage '0' should have 24 bytes but has 4"),
        ({"model/data/0": None}, "storage '0' is missing"),
        ({"model/data.pkl": b"\x80\x02N"}, "ends before its STOP"),
        ({"model/data.pkl": b"\x80\x02NN0.N."}, "2 bytes follow"),
        ({"../x": b"x"}, "'../x': it is outside the archive"),
        ({"/x": b"x"}, "'/x': it is outside the archive"),
        ({"a/../x": b"x"}, "it is outside the archive"),
        ({"C:/x": b"x"}, "it is outside the archive"),
        ({"a\\b": b"x"}, "it is outside the archive"),
        ({"model/DATA.PKL": b"x"}, "are the same name"),
        ({"other/data.pkl": b"\x80\x02N."}, "contains 2 data.pkl files"),
        ({"model/version": b"3" * 500}, "has 500 bytes"),
    ],
)
def test_archives_that_contradict_themselves(archive, change, reason):
    changed = {**members(archive), **change}
    kept = {name: data for name, data in changed.items() if data is not None}
    assert reason in corruption_reason(describe, rewrite(archive, kept))


@pytest.mark.parametrize("version", [None, b"0", b"11", b"three"])
def test_a_version_that_torch_refuses_is_refused(archive, version):
    kept = {n: d for n, d in members(archive).items() if not n.endswith("/version")}
    path = rewrite(archive, kept if version is None else {**kept, "model/version": version})
    with pytest.raises(RuntimeError):
        torch.load(path)
    assert "version" in describe(path).load_refusal


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_twice_is_refused(archive):
    listed = [*members(archive).items(), ("model/data/0", bytes(24))]
    assert "appears twice" in corruption_reason(describe, rewrite(archive, listed))


def test_a_symlink_is_refused(archive):
    with zipfile.ZipFile(archive, "a") as opened:
        link = zipfile.ZipInfo("model/link")
        link.external_attr = 0o120777 << 16
        opened.writestr(link, "/etc/hostname")
    assert "is a link" in corruption_reason(describe, archive)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_compression_is_refused(archive, method):
    assert "compressed by method" in corruption_reason(
        describe, rewrite(archive, members(archive), method)
    )


def patched(path: Path, where: int, new: bytes) -> Path:
    data = bytearray(path.read_bytes())
    data[where : where + len(new)] = new
    path.write_bytes(data)
    return path


def directory(path: Path) -> int:
    """Return where the directory starts."""
    with zipfile.ZipFile(path) as opened:
        return opened.start_dir


@pytest.mark.parametrize(
    ("offset", "new", "reason"),
    [
        (8, b"\x09\x08", "encrypted or patched"),
        (8, b"\x28\x08", "encrypted or patched"),
        (10, b"\x0c\0", "compressed by method 12"),
        (16, b"\1\2\3\4", "after its data"),
        (20, b"\xff\xff\0\0", "with two sizes"),
        (34, b"\1\0", "on another disk"),
        (42, b"\1\0\0\0", "precede the archive"),
        (46, b"X", "in its local header"),
    ],
)
def test_a_directory_that_was_changed_is_refused(archive, offset, new, reason):
    assert reason in corruption_reason(describe, patched(archive, directory(archive) + offset, new))


@pytest.mark.parametrize(
    ("offset", "new", "reason"),
    [
        (0, b"PK\3\5", "no local header"),
        (6, b"\x09\x08", "differently in its local header"),
        (8, b"\x08\0", "differently in its local header"),
        (18, b"\7\0\0\0", "differently in its local header"),
        (26, b"\xff\xff", "no local header"),
        (30, b"X", "in its local header"),
    ],
)
def test_a_local_header_that_was_changed_is_refused(archive, offset, new, reason):
    data = archive.read_bytes()
    second = data.index(b"PK\3\4", 4)
    assert reason in corruption_reason(describe, patched(archive, second + offset, new))


@pytest.mark.parametrize(
    ("where", "new", "reason"),
    [(-22, b"PK\5\7", "truncated"), (-14, b"\1\0", "several disks"),
     (-12, b"\1\0", "several disks"), (-10, b"\0\0\0\0", "two end records disagree"),
     (-6, b"\0\0\0\0", "two end records disagree"),
     (-42, b"PK\6\6", "between its directory and its end")],
)  # fmt: skip
def test_an_end_that_was_changed_is_refused(archive, where, new, reason):
    assert reason in corruption_reason(
        describe, patched(archive, archive.stat().st_size + where, new)
    )


def test_what_surrounds_an_archive_is_refused(archive):
    data = archive.read_bytes()
    archive.write_bytes(data + b"\0")
    assert "truncated" in corruption_reason(describe, archive)
    archive.write_bytes(data[:-2] + b"\x03\0abc")
    assert "comment" in corruption_reason(describe, archive)
    start = directory_of(data)
    archive.write_bytes(data[:start] + b"hole" + data[start:])
    assert corruption_reason(describe, archive)


def directory_of(data: bytes) -> int:
    return zipfile.ZipFile(io.BytesIO(data)).start_dir


def test_every_cut_is_refused(archive):
    data = archive.read_bytes()
    for end in range(4, len(data), 7):
        archive.write_bytes(data[:end])
        corruption_reason(describe, archive)


def test_a_flipped_bit_in_a_storage_is_found(archive):
    span = describe(archive).states[0].tensors["w"].span
    patched(archive, span.offset + 3, b"\x01")
    assert "does not match its checksum" in corruption_reason(describe, archive)
    large = Limits(checked_bytes=10)
    assert [s.what for s in describe(archive, large).skipped] == ["checksums of the storages"]
    assert "does not match" in corruption_reason(
        describe, archive, Limits(checked_bytes=10, deep=True)
    )


def test_a_flipped_bit_in_the_pickle_is_always_found(archive):
    place = archive.read_bytes().index(b"storage")
    patched(archive, place, b"S")
    assert "does not match its checksum" in corruption_reason(
        describe, archive, Limits(checked_bytes=10)
    )


def test_checksums_that_were_never_computed_are_said(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"w": torch.ones(3)}, tmp_path / "x.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    found = describe(tmp_path / "x.pt")
    assert [(s.what, "written without one" in s.reason) for s in found.skipped] == [
        ("checksums", True)
    ]


def test_a_bomb_is_refused_before_it_unfolds(archive):
    bomb = {**members(archive), "model/data.pkl": b"N0" * (4 << 20) + b"N."}
    assert "would decompress" in corruption_reason(
        describe, rewrite(archive, bomb, zipfile.ZIP_DEFLATED)
    )
    assert "more than any pickle" in corruption_reason(
        describe, rewrite(archive, bomb), Limits(pickle_bytes=1 << 20)
    )


def test_too_many_members_are_refused(archive):
    assert "members" in corruption_reason(describe, archive, Limits(zip_members=3))


EVIL = b"\x80\x02cposix\nsystem\nU\x04true\x85R."


@pytest.mark.parametrize("name", ["model/config.p", "model/data/77"])
def test_a_pickle_that_nothing_refers_to_is_looked_at(archive, name):
    found = describe(rewrite(archive, {**members(archive), name: EVIL}))
    assert [(u.qualified_name, u.at) for u in found.globals if u.safety is Safety.DANGEROUS] == [
        ("posix.system", f"record {name}")
    ]
    assert found.states[0].tensors


def test_a_record_that_nothing_refers_to_is_said(archive):
    found = describe(rewrite(archive, {**members(archive), "model/notes.txt": b"class A:\nb\n"}))
    assert [s.reason for s in found.skipped] == ["nothing refers to notes.txt"]
    assert all(use.safety is Safety.SAFE for use in found.globals)


@pytest.mark.parametrize(
    "change",
    [
        {"model/data.pkl": EVIL[:-1]},
        {"model/data.pkl": EVIL + b"N."},
        {"model/data.pkl": EVIL, "model/DATA.PKL": b"N."},
        {"model/data.pkl": b"N.", "model/DATA.PKL": EVIL},
        {"model/data.pkl": EVIL, "../x": b""},
        {"model/data.pkl": EVIL, "model/byteorder": b"?"},
    ],
)
def test_a_broken_file_still_names_its_payload(archive, change):
    found = describe(rewrite(archive, {**members(archive), **change}))
    assert found.damage
    assert [u.qualified_name for u in found.globals if u.safety is Safety.DANGEROUS] == [
        "posix.system"
    ]


def test_tensor_bytes_that_look_like_a_pickle_are_tensor_bytes(tmp_path):
    data = torch.frombuffer(bytearray(EVIL), dtype=torch.uint8)
    torch.save({"w": data}, tmp_path / "x.pt")
    found = describe(tmp_path / "x.pt")
    assert all(use.safety is Safety.SAFE for use in found.globals)


def test_other_archives_are_not_ours(tmp_path):
    path = rewrite(tmp_path / "x.zip", {"a.txt": b"hello"})
    with pytest.raises(UnknownFormatError, match=r"without data\.pkl"):
        describe(path)
    assert "two" not in (tmp_path / "x.zip").name


def view(numel, offset, size, stride, key="0", cls="FloatStorage", location="cpu", rank=None):
    """Return a data.pkl that rebuilds one tensor from these numbers."""

    def number(n):
        return b"\x8a\x09" + n.to_bytes(9, "little", signed=True)

    def text(s):
        return b"X" + struct.pack("<I", len(s)) + s.encode()

    def several(ns):
        return b"(" + b"".join(map(number, ns)) + b"t"

    storage = b"(" + text("storage") + f"ctorch\n{cls}\n".encode()
    storage += (text(key) if isinstance(key, str) else number(key)) + text(location)
    storage += number(numel) + b"tQ"
    return (
        b"\x80\x02}" + text("w") + b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage
        + number(offset) + several(size) + several(stride)
        + b"\x89ccollections\nOrderedDict\n)RtRs."
    )  # fmt: skip


@pytest.mark.parametrize(
    ("numbers", "reason"),
    [
        ({}, ""),
        ({"numel": 7}, "should have 28 bytes but has 24"),
        ({"numel": -6}, "claims to have -6 elements"),
        ({"numel": 1 << 70}, "claims to have"),
        ({"cls": "LongStorage", "numel": 3, "size": (3,)}, ""),
        ({"cls": "LongStorage"}, "should have 48 bytes"),
        ({"cls": "Generator"}, "unknown class: 'torch.Generator'"),
        ({"key": 0}, "key is a int"),
        ({"key": "9"}, "storage '9' is missing"),
        ({"key": "../data/0"}, "is missing"),
        ({"location": "cuda:0"}, ""),
        ({"location": "\x1b[2J"}, "has an unknown location tag"),
        ({"offset": -1}, "starts at element -1"),
        ({"offset": 1}, "uses element 6 of a storage with 6"),
        ({"offset": 5, "size": (1,)}, ""),
        ({"offset": 9, "size": (0,)}, ""),
        ({"size": (7,)}, "uses element 6"),
        ({"size": (-1,)}, "has the size [-1]"),
        ({"size": (2, 3), "stride": (3, 1)}, ""),
        ({"size": (2, 3), "stride": (1,)}, "the size [2, 3] and the stride [1]"),
        ({"size": (2, 3), "stride": (100, 1)}, "uses element 102"),
        ({"size": (2,), "stride": (-1,)}, "the stride [-1]"),
        ({"size": (1 << 40,), "stride": (0,)}, "bytes in full"),
        ({"size": (1 << 62, 1 << 62), "stride": (0, 0)}, "bytes in full"),
        ({"size": (1,) * 65, "stride": (1,) * 65}, "65 dimensions"),
        ({"size": (1,) * 64, "stride": (1,) * 64}, ""),
    ],
    ids=str,
)
def test_the_numbers_of_a_tensor(tmp_path, numbers, reason):
    wanted = {"numel": 6, "offset": 0, "size": (6,), "stride": (1,), **numbers}
    path = rewrite(
        tmp_path / "x.pt", {"x/data.pkl": view(**wanted), "x/data/0": bytes(24), "x/version": b"3"}
    )
    if reason:
        assert reason in corruption_reason(describe, path)
    else:
        assert describe(path).states[0].tensors["w"].shape == wanted["size"]


def test_nothing_nests_without_end(tmp_path):
    for pickle in (b"N" + b"\x85" * 100_000 + b".", b"](" * 20_000 + b"."):
        path = rewrite(tmp_path / "x.pt", {"x/data.pkl": pickle, "x/version": b"3"})
        with pytest.raises(CorruptCheckpointError):
            describe(path)


def test_shared_lists_are_entered_once(tmp_path):
    doubled = b"]q\0" + b"".join(b"](h%ch%ceq%c0" % (n, n, n + 1) for n in range(60)) + b"h\x3c."
    content = {"x/data.pkl": b"\x80\x02" + doubled, "x/data/0": bytes(4), "x/version": b"3"}
    assert len(describe(rewrite(tmp_path / "x.pt", content)).entries) < 100


def test_without_tensors_and_without_storages_it_is_no_checkpoint(tmp_path):
    strings = b"\x80\x02}U\x01aU\x0ecposix\nsystem\ns."
    bare = {"x/data.pkl": strings, "x/version": b"3"}
    assert (
        corruption_reason(describe, rewrite(tmp_path / "x.pt", bare))
        == "contains no tensors, but a dict with `a`"
    )
    odd = describe(rewrite(tmp_path / "x.pt", {**bare, "x/data/0": bytes(4)}))
    assert [(e.at, e.value) for e in odd.entries] == [("", {"a": "cposix\nsystem\n"})]
    assert (odd.globals, odd.skipped[-1].reason) == ((), "nothing refers to data/0")


@pytest.mark.parametrize("name", ["a,b:c%.pth", "12:30.pth", "C:x.pth"])
def test_a_file_whose_name_has_a_colon_is_read(tmp_path, name):
    """torch.save calls the archive's folder like the file."""
    torch.save({"w": torch.ones(2)}, tmp_path / name)
    assert list(describe(tmp_path / name).states[0].tensors) == ["w"]
