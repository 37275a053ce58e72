"""Parameters without a shape, and files on meta: the verdict is what plain torch does."""

import pytest
import torch
from torch import nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

import ckptool
from ckptool.errors import LoadError


class WithUninitializedParameter(nn.Module):
    """Is not lazy: nothing gives `late` a shape when it is loaded."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.late = UninitializedParameter()


class WithUninitializedBuffer(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.register_buffer("late", UninitializedBuffer())


class BesideLoadingCode(WithUninitializedParameter):
    def __init__(self):
        super().__init__()
        self.register_load_state_dict_pre_hook(
            lambda module, state, prefix, *_: state.pop(prefix + "old", None)
        )


class GivesItAShape(WithUninitializedParameter):
    def _load_from_state_dict(self, state_dict, prefix, *args):
        if nn.parameter.is_lazy(self.late) and not nn.parameter.is_lazy(state_dict["late"]):
            self.late.materialize(state_dict["late"].shape)
        super()._load_from_state_dict(state_dict, prefix, *args)


class Lazy(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.LazyLinear(3)


LATE = {
    "without a shape": UninitializedParameter,
    "vector": lambda: torch.ones(2),
    "one element": lambda: torch.ones(1),
    "scalar": lambda: torch.ones(()),
    "no elements": lambda: torch.ones(0),
    "column": lambda: torch.ones(2, 1),
    "empty matrix": lambda: torch.ones(2, 0),
    "on meta": lambda: torch.ones(2, device="meta"),
}
CLASSES = (
    WithUninitializedParameter, WithUninitializedBuffer, BesideLoadingCode, GivesItAShape, Lazy
)  # fmt: skip


def load_with_torch(module, path, **options):
    try:
        module.load_state_dict(torch.load(path, weights_only=False), **options)
    except RuntimeError as error:
        return error
    return None


@pytest.mark.parametrize("late", LATE)
@pytest.mark.parametrize("cls", CLASSES)
def test_a_module_with_a_tensor_without_a_shape_loads_as_torch_does(cls, late, tmp_path):
    path = tmp_path / "model.pth"
    names = ("fc.bias", "fc.weight") if cls is Lazy else ("weight", "late")
    torch.save(dict(zip(names, (torch.ones(3), LATE[late]()), strict=True)), path)
    error = load_with_torch(cls(), path)
    report = ckptool.diff(path, module=cls())
    assert report.verdict.startswith("loads") == (error is None), (report.verdict, error)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_assign_puts_a_file_on_meta_into_the_module_and_it_is_said(device, tmp_path):
    """With assign=True torch raises nothing, and what had values has none."""
    path = tmp_path / "model.pth"
    torch.save(nn.Linear(2, 2, device="meta").state_dict(), path)
    copied, assigned = nn.Linear(2, 2, device=device), nn.Linear(2, 2, device=device)
    error = load_with_torch(copied, path)
    assert load_with_torch(assigned, path, assign=True) is None
    assert all(tensor.is_meta for tensor in assigned.parameters())
    report = ckptool.diff(path, module=nn.Linear(2, 2, device=device))
    assert report.verdict.startswith("does not load") == (error is not None), report.verdict
    finding = next(f for f in report.findings if f.code == "CK327")
    assert "assign=True leaves the module without them" in finding.fix
    with pytest.raises(LoadError, match="CK327"):
        ckptool.load(nn.Linear(2, 2, device=device), path, assign=True)
