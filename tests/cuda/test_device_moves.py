"""What is said to follow `.to()` does so on a real device, and nothing else does."""

import inspect

import pytest
import torch
from modules import modules_for_tests
from torch import nn

from ckptool.modules import describe_module
from ckptool.modules.walk import walk_module

pytestmark = pytest.mark.cuda

CLASSES = [
    cls
    for cls in vars(modules_for_tests).values()
    if inspect.isclass(cls)
    and issubclass(cls, nn.Module)
    and cls.__module__ == modules_for_tests.__name__
    and not {p.default for p in inspect.signature(cls).parameters.values()} & {inspect._empty}
    and cls not in {modules_for_tests.Twice, modules_for_tests.BadState, modules_for_tests.Metric}
]


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_what_follows_on_meta_follows_on_cuda(cls):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device on this machine")
    if cls is modules_for_tests.FromOutside:
        pytest.skip("moving it would move modules that other tests use")
    module = cls()
    state = describe_module(module, "net")
    module.to("cuda")
    tensors = [
        found for found in walk_module(module).tensors if isinstance(found.value, torch.Tensor)
    ]
    moved = {found.path: found.value.is_cuda for found in tensors}
    # What is not described is an alias that follows.
    said = {path: path not in state.tensors or state.tensors[path].follows_to for path in moved}
    assert said == moved


def test_cuda_generators_come_back():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device on this machine")
    torch.cuda.manual_seed(5)
    expected = torch.rand(3, device="cuda")
    torch.cuda.manual_seed(5)
    modules_for_tests.examined(modules_for_tests.RandomModes)
    assert torch.equal(torch.rand(3, device="cuda"), expected)
