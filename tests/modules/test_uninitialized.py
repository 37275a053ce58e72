"""Memory that a constructor leaves as torch.empty() returns it is told from memory it assigns."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from ckptool.modules.describe import examine_module
from ckptool.modules.import_target import ModuleSpec
from ckptool.modules.tensors.uninitialized import END_ELEMENTS, UninitializedMemoryFill, is_filled

DTYPES = [
    torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2,
    torch.complex64, torch.int64, torch.int8, torch.uint8, torch.bool,
]  # fmt: skip
MAKERS = {
    "empty": lambda dtype: torch.empty(3, 5, dtype=dtype),
    "more than both ends": lambda dtype: torch.empty(9 * END_ELEMENTS, dtype=dtype),
    "empty_like": lambda dtype: torch.empty_like(torch.zeros(4, dtype=dtype)),
    "new_empty": lambda dtype: torch.zeros(2, dtype=dtype).new_empty(7),
    "empty_strided": lambda dtype: torch.empty_strided((2, 3), (3, 1), dtype=dtype),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", MAKERS)
def test_what_nobody_assigned_is_still_filled(name: str, dtype: torch.dtype) -> None:
    with UninitializedMemoryFill():
        untouched = MAKERS[name](dtype)
        assigned = MAKERS[name](dtype).zero_()
    assert is_filled(untouched)
    assert not is_filled(assigned)


def test_a_legacy_constructor_is_seen_and_meta_is_left() -> None:
    with UninitializedMemoryFill():
        legacy, on_meta = torch.Tensor(3), torch.empty(2, device="meta")
        odd = torch.empty(2, dtype=torch.bits8)
        channels_last = torch.empty(1, 2, 3, 3, memory_format=torch.channels_last)
    assert is_filled(legacy)
    assert on_meta.is_meta
    assert odd.dtype is torch.bits8
    assert channels_last.shape == (1, 2, 3, 3)


class LargeBuffers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("unset", torch.empty(8 * END_ELEMENTS))
        self.register_buffer("set", torch.empty(8 * END_ELEMENTS).fill_(3.0))
        self.register_buffer("ends_set", torch.empty(8 * END_ELEMENTS))
        self.ends_set[:2] = 1.0
        self.ends_set[-2:] = 1.0


def test_a_large_buffer_is_judged_by_its_ends() -> None:
    module_info = examine_module(ModuleSpec(f"{__name__}:LargeBuffers"))
    constancy = {key: tensor.constancy for key, tensor in module_info.tensors.items()}
    assert constancy["set"].name == "CONSTANT"
    assert constancy["unset"].name != "CONSTANT"


MEASURE = """
import resource, torch
from torch import nn
from ckptool.modules.describe import examine_module
from ckptool.modules.import_target import ModuleSpec

def build():
    return nn.ModuleList(nn.Linear(2048, 1024) for _ in range(100))

import sys
sys.modules["nets"] = sys.modules["__main__"]
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
examine_module(ModuleSpec("nets:build"))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
print("torch._dynamo" in sys.modules)
"""


@pytest.mark.process
def test_parameters_are_not_written_and_the_compiler_is_not_imported() -> None:
    run = subprocess.run(
        [sys.executable, "-c", MEASURE], check=True, capture_output=True, text=True
    )
    mib, has_compiler = run.stdout.split()
    assert int(mib) < 200, "800 MiB of parameters were filled"
    assert has_compiler == "False"
