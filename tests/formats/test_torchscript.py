"""TorchScript archives: what is described equals the state_dict() of the loaded module."""

import zipfile

import pytest
import torch
from files import content, describe, rewrite_archive, same_bits
from torch import nn

from ckptool.errors import CorruptCheckpointError
from ckptool.model import Container, Kind, Safety

pytestmark = pytest.mark.filterwarnings("ignore")
EVIL = b"\x80\x02cposix\nsystem\nU\x04true\x85R."


class Scripted(nn.Module):
    scales: list[torch.Tensor]
    names: dict[str, int]

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(2)
        self.fc = nn.Linear(2, 2)
        self.twin = nn.Linear(2, 2)
        self.twin.weight = self.fc.weight
        self.register_buffer("table", torch.arange(3.0))
        self.mask = torch.triu(torch.ones(3, 3))
        self.scales = [torch.ones(1), torch.ones(2)]
        self.names = {"a": 1}
        self.width = 7

    def forward(self, x):
        x = self.twin(self.fc(self.norm(x))) * self.names["a"] * self.width
        return x + self.mask.sum() + self.scales[0] + self.table.sum()


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    path = tmp_path_factory.mktemp("script") / "net.pt"
    torch.jit.script(Scripted()).save(str(path))
    return path


def test_a_scripted_module(script):
    expected = torch.jit.load(str(script)).state_dict()
    found = describe(script)
    (state,) = found.states
    assert (found.container, state.role, state.at) == (Container.TORCHSCRIPT, "module", "")
    assert list(state.tensors) == list(expected)
    assert all(same_bits(content(state.tensors[key]), expected[key]) for key in expected)
    kinds = {key: tensor.kind for key, tensor in state.tensors.items()}
    assert kinds["norm.running_mean"] is kinds["table"] is Kind.BUFFER
    assert kinds["fc.weight"] is kinds["norm.bias"] is Kind.PARAMETER
    assert {path: (t.kind, t.shape) for path, t in state.unsaved_tensors.items()} == {
        "mask": (Kind.ATTRIBUTE, (3, 3)),
        "scales[0]": (Kind.CONTAINER, (1,)),
        "scales[1]": (Kind.CONTAINER, (2,)),
    }
    assert state.modules["fc"].name == "torch.nn.modules.linear.Linear"
    assert {entry.at: entry.value for entry in found.entries} == {"names": {"a": 1}, "width": 7}
    assert all(use.safety is Safety.SAFE for use in found.globals)
    assert found.skipped == ()


def test_a_traced_module(tmp_path):
    module = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    torch.jit.trace(module, torch.ones(1, 2)).save(str(tmp_path / "x.pt"))
    found = describe(tmp_path / "x.pt")
    assert list(found.states[0].tensors) == ["0.weight", "0.bias"]
    assert all(use.safety is Safety.SAFE for use in found.globals)


def test_a_frozen_module_keeps_its_weights_as_constants(tmp_path):
    module = torch.jit.freeze(torch.jit.script(nn.Linear(2, 3).eval()))
    module.save(str(tmp_path / "x.pt"))
    root, constants = describe(tmp_path / "x.pt").states
    assert dict(root.tensors) == {}
    assert (constants.at, constants.role) == ("constants", "tensors")
    assert sorted(t.shape for t in constants.tensors.values()) == [(3,), (3, 2)]


def test_without_its_code_what_needs_a_gradient_is_a_parameter(script, tmp_path):
    with zipfile.ZipFile(script) as archive:
        code = [n.partition("/")[2] for n in archive.namelist() if "/code/" in n]
    found = describe(rewrite_archive(script, tmp_path / "x.pt", dict.fromkeys(code)))
    kinds = {key: tensor.kind for key, tensor in found.states[0].tensors.items()}
    assert kinds["fc.weight"] is Kind.PARAMETER
    assert kinds["norm.running_mean"] is Kind.BUFFER


@pytest.mark.parametrize("record", ["constants.pkl", "code/__torch__.py.debug_pkl", "data.pkl"])
def test_a_payload_in_any_pickle_is_named(script, tmp_path, record):
    found = describe(rewrite_archive(script, tmp_path / "x.pt", {record: EVIL}))
    assert "posix.system" in [
        u.qualified_name for u in found.globals if u.safety is Safety.DANGEROUS
    ]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"data.pkl": b"\x80\x02}."}, "no TorchScript module"),
        ({"constants.pkl": b"\x80\x02("}, "constants.pkl: "),
        ({"data/0": b"1"}, "should have"),
        ({"data/0": None}, "is missing"),
    ],
)
def test_archives_that_are_wrong(script, tmp_path, change, reason):
    with pytest.raises(CorruptCheckpointError, match=reason):
        describe(rewrite_archive(script, tmp_path / "x.pt", change))
