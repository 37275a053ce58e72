"""A module that was given inside a wrapper of torch is loaded into what is wrapped."""

import pytest
import torch
from torch import nn

import ckptool


def make_net() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))


@pytest.fixture
def process_group(tmp_path):
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


WRAPPERS = {
    "DistributedDataParallel": nn.parallel.DistributedDataParallel,
    "DataParallel": nn.DataParallel,
    "OptimizedModule": torch.compile,
}
FILES = {
    "plain": lambda net: net.state_dict(),
    "DDP": lambda net: {f"module.{key}": tensor for key, tensor in net.state_dict().items()},
    "compiled": lambda net: torch.compile(net).state_dict(),
}


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_the_verdict_is_that_of_torch_and_the_code_loads(wrapper, file, tmp_path):
    net = make_net()
    torch.save(FILES[file](net), tmp_path / "net.pth")
    model = WRAPPERS[wrapper](make_net())
    state_dict = torch.load(tmp_path / "net.pth")
    report = ckptool.diff(tmp_path / "net.pth", module=model)
    try:
        model.load_state_dict(state_dict)
    except RuntimeError:
        assert report.verdict.startswith("does not load: ")
    else:
        assert report.verdict == "loads strictly"
        return
    (finding,) = (f for f in report.findings if f.code == "CK209")
    assert f"as {wrapper} does with the keys of what it wraps" in finding.message
    code = finding.fix.removeprefix("Load it into what is wrapped: ")
    exec(code, {"model": model, "state_dict": state_dict})
    assert all((model.state_dict()[key] == tensor).all()
               for key, tensor in WRAPPERS[wrapper](net).state_dict().items())  # fmt: skip
    assert not {f.code for f in report.findings} - {"CK209", "CK210", "CK216"}
