"""What copying a tensor of one kind into one of another raises, as torch itself says."""

import warnings

import pytest
import torch
from msgspec.structs import replace
from torch import nn

import ckptool
from ckptool.modules import describe_module

LAYOUTS = {
    "dense": lambda tensor: tensor,
    "coo": lambda tensor: tensor.to_sparse(),
    "csr": lambda tensor: tensor.to_sparse_csr(),
    "csc": lambda tensor: tensor.to_sparse_csc(),
    "bsr": lambda tensor: tensor.to_sparse_bsr((2, 2)),
    "quantized": lambda tensor: torch.quantize_per_tensor(tensor, 0.5, 0, torch.qint8),
    "quantized by channel": lambda tensor: torch.quantize_per_channel(
        tensor, torch.ones(4), torch.zeros(4, dtype=torch.long), 0, torch.qint8
    ),
    "quint8": lambda tensor: torch.quantize_per_tensor(tensor, 0.5, 0, torch.quint8),
    "no data": lambda tensor: tensor.to("meta"),
    "half": lambda tensor: tensor.half(),
    "bool": lambda tensor: tensor.bool(),
    "complex": lambda tensor: tensor.to(torch.complex64),
    "int8": lambda tensor: tensor.to(torch.int8),
    "float8": lambda tensor: tensor.to(torch.float8_e4m3fn),
}
VALUES = {"one element": torch.eye(4), "more elements": torch.eye(4) + torch.ones(4, 4).tril()}


class Holder(nn.Module):
    """Holds a buffer of any kind."""

    def __init__(self, tensor):
        super().__init__()
        self.fc = nn.Linear(2, 2)
        self.register_buffer("held", tensor)


@pytest.fixture(autouse=True)
def _no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, of layouts in beta
        yield


def copy_with_torch(path, tensor):
    """Load strictly with plain torch; return whether it loads."""
    module = Holder(tensor)
    try:
        module.load_state_dict(torch.load(path, weights_only=True))
    except RuntimeError:
        return False
    return True


@pytest.mark.parametrize("values", VALUES)
@pytest.mark.parametrize("module_layout", LAYOUTS)
@pytest.mark.parametrize("file_layout", LAYOUTS)
def test_each_pair_of_kinds_is_judged_as_torch_copies_it(
    file_layout, module_layout, values, tmp_path
):
    path = tmp_path / "model.pth"
    torch.save(Holder(LAYOUTS[file_layout](VALUES[values])).state_dict(), path)
    held = LAYOUTS[module_layout](VALUES["one element"])
    expected = copy_with_torch(path, held)
    report = ckptool.diff(path, module=Holder(held))
    assert report.verdict.startswith("does not load") == (not expected), report.verdict
    assert not any("copying" in s.what for s in report.skipped)


def test_the_saved_tensors_are_selected_once():
    """For each key of the file all were selected again: 25,000 keys took 51 s in place of 13."""
    info = describe_module(nn.Linear(2, 2), "Linear")
    assert info.saved_tensors is info.saved_tensors
    assert info.saved_tensors.keys() == nn.Linear(2, 2).state_dict().keys()
    assert replace(info, tensors={}).saved_tensors == {}


PACKED = {
    "conjugate": lambda tensor: tensor.to(torch.complex64).conj(),
    "4 bits": lambda tensor: torch.quantize_per_channel(
        tensor, torch.ones(4), torch.zeros(4), 0, torch.quint4x2
    ),
    "2 bits": lambda tensor: torch.quantize_per_channel(
        tensor, torch.ones(4), torch.zeros(4), 0, torch.quint2x4
    ),
    "4 bits without a scale": lambda tensor: tensor.to(torch.uint8).view(torch.quint4x2),
    "float4": lambda tensor: tensor.to(torch.uint8).view(torch.float4_e2m1fn_x2),
    "jagged": lambda tensor: torch.nested.nested_tensor(
        [tensor[:1], tensor[:2]], layout=torch.jagged
    ),
    "nested": lambda tensor: torch.nested.nested_tensor([tensor[:1], tensor[:2]]),
}
PAIRS = [(a, b) for a in PACKED for b in (a, "dense")] + [("dense", kind) for kind in PACKED]


@pytest.mark.parametrize(("file_kind", "module_kind"), PAIRS)
def test_a_pair_with_a_packed_kind_is_judged_as_torch_copies_it(file_kind, module_kind, tmp_path):
    kinds = LAYOUTS | PACKED
    path, values = tmp_path / "model.pth", VALUES["one element"]
    torch.save(Holder(kinds[file_kind](values)).state_dict(), path)
    held = kinds[module_kind](values)
    expected = copy_with_torch(path, held)
    verdict = ckptool.diff(path, module=Holder(held)).verdict
    if module_kind.endswith("bits") or "without" in module_kind:  # torch cannot copy the module's
        assert verdict.startswith(("does not load", "keys and shapes match; not checked: copying"))
        assert not expected
    else:
        assert verdict.startswith("does not load") == (not expected), verdict
