"""Live modules and state_dicts, compared and digested as their files are; plain torch decides."""

import copy

import pytest
import torch
from files import save, save_dcp
from safetensors.torch import save_file
from torch import nn

import ckptool


class Net(nn.Module):
    """A tensor of every role."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.arange(6.0).reshape(2, 3))
        self.register_buffer("count", torch.tensor(3))
        self.register_buffer("rope", torch.ones(4), persistent=False)
        self.mask = torch.zeros(2, 2)
        self.scale = scale


ROLES = {
    "parameter": "weight",
    "buffer": "count",
    "non-persistent-buffer": "rope",
    "attribute": "mask",
}


def change(module: nn.Module, name: str) -> None:
    with torch.no_grad():
        getattr(module, name).add_(1)


@pytest.mark.parametrize("changed", ROLES)
@pytest.mark.parametrize("asked", ROLES)
def test_only_the_tensors_of_the_roles_asked_for_are_compared(asked, changed):
    old, new = Net(), Net()
    change(new, ROLES[changed])
    report = ckptool.diff(old, new, roles=[asked])
    assert report.exit_code == (asked == changed)
    whole = ckptool.diff(old, new)
    assert whole.exit_code == 1
    differing = {*whole.changed_keys, *whole.changed_entries}
    assert differing == {ROLES[changed]}
    is_saved = ROLES[changed] in new.state_dict()
    assert whole.unsaved_roles == ({} if is_saved else {ROLES[changed]: changed})


def test_equal_modules_are_identical_and_another_number_is_named():
    assert ckptool.diff(Net(), Net()).verdict == "identical"
    report = ckptool.diff(Net(), Net(scale=2.0))
    assert (report.exit_code, report.changed_entries) == (1, ("scale",))
    report = ckptool.diff(Net(), Net(scale=2.0), roles=["parameter", "buffer"])
    assert (report.exit_code, report.verdict) == (0, "same state")
    assert "another role than parameter or buffer" in report.skipped[0].reason
    assert ckptool.diff(Net(), Net(), roles=list(ROLES)).verdict == "identical"


@pytest.mark.parametrize("container", ["pth", "safetensors", "dcp"])
def test_a_module_equals_its_file_until_it_is_changed(tmp_path, container):
    module = Net()
    path = tmp_path / f"model.{container}"
    if container == "pth":
        save(path, module.state_dict())
    elif container == "safetensors":
        save_file(module.state_dict(), path)
    else:
        save_dcp(module.state_dict(), path)
    for pair in ((module, path), (path, module), (module.state_dict(), path)):
        assert ckptool.diff(*pair).exit_code == 0
    assert len({ckptool.digest(x).checkpoints[0].digest for x in (module, path)}) == 1
    change(module, "weight")
    for pair in ((module, path), (path, module), (module.state_dict(), path)):
        report = ckptool.diff(*pair)
        assert (report.exit_code, report.value_keys) == (1, ("weight",))
    assert len({ckptool.digest(x).checkpoints[0].digest for x in (module, path)}) == 2


def test_a_training_checkpoint_in_memory_is_its_file(tmp_path):
    module = Net()
    optimizer = torch.optim.AdamW(module.parameters())
    module.weight.grad = torch.ones(2, 3)
    optimizer.step()
    content = {"model": module.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3}
    path = save(tmp_path / "training.pth", content)
    report = ckptool.diff(content, path)
    assert (report.exit_code, report.skipped) == (0, ())
    later = {**copy.deepcopy(content), "epoch": 4}
    report = ckptool.diff(content, later)
    assert [(c.place, c.old, c.new) for c in report.entry_changes] == [("epoch", "3", "4")]
    assert ckptool.digest(content).checkpoints[0].digest == (
        ckptool.digest(path).checkpoints[0].digest
    )


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(12.0).reshape(3, 4).t(),
        torch.arange(12.0)[3:7],
        torch.ones(2, dtype=torch.bfloat16),
        torch.ones(2, 2).to_sparse(),
        torch.tensor([1 + 2j]).conj(),
        torch.empty(0, 3),
        torch.ones(()),
        torch.ones(1).expand(5),
    ],
    ids=["transposed", "view", "bfloat16", "sparse", "conj", "empty", "scalar", "expanded"],
)
def test_kinds_of_tensors_have_the_digest_of_their_file(tmp_path, tensor):
    path = save(tmp_path / "one.pth", {"one": tensor})
    live, read = (ckptool.digest(x).checkpoints[0] for x in ({"one": tensor}, path))
    assert live.digest == read.digest
    assert ckptool.diff({"one": tensor}, path).exit_code == ckptool.diff(path, path).exit_code


def test_nothing_is_changed_and_nothing_is_kept():
    from ckptool.formats.files.source import MEMORY_SOURCES

    module = Net()
    before = copy.deepcopy(module.state_dict())
    random_state = torch.get_rng_state()
    ckptool.diff(module, copy.deepcopy(module))
    assert all(torch.equal(before[key], tensor) for key, tensor in module.state_dict().items())
    assert torch.equal(random_state, torch.get_rng_state())
    assert not MEMORY_SOURCES


WRONG = {
    "one argument": (lambda m: ckptool.diff(m), "second argument"),
    "no tensors": (lambda m: ckptool.diff({}, {}), "without tensors"),
    "number": (lambda m: ckptool.diff(m, 5), "an int was given"),
    "class": (lambda m: ckptool.diff(Net, m), "a type was given"),
    "unknown role": (lambda m: ckptool.diff(m, m, roles=["weights"]), "known are parameter"),
    "no role": (lambda m: ckptool.diff(m, m, roles=[]), "no role"),
    "roles of dicts": (
        lambda m: ckptool.diff(m.state_dict(), m.state_dict(), roles=["buffer"]),
        "live module",
    ),
    "a shard": (lambda m: ckptool.diff(m, m, shard=(1, 2)), "shard="),
    "a lambda inside": (
        lambda m: ckptool.diff(m, {"a": torch.ones(1), "b": lambda: 1}),
        "cannot be described",
    ),
    "dict for a path": (lambda m: ckptool.inspect(m.state_dict()), "an OrderedDict was given"),
    "list of modules": (lambda m: ckptool.digest([m]), "a Net was given"),
    "None": (lambda m: ckptool.digest(None), "a NoneType was given"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_wrongly_given_ends_in_one_line(wrong):
    call, text = WRONG[wrong]
    with pytest.raises(ckptool.CkptoolError, match=text) as caught:
        call(Net())
    assert "\n" not in str(caught.value)


def test_attributes_are_not_checked_against_a_file(tmp_path):
    path = save(tmp_path / "model.pth", Net().state_dict())
    report = ckptool.diff(Net(scale=2.0), path)
    skipped = [check for check in report.skipped if check.what == "attributes of the module"]
    assert ["`scale`" in check.reason for check in skipped] == [True]
    plain = save(tmp_path / "plain.pth", torch.nn.Linear(2, 2).state_dict())
    report = ckptool.diff(torch.nn.Linear(2, 2), plain)
    assert not any(check.what == "attributes of the module" for check in report.skipped)
