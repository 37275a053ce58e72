"""`ckptool fix` on classes of popular repositories: each is held to plain torch after it."""

import importlib
import sys

import pytest
import torch
from commands.fixing.popular_classes import POPULAR_FIXED, POPULAR_REFUSED
from torch import nn

import ckptool
from ckptool.config import load_config

pytestmark = pytest.mark.process
SOURCES = {**POPULAR_FIXED, **{name: source for name, (source, _) in POPULAR_REFUSED.items()}}
PARTLY_FIXED = {"half_reg": {"count"}}
"""Name of a file -> attributes that stay as they are: forward replaces them by other shapes."""


def build(name):
    torch.manual_seed(0)
    return importlib.import_module(f"popular.{name}").Net().eval()


def run(module):
    torch.manual_seed(1)
    return module(torch.randn(2, 4))


def forget():
    for name in [name for name in sys.modules if name.partition(".")[0] == "popular"]:
        del sys.modules[name]
    importlib.invalidate_caches()


def list_tensors(module):
    """Return the names of tensors that are attributes and neither parameters nor buffers."""
    return {
        name
        for part in module.modules()
        for name, value in vars(part).items()
        if isinstance(value, torch.Tensor)
    }


@pytest.fixture(scope="module")
def fixed(tmp_path_factory):
    """The report of `fix --write --keep-old-files`, and (state_dict, output, attributes) before."""
    folder = tmp_path_factory.mktemp("popular")
    (folder / "popular").mkdir()
    (folder / "popular" / "__init__.py").write_text("")
    for name, source in SOURCES.items():
        (folder / "popular" / f"{name}.py").write_text(source)
    (folder / "ckptool.toml").write_text(
        "".join(
            f'[[models]]\npath = "{name}.pth"\nmodule = "popular.{name}:Net"\n'
            'inputs = ["float32[2,4]"]\n'
            for name in SOURCES
        )
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(folder)
        before = {}
        for name in SOURCES:
            module = build(name)
            torch.save(module.state_dict(), f"{name}.pth")
            tensors = list_tensors(module)
            before[name] = (torch.load(f"{name}.pth"), run(module), tensors)
        report = ckptool.fix(write=True, keep_old_files=True, config=load_config(folder))
        forget()
        yield report, before
        forget()


def test_what_cannot_be_fixed_is_refused_and_stops_nothing_else(fixed):
    report, _ = fixed
    assert report.is_written, report.verdict
    reasons = {r.where.rpartition("/")[2].partition(".py")[0]: r.reason for r in report.refused}
    assert reasons.keys() == {*POPULAR_REFUSED, *PARTLY_FIXED}
    for name, (_, reason) in POPULAR_REFUSED.items():
        assert reason in reasons[name]


@pytest.mark.parametrize("name", POPULAR_FIXED)
def test_the_old_file_loads_and_the_outputs_are_the_same(fixed, name):
    _, before = fixed
    state, output, _ = before[name]
    module = build(name)
    module.load_state_dict(state)
    assert torch.equal(run(module), output)
    again = build(name)
    again.load_state_dict(module.state_dict())
    assert torch.equal(run(again), output)


@pytest.mark.parametrize("name", POPULAR_FIXED)
def test_every_tensor_moves_with_the_module(fixed, name):
    _, before = fixed
    module = build(name)
    assert list_tensors(module) == PARTLY_FIXED.get(name, set())
    registered = {key.rpartition(".")[2] for key, _ in module.named_buffers()}
    assert before[name][2] - PARTLY_FIXED.get(name, set()) <= registered
    moved = nn.Sequential(module).to("meta")
    assert all(tensor.is_meta for tensor in (*moved.parameters(), *moved.buffers()))


@pytest.mark.parametrize("name", POPULAR_FIXED)
def test_state_that_training_changes_is_saved(fixed, name):
    """What differs after a step of training is in the state_dict, or parameters alone changed."""
    module = build(name).train()
    old = {key: tensor.clone() for key, tensor in module.named_buffers()}
    run(module)
    changed = {key for key, tensor in module.named_buffers() if not torch.equal(tensor, old[key])}
    assert changed <= module.state_dict().keys()
