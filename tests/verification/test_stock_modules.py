"""Torch's own classes whose loading is code, each with files of old and of now, judged by torch."""

import warnings

import pytest
import torch
from torch import nn
from verification.stock_modules import (
    MODULES,
    NOT_ASKED,
    NOT_BUILT,
    OLD_FILES,
    iter_stock_classes,
    use,
)

import ckptool

pytestmark = [pytest.mark.matrix, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(autouse=True)
def _no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, of what it is about to drop
        yield


def name_class(cls):
    return f"{cls.__module__}.{cls.__qualname__}"


def test_every_class_is_in_the_table():
    """A class of a torch to come is found here, and is to be put into the table."""
    built = {name_class(type(part)) for make in MODULES.values() for part in make().modules()}
    classes = {name_class(cls) for cls in iter_stock_classes()}
    assert len(classes) > 80
    assert classes - built - NOT_BUILT.keys() == set()
    assert NOT_BUILT.keys() & built == set()


def load_with_torch(make, path):
    """Load strictly as a user would; return what torch raises, "" if it loads."""
    try:
        make().load_state_dict(torch.load(path, weights_only=False))
    except Exception as error:  # noqa: BLE001 (packed parameters raise what they like)
        return f"{type(error).__name__}: {error}"
    return ""


def assert_judged_as_torch_does(make, path):
    error = load_with_torch(make, path)
    report = ckptool.diff(path, module=make())
    assert report.verdict.startswith("loads") == (not error), (report.verdict, error)


def iter_files(state):
    """Yield (name, state) of each old file that differs from those before, and of each key less."""
    seen = []
    for name, change in OLD_FILES.items():
        changed = change(state)
        identity = (list(changed), getattr(changed, "_metadata", None))
        if identity not in seen and changed:
            seen.append(identity)
            yield name, changed
    for key in list(state)[:3]:
        lacking = type(state)((k, v) for k, v in state.items() if k != key)
        lacking._metadata = getattr(state, "_metadata", {})
        if lacking:
            yield f"without {key}", lacking


@pytest.mark.parametrize("name", MODULES)
def test_a_class_with_files_of_each_version(name, tmp_path):
    make = MODULES[name]
    torch.manual_seed(0)
    state = use(make()).state_dict()
    has_tensors = False
    wrong = []
    for index, (file, changed) in enumerate(iter_files(state)):
        path = tmp_path / f"{index}.pth"
        torch.save(changed, path)
        try:
            verdict = ckptool.diff(path, module=make()).verdict
        except ckptool.CkptoolError:
            continue  # a state without any tensor
        has_tensors = True
        error = load_with_torch(make, path)
        if name in NOT_ASKED and "not checked" in verdict:
            continue
        if verdict.startswith("loads") != (not error):
            wrong.append((file, verdict, error.splitlines()[:3]))
    assert has_tensors or name == "nnq.QFunctional"
    assert wrong == []


def test_a_layer_in_a_net_is_judged_alike(tmp_path):
    """Hooks get a prefix there, and the versions of their own sub-module."""

    def make():
        return nn.Sequential(nn.ModuleDict({"a": MODULES["nniqat.ConvBn2d"]()}), nn.BatchNorm2d(4))

    state = make().state_dict()
    for index, (_, changed) in enumerate(iter_files(state)):
        path = tmp_path / f"{index}.pth"
        torch.save(changed, path)
        assert_judged_as_torch_does(make, path)
