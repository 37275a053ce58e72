"""A forward that fails for the module's own reasons: said, if the CPU proves the file right."""

import pytest
import torch
from torch import nn

from ckptool import api
from ckptool.errors import WriteError

INPUT = ("int64[2,5]",)
RIGHT = "the file is right, the module is not"


class _Base(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb = nn.Embedding(16, 4)
        self.fc = nn.Linear(4, 4)


class MakesPositions(_Base):
    def forward(self, x):
        return self.emb(x) + self.emb(torch.arange(x.shape[1]))


class DerivesPositions(_Base):
    def forward(self, x):
        positions = torch.arange(x.shape[1]).unsqueeze(0).clamp(max=15)
        return self.emb(x) + self.emb(positions)


class MakesMask(_Base):
    def forward(self, x):
        return self.emb(x).masked_fill(torch.ones(5, 1).bool(), 0.0)


class MakesConstants(_Base):
    def forward(self, x):
        return self.fc(self.emb(x)) * torch.tensor([1.0, 2.0, 3.0, 4.0])


class Concatenates(_Base):
    def forward(self, x):
        hidden = self.emb(x)
        return torch.cat([torch.zeros(hidden.shape), hidden])


class KeepsAttribute(_Base):
    def __init__(self):
        super().__init__()
        self.scale = torch.ones(4)

    def forward(self, x):
        return self.fc(self.emb(x)) * self.scale


class MovesBack(_Base):
    def forward(self, x):
        return self.fc(self.emb(x).cpu())


class FollowsInput(_Base):
    def forward(self, x):
        return self.emb(x) + self.emb(torch.arange(x.shape[1], device=x.device))


class MakesNumber(_Base):
    def forward(self, x):
        return self.fc(self.emb(x)) * torch.tensor(2.0)


class FailsEverywhere(_Base):
    def forward(self, x):
        return self.fc(self.emb(x)) @ torch.ones(7, 7)


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "old.pth"
    torch.save(MakesPositions().state_dict(), path)
    return path


def _join_texts(level):
    return "; ".join((level.reason, *level.details))


def _load_and_run_on_cpu(path, module):
    module.load_state_dict(torch.load(path), strict=True)
    return module(torch.ones(2, 5, dtype=torch.int64))


@pytest.mark.parametrize(
    ("module_class", "remedy"),
    [
        (MakesPositions, "create the tensor on the device of an input (device=x.device)"),
        (DerivesPositions, "create the tensor on the device of an input (device=x.device)"),
        (MakesMask, "create the tensor on the device of an input (device=x.device)"),
        (MakesConstants, "create the tensor on the device of an input (device=x.device)"),
        (Concatenates, "create the tensor on the device of an input (device=x.device)"),
        (KeepsAttribute, "register `scale` as a buffer"),
        (MovesBack, "move the tensor to the device of the input"),
    ],
)
def test_the_module_is_named_where_the_same_file_runs_on_the_cpu(
    source, tmp_path, module_class, remedy
):
    assert _load_and_run_on_cpu(source, module_class()).shape[-1] == 4
    with pytest.raises(WriteError) as caught:
        api.migrate(
            source, tmp_path / "n.pth", module=module_class(), inputs=INPUT, device="simulated"
        )
    message = str(caught.value)
    assert "fails at device on simulated cuda:0" in message
    fault = "the module is at fault" if module_class is KeepsAttribute else RIGHT
    assert fault in message
    assert remedy in message
    assert "test_module_fault.py:" in message
    assert "--device cpu" in message
    assert not (tmp_path / "n.pth").exists()
    report = api.migrate(
        source, tmp_path / "n.pth", module=module_class(), inputs=INPUT, device="cpu"
    )
    assert report.verdict.endswith("loads strictly")


@pytest.mark.parametrize("module_class", [FollowsInput, MakesNumber])
def test_a_module_that_runs_on_the_device_has_no_fault(source, tmp_path, module_class):
    report = api.migrate(
        source, tmp_path / "n.pth", module=module_class(), inputs=INPUT, device="simulated"
    )
    assert report.exit_code == 0
    assert all(RIGHT not in check.reason for check in report.checks)


def test_a_forward_that_fails_on_the_cpu_too_proves_nothing(source, tmp_path):
    with pytest.raises(RuntimeError):
        _load_and_run_on_cpu(source, FailsEverywhere())
    with pytest.raises(WriteError) as caught:
        api.migrate(
            source, tmp_path / "n.pth", module=FailsEverywhere(), inputs=INPUT, device="simulated"
        )
    assert RIGHT not in str(caught.value)


def test_a_file_that_does_not_load_is_not_called_right(source):
    class Larger(MakesPositions):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(4, 4)

    report = api.verify(source, module=Larger(), inputs=INPUT, device="simulated")
    assert report.exit_code == 1
    assert all(RIGHT not in _join_texts(level) for level in report.levels)


def test_an_output_that_differs_on_the_cpu_is_not_called_right(source):
    class Doubles(MakesPositions):
        def forward(self, x):
            return 2 * super().forward(x)

    report = api.verify(
        source,
        module=Doubles(),
        inputs=INPUT,
        device="simulated",
        old=source,
        old_module=FollowsInput(),
    )
    levels = {level.level: level for level in report.levels}
    assert levels["equality"].status == "failed"
    assert RIGHT not in _join_texts(levels["device"])


def test_the_verdict_of_verify_is_one_short_line_and_the_level_has_the_explanation(source):
    report = api.verify(source, module=MakesPositions(), inputs=INPUT, device="simulated")
    explained = [level for level in report.levels if RIGHT in " ".join(level.details)]
    assert [level.level for level in explained] == ["device"]
    assert report.verdict == f"failed at device, forward: {explained[0].reason}"
    assert RIGHT not in report.verdict
