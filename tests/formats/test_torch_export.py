"""Archives of torch.export.save: what is described equals the loaded program's state_dict."""

import json
import zipfile

import pytest
import torch
from files import content, describe, rewrite_archive, same_bits
from torch import nn

from ckptool.errors import CorruptCheckpointError
from ckptool.model import Container, Kind, Safety

pytestmark = pytest.mark.filterwarnings("ignore")
EVIL = b"\x80\x02cposix\nsystem\nU\x04true\x85R."


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(2, 2)
        self.norm = nn.BatchNorm1d(2)
        self.tied = self.fc.weight
        self.register_buffer("offset", torch.ones(2, dtype=torch.bfloat16))
        self.register_buffer("cache", torch.ones(2), persistent=False)
        self.mask = torch.triu(torch.ones(3, 3))

    def forward(self, x):
        x = self.norm(self.fc(x)) + self.mask.sum() + self.cache + self.tied.sum()
        return x + self.offset


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    path = tmp_path_factory.mktemp("export") / "net.pt2"
    torch.export.save(torch.export.export(Net().eval(), (torch.ones(2, 2),)), path)
    with zipfile.ZipFile(path) as archive:
        if not any(name.endswith("model_weights_config.json") for name in archive.namelist()):
            pytest.skip("this torch exports the weights as one pickle")
    return path


def test_a_program(program):
    expected = torch.export.load(program).state_dict
    found = describe(program)
    (state,) = found.states
    assert (found.container, state.role, state.at) == (Container.TORCH_EXPORT, "module", "")
    assert sorted(state.tensors) == sorted(expected)
    assert all(same_bits(content(state.tensors[key]), expected[key]) for key in expected)
    assert state.tensors["fc.weight"].storage == state.tensors["tied"].storage
    assert state.tensors["fc.weight"].kind is Kind.PARAMETER
    assert state.tensors["norm.running_mean"].kind is Kind.BUFFER
    assert {key: t.shape for key, t in state.unsaved_tensors.items()} == {
        "cache": (2,),
        "mask": (3, 3),
    }
    assert all(use.safety is Safety.SAFE for use in found.globals)
    assert found.skipped == ()


CONFIG = "data/weights/model_weights_config.json"


def config(path, **change) -> bytes:
    """Return the configuration of the weights with `fc.weight` described otherwise."""
    with zipfile.ZipFile(path) as source:
        content = json.loads(source.read(f"net/{CONFIG}"))
    entry = content["config"]["fc.weight"]
    for key, value in change.items():
        (entry if key in entry else entry["tensor_meta"])[key] = value
    return json.dumps(content).encode()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"sizes": [{"as_int": 9}, {"as_int": 2}]}, "of a storage with"),
        ({"sizes": [{"as_name": "s0"}]}, "has the size"),
        ({"sizes": 3}, "has the size"),
        ({"storage_offset": {"as_int": 1}}, "of a storage with"),
        ({"storage_offset": None}, "starts at element"),
        ({"dtype": 99}, "has an unknown dtype or layout"),
        ({"layout": 1}, "has an unknown dtype or layout"),
        ({"path_name": "../weight_0"}, "has no data"),
        ({"tensor_meta": None}, "is described by something that is not an object"),
    ],
)
def test_descriptions_that_are_wrong(program, tmp_path, change, reason):
    made = rewrite_archive(program, tmp_path / "x.pt2", {CONFIG: config(program, **change)})
    with pytest.raises(CorruptCheckpointError, match=reason):
        describe(made)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({CONFIG: b"[]"}, "JSON"),
        ({CONFIG: b'{"config": 1}'}, "is described by something that is not an object"),
        ({CONFIG: None}, "contains no tensors"),
        ({"byteorder": b"middle"}, "byteorder"),
        ({"archive_format": b"other"}, "archive_format"),
        ({"../x": b""}, "is outside the archive"),
    ],
)
def test_archives_that_are_wrong(program, tmp_path, change, reason):
    with pytest.raises(CorruptCheckpointError, match=reason):
        describe(rewrite_archive(program, tmp_path / "x.pt2", change))


@pytest.mark.parametrize(
    "record", ["data/constants/custom_obj_0", "data/constants/opaque_obj_0", "extra/x"]
)
def test_a_payload_in_a_record_is_named(program, tmp_path, record):
    found = describe(rewrite_archive(program, tmp_path / "x.pt2", {record: EVIL}))
    assert [u.qualified_name for u in found.globals if u.safety is Safety.DANGEROUS] == [
        "posix.system"
    ]


def test_a_payload_in_the_sample_inputs_is_named(program, tmp_path):
    with zipfile.ZipFile(tmp_path / "inner.pt", "w") as made:
        made.writestr(zipfile.ZipInfo("inner/data.pkl"), EVIL)
    inner = (tmp_path / "inner.pt").read_bytes()
    made = rewrite_archive(program, tmp_path / "x.pt2", {"data/sample_inputs/model.pt": inner})
    assert [(u.qualified_name, u.at) for u in describe(made).globals if u.name == "system"] == [
        ("posix.system", "record net/data/sample_inputs/model.pt")
    ]


def test_an_archive_of_torch_before_2_7(tmp_path):
    state = {"fc.weight": nn.Parameter(torch.arange(6.0).reshape(2, 3)), "buf": torch.ones(2)}
    torch.save(state, tmp_path / "state.pt")
    torch.save({"c": torch.ones(1)}, tmp_path / "constants.pt")
    with zipfile.ZipFile(tmp_path / "x.pt2", "w") as made:
        made.writestr("serialized_exported_program.json", "{}")
        made.writestr("version", "8.4")
        made.write(tmp_path / "state.pt", "serialized_state_dict.pt")
        made.write(tmp_path / "constants.pt", "serialized_constants.pt")
    found = describe(tmp_path / "x.pt2")
    assert [(s.at, list(s.tensors)) for s in found.states] == [
        ("", ["fc.weight", "buf"]),
        ("constants", ["c"]),
    ]
    assert same_bits(content(found.states[0].tensors["fc.weight"]), state["fc.weight"])


def test_archives_do_not_nest_without_end(tmp_path):
    data = b""
    for _ in range(300):
        with zipfile.ZipFile(tmp_path / "x.pt2", "w") as made:
            made.writestr(zipfile.ZipInfo("serialized_exported_program.json"), "{}")
            made.writestr(zipfile.ZipInfo("serialized_state_dict.pt"), data)
        data = (tmp_path / "x.pt2").read_bytes()
    with pytest.raises(CorruptCheckpointError):
        describe(tmp_path / "x.pt2")


def test_a_program_on_meta_has_shapes_and_no_values(tmp_path):
    path = tmp_path / "meta.pt2"
    module = nn.Linear(2, 3, device="meta").eval()
    torch.export.save(torch.export.export(module, (torch.ones(1, 2, device="meta"),)), path)
    expected = torch.export.load(path).state_dict
    found = describe(path).states[0].tensors
    assert {key: tensor.shape for key, tensor in found.items()} == {
        key: tuple(tensor.shape) for key, tensor in expected.items()
    }
    assert all(tensor.is_meta for tensor in expected.values())
    assert all(tensor.is_on_meta for tensor in found.values())
