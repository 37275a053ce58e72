"""A constructor that puts tensors on a CUDA device is built where there is none, as on one."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import ckptool
from ckptool.modules.world.cuda_on_cpu import cuda_on_cpu, is_placed_on_cuda

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
CUDA = torch.device("cuda")


def build_linear(module: nn.Module) -> None:
    module.l = nn.Linear(3, 3)


SHAPES: dict[str, Callable[[nn.Module], None]] = {
    "module.cuda()": lambda m: m.cuda(),
    "module.cuda(0)": lambda m: m.cuda(0),
    "module.to(text)": lambda m: m.to("cuda"),
    "module.to(device)": lambda m: m.to(CUDA),
    "module.to(number)": lambda m: m.to(0),
    "module.to(device, dtype)": lambda m: m.to("cuda", torch.float32),
    "module.to(keyword)": lambda m: m.to(device="cuda:0", dtype=torch.float32),
    "submodule": lambda m: m.l.cuda(),
    "layer": lambda m: setattr(m, "extra", nn.Linear(3, 3, device="cuda")),
    "buffer": lambda m: m.register_buffer("b", torch.ones(3).cuda()),
    "factory": lambda m: m.register_buffer("b", torch.arange(3.0, device="cuda")),
    "parameter": lambda m: setattr(m, "p", nn.Parameter(torch.ones(3, device=CUDA))),
    "like": lambda m: m.register_buffer("b", torch.ones_like(torch.zeros(3), device="cuda")),
    "new": lambda m: m.register_buffer("b", torch.zeros(1).new_ones(3, device="cuda")),
    "tensor": lambda m: m.register_buffer("b", torch.tensor([1.0, 2, 3], device="cuda")),
    "set_device": lambda _: torch.cuda.set_device(0),
    "current_device": lambda m: m.to(torch.cuda.current_device()),
    "device context": lambda m: (m.to("cuda"), torch.cuda.synchronize()),
    "default device": lambda m: setattr(m, "extra", on_default_device()),
    "half": lambda m: m.cuda().half(),
    "arithmetic": lambda m: m.register_buffer("b", torch.ones(3).cuda() * 2 + 1),
    "in place": lambda m: m.cuda().l.weight.data.fill_(2.0),
    "pinned": lambda m: m.register_buffer("b", torch.ones(3, pin_memory=True)),
    "asserts": lambda m: assert_on_cuda(torch.ones(3).cuda()),
}


def on_default_device() -> nn.Module:
    with torch.device("cuda"):
        return nn.Linear(3, 3)


def assert_on_cuda(tensor: torch.Tensor) -> None:
    assert tensor.is_cuda
    assert tensor.device.type == "cuda"
    assert not tensor.is_cpu
    assert tensor.cpu().is_cpu


class Places(nn.Module):
    def __init__(self, shape: str) -> None:
        super().__init__()
        self.l = nn.Linear(3, 3)
        SHAPES[shape](self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.l(x)
        return y + self.b if hasattr(self, "b") else y


def expected_state(shape: str) -> dict[str, torch.Tensor]:
    with cuda_on_cpu():
        return Places(shape).state_dict()


@pytest.mark.parametrize("command", ["diff", "audit", "verify"])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_way_to_put_it_there(shape: str, command: str, tmp_path: Path):
    state = expected_state(shape)
    assert all(tensor.device.type == "cpu" for tensor in map(torch.clone, state.values()))
    path = tmp_path / "model.pth"
    torch.save(state, path)
    if command == "audit":
        report = ckptool.audit(Places, kwargs={"shape": shape})
        assert {t.key for t in (*report.parameters, *report.persistent_buffers)} == {*state}
    elif command == "diff":
        report = ckptool.diff(path, module=Places, kwargs={"shape": shape})
        assert report.verdict == "loads strictly"
    else:
        inputs = "float16[2,3]" if shape == "half" else "float32[2,3]"
        report = ckptool.verify(
            path, module=Places, kwargs={"shape": shape}, inputs=inputs, device="simulated"
        )
        assert {level.level: level.status for level in report.levels}["device"] == "passed"
    assert report.exit_code == 0


class Unregistered(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.l = nn.Linear(3, 3)
        self.there = torch.ones(3).cuda() * 2
        self.here = torch.ones(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.l(x) * self.there


class UsesBoth(Unregistered):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + self.here


@pytest.mark.parametrize(("cls", "status"), [(Unregistered, "passed"), (UsesBoth, "failed")])
def test_what_is_there_needs_no_move_and_what_is_here_does(cls, status, tmp_path: Path):
    torch.save(nn.ModuleDict({"l": nn.Linear(3, 3)}).state_dict(), tmp_path / "model.pth")
    report = ckptool.verify(
        tmp_path / "model.pth", module=cls, inputs="float32[2,3]", device="simulated"
    )
    assert {level.level: level.status for level in report.levels}["device"] == status
    audit = ckptool.audit(cls)
    messages = {f.key: f.message for f in audit.findings if f.code == "CK110"}
    assert "stays on cuda:0, where the constructor puts it" in messages["there"]
    assert "still on the CPU after" in messages["here"]
    assert "CUDA device" in {s.what: s.reason for s in audit.skipped}["building on CUDA"]


class FailsOtherwise(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        raise RuntimeError("no CUDA here, and nothing helps")


def test_an_error_of_its_own_is_shown():
    with pytest.raises(ckptool.CkptoolError, match="nothing helps"):
        ckptool.audit(FailsOtherwise)


def test_marks_follow_copies_and_moves():
    with cuda_on_cpu():
        tensor = torch.ones(3).cuda()
        moved, doubled, back = tensor.to(torch.float16), tensor * 2, tensor.cpu()
        same = tensor.cuda()
    assert all(map(is_placed_on_cuda, (tensor, moved, doubled, same)))
    assert same is tensor
    assert not is_placed_on_cuda(back)
    assert torch.equal(back, torch.ones(3))


def test_torch_is_left_as_it_is():
    with cuda_on_cpu():
        assert torch.cuda.is_available()
    assert not torch.cuda.is_available()
    with pytest.raises((AssertionError, RuntimeError)):
        torch.ones(1).cuda()
