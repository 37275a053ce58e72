"""A head of another shape that the module's own code drops: load, diff and migrate agree."""

import pytest
import torch
from torch import nn

import ckptool
from ckptool.errors import CkptoolError, LoadError
from ckptool.policy import Policy

IGNORED = Policy(ignore=("CK222",))


class Classifier(nn.Module):
    def __init__(self, classes=3):
        super().__init__()
        self.body, self.head = nn.Linear(4, 4), nn.Linear(4, classes)

    def list_misfits(self, state_dict):
        own = self.state_dict()
        return [key for key, tensor in state_dict.items() if tensor.shape != own[key].shape]


class DropsBeforeLoad(Classifier):
    def load_state_dict(self, state_dict, strict=True):
        misfits = self.list_misfits(state_dict)
        kept = {key: value for key, value in state_dict.items() if key not in misfits}
        return super().load_state_dict(kept, strict=False)


class KeepsItsOwn(Classifier):
    def _load_from_state_dict(self, state_dict, prefix, *args):
        for key in self.list_misfits(state_dict):
            state_dict[key] = self.state_dict()[key].clone()
        super()._load_from_state_dict(state_dict, prefix, *args)


class DropsInAHook(Classifier):
    """The strict load raises: the keys are missing then."""

    def __init__(self, classes=3):
        super().__init__(classes)
        self.register_load_state_dict_pre_hook(
            lambda module, state, *_: [state.pop(key) for key in module.list_misfits(state)]
        )


class DropsTheBiasOnly(Classifier):
    """The weight is left, and torch raises."""

    def _load_from_state_dict(self, state_dict, prefix, *args):
        state_dict["head.bias"] = self.head.bias.detach()
        super()._load_from_state_dict(state_dict, prefix, *args)


class CutsTheRows(Classifier):
    """Nothing is lost of the module: it has the first rows of the file."""

    def _load_from_state_dict(self, state_dict, prefix, *args):
        for name in ("head.weight", "head.bias"):
            state_dict[name] = state_dict[name][:3]
        super()._load_from_state_dict(state_dict, prefix, *args)


CLASSES = (
    Classifier, DropsBeforeLoad, KeepsItsOwn, DropsInAHook, DropsTheBiasOnly, CutsTheRows
)  # fmt: skip


def try_load(cls, path, **options):
    module = make(cls)
    try:
        module.load_state_dict(torch.load(path), **options)
    except RuntimeError as error:
        return module, error
    return module, None


def make(cls):
    torch.manual_seed(1)
    return cls()


def assert_equal_state(module, expected):
    for key, tensor in expected.state_dict().items():
        assert torch.equal(module.state_dict()[key], tensor), key


@pytest.fixture(params=CLASSES)
def cls(request):
    return request.param


@pytest.fixture
def path(tmp_path):
    torch.manual_seed(0)
    torch.save(Classifier(5).state_dict(), tmp_path / "old.pth")
    return tmp_path / "old.pth"


def test_migrate_asks_for_shapes_only_if_the_load_raises(cls, path, tmp_path):
    _, error = try_load(cls, path)
    report = ckptool.diff(path, module=make(cls))
    assert report.verdict.startswith("loads") == (error is None)
    target = tmp_path / "new.pth"
    arguments = {"module": f"{__name__}:{cls.__name__}", "policy": IGNORED}
    if error is not None:
        with pytest.raises(CkptoolError, match="CK207"):
            ckptool.migrate(path, target, **arguments)
        assert not target.exists()
        return
    ckptool.migrate(path, target, **arguments)
    assert_equal_state(try_load(cls, target)[0], try_load(cls, path)[0])


def test_what_is_lost_stops_a_migration_unless_it_is_intended(cls, path, tmp_path):
    report = ckptool.diff(path, module=make(cls))
    if "CK222" not in {f.code for f in report.findings}:
        pytest.skip("nothing is lost")
    with pytest.raises(CkptoolError, match="CK222"):
        ckptool.migrate(path, tmp_path / "new.pth", module=f"{__name__}:{cls.__name__}")
    assert not (tmp_path / "new.pth").exists()


def test_a_load_that_is_not_strict_does_what_torch_does(cls, path):
    if cls is DropsBeforeLoad or cls is KeepsItsOwn:
        pytest.skip("it is strict by its own code")
    expected, error = try_load(cls, path, strict=False)
    module = make(cls)
    if error is not None:
        with pytest.raises(LoadError, match="shape"):
            ckptool.load(module, path, strict=False)
        return
    ckptool.load(module, path, strict=False)
    assert_equal_state(module, expected)


def test_a_loss_that_is_accepted_is_loaded_as_torch_loads_it(cls, path):
    expected, error = try_load(cls, path)
    module = make(cls)
    if error is not None:
        with pytest.raises(LoadError):
            ckptool.load(module, path, accept=["CK222"])
        return
    ckptool.load(module, path, accept=["CK222"])
    assert_equal_state(module, expected)
