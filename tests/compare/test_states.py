"""What is at a place of a file is judged as torch judges it, also where no tensors are."""

import re

import pytest
import torch
from torch import nn

import ckptool
from ckptool.compare.states import describe_place
from ckptool.errors import UsageError
from ckptool.formats import open_checkpoint


class Counted(nn.Module):
    def get_extra_state(self):
        return {"count": 1}

    def set_extra_state(self, state):
        del state


CONTENT = {
    "model": nn.Linear(2, 2).state_dict(),
    "loss": nn.MSELoss().state_dict(),
    "counted": Counted().state_dict(),
    "config": {"width": 1, "head": {"classes": 2}},
    "average": {"shadow": {}, "count": 3},
    "epoch": 3,
    "history": [1, 2],
}
PLACES = [*CONTENT, "config.head", "average.shadow", "nowhere"]
MODULES = (nn.MSELoss, Counted, lambda: nn.Linear(2, 2))


@pytest.fixture
def path(tmp_path):
    torch.save(CONTENT, tmp_path / "run.pth")
    return tmp_path / "run.pth"


def load_place(path, module, at):
    state = torch.load(path)
    for name in at.split("."):
        state = state[name]
    module.load_state_dict(state)


@pytest.mark.parametrize("at", PLACES)
@pytest.mark.parametrize("make_module", MODULES)
def test_a_place_loads_if_torch_loads_it(path, at, make_module):
    try:
        load_place(path, make_module(), at)
    except RuntimeError as error:
        report = ckptool.diff(path, module=make_module(), at=at)
        assert report.verdict.startswith("does not load: ")
        for key in re.findall(r'"(\w+)"', str(error)):
            assert key in {verdict.key for verdict in report.verdicts}
    except (KeyError, TypeError):
        with pytest.raises(UsageError, match=f"no state at --at {at}"):
            ckptool.diff(path, module=make_module(), at=at)
    else:
        assert ckptool.diff(path, module=make_module(), at=at).verdict == "loads strictly"


@pytest.mark.parametrize(
    ("at", "content"),
    [
        ("epoch", "plain data without tensors, 3"),
        ("history", "plain data without tensors, [1, 2]"),
        ("config.head", "plain data without tensors, {'classes': 2}"),
        ("model.weight", "one tensor, float32 [2, 2]"),
        ("nowhere", ""),
    ],
)
def test_what_is_at_a_place_is_described(path, at, content):
    assert describe_place(open_checkpoint(path), at) == content


def test_a_lazy_module_that_was_cast_has_placeholders(tmp_path):
    """half() makes plain tensors of shape [0] of uninitialized parameters, as ZeRO-3 leaves."""
    module = nn.Sequential(nn.LazyLinear(4), nn.LazyLinear(3))
    state_dict = {key: tensor.half() for key, tensor in module.state_dict().items()}
    assert all(tensor.shape == (0,) for tensor in state_dict.values())
    torch.save(state_dict, tmp_path / "lazy.pth")
    (finding,) = ckptool.inspect(tmp_path / "lazy.pth").findings
    assert finding.code == "CK320"
    assert "lazy" in finding.message
    assert "Lazy modules: run forward once first" in finding.fix
