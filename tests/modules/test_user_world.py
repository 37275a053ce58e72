"""What user code sets of the process: put back for the caller and other modules, kept for it."""

import builtins
import gc
import importlib
import json
import logging
import os
import random
import signal
import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

import ckptool

NET = """
import builtins, gc, json, logging, os, random, signal, sys, warnings
import torch
from torch import nn

def change():
    {change}

{at_import}
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 3)
        {at_construction}

    def forward(self, x):
        return self.layer(x)
"""


def denormals_are_flushed() -> bool:
    return bool((torch.tensor(5e-324, dtype=torch.float64) * 1 == 0).item())


STATES = {
    "default dtype": ("torch.set_default_dtype(torch.float64)", torch.get_default_dtype),
    "default device": ("torch.set_default_device('meta')", torch.get_default_device),
    "folder": ("os.chdir('/')", os.getcwd),
    "gradient mode": ("torch.set_grad_enabled(False)", torch.is_grad_enabled),
    "deterministic": (
        "torch.use_deterministic_algorithms(True)",
        torch.are_deterministic_algorithms_enabled,
    ),
    "threads": ("torch.set_num_threads(1 + torch.get_num_threads())", torch.get_num_threads),
    "torch's random state": ("torch.manual_seed(7)", lambda: torch.get_rng_state().tolist()),
    "Python's random state": ("random.seed(7)", random.getstate),
    "warning filters": ("warnings.simplefilter('error')", lambda: list(warnings.filters)),
    "sys.path": ("sys.path.insert(0, '/nowhere')", lambda: list(sys.path)),
    "environment": ("os.environ['CKPTOOL_WORLD'] = '1'", lambda: dict(os.environ)),
    "signal handler": (
        "signal.signal(signal.SIGINT, signal.SIG_IGN)",
        lambda: signal.getsignal(signal.SIGINT),
    ),
    "alarm": (
        "signal.setitimer(signal.ITIMER_REAL, 1000)",
        lambda: signal.getitimer(signal.ITIMER_REAL)[0] > 0,
    ),
    "recursion limit": ("sys.setrecursionlimit(5000)", sys.getrecursionlimit),
    "garbage collection": ("gc.disable()", gc.isenabled),
    "cuDNN's benchmark": (
        "torch.backends.cudnn.benchmark = True",
        lambda: torch.backends.cudnn.benchmark,
    ),
    "precision of matmul": (
        "torch.set_float32_matmul_precision('medium')",
        torch.get_float32_matmul_precision,
    ),
    "denormals": ("torch.set_flush_denormal(True)", denormals_are_flushed),
    "anomalies": ("torch.autograd.set_detect_anomaly(True)", torch.is_anomaly_enabled),
    "print options": (
        "torch.set_printoptions(precision=1)",
        lambda: str(torch.tensor(1.23456)),
    ),
    "logging": ("logging.disable(logging.CRITICAL)", lambda: logging.root.manager.disable),
    "safe globals": (
        "torch.serialization.add_safe_globals([change])",
        lambda: {*torch.serialization.get_safe_globals()},  # torch keeps no order
    ),
    "streams": ("sys.stdout = sys.stderr = None", lambda: (sys.stdout, sys.stderr)),
    "excepthook": ("sys.excepthook = print", lambda: sys.excepthook),
    "open": ("builtins.open = None", lambda: builtins.open),
    "json": ("json.loads = json.dumps = None", lambda: (json.loads, json.dumps)),
    "hooks of all modules": (
        "nn.modules.module.register_module_forward_hook(lambda *args: None)",
        lambda: len(nn.modules.module._global_forward_hooks),
    ),
    "nn.Module": (
        "nn.Module.load_state_dict = lambda self, *args, **kwargs: 1 / 0",
        lambda: nn.Module.load_state_dict,
    ),
    "conversion": (
        "torch.__future__.set_overwrite_module_params_on_conversion(True)",
        torch.__future__.get_overwrite_module_params_on_conversion,
    ),
    "autocast": (
        "torch.set_autocast_enabled('cpu', True)",
        lambda: torch.is_autocast_enabled("cpu"),
    ),
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    layer = nn.Linear(2, 3).state_dict()
    torch.save({f"layer.{key}": value for key, value in layer.items()}, "net.pth")
    before = {*sys.modules}
    yield tmp_path
    for name in {*sys.modules} - before:
        if name.startswith("world_"):
            del sys.modules[name]


def write_module(name: str, change: str, *, at_import: bool) -> str:
    """Write a module that makes a change when it is imported or built; return its target."""
    text = NET.format(
        change=change,
        at_import="change()" if at_import else "",
        at_construction="" if at_import else "change()",
    )
    Path(f"{name}.py").write_text(text)
    importlib.invalidate_caches()
    return f"{name}:Net"


def test_what_torch_allows_at_its_import_stays_allowed(folder):
    before = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    try:
        change = "import torch.distributed.tensor as t; torch.serialization.add_safe_globals"
        target = write_module("world_of_dtensors", f"{change}([t.DTensor])", at_import=True)
        ckptool.diff(folder / "net.pth", module=target)
        from torch.distributed.tensor import DTensor

        assert DTensor in torch.serialization.get_safe_globals()
    finally:
        torch.serialization.add_safe_globals(before)


@pytest.mark.parametrize("at_import", [True, False], ids=["import", "constructor"])
@pytest.mark.parametrize("state", STATES)
def test_the_caller_has_its_state_back(folder, state, at_import):
    change, read_state = STATES[state]
    number = [*STATES].index(state)
    target = write_module(f"world_{number}_{at_import:d}", change, at_import=at_import)
    before = read_state()
    report = ckptool.diff(folder / "net.pth", module=target)
    assert read_state() == before
    assert report.verdict.startswith("loads strictly")
    ckptool.verify(folder / "net.pth", module=target, device="cpu", inputs="float32[1,2]")
    assert read_state() == before


@pytest.mark.parametrize("state", STATES)
def test_the_next_checkpoint_of_a_gate_gets_the_verdict_that_it_gets_alone(folder, state):
    number = [*STATES].index(state)
    first = write_module(f"world_first_{number}", STATES[state][0], at_import=True)
    second = write_module(f"world_second_{number}", "pass", at_import=True)
    (folder / "second.pth").write_bytes((folder / "net.pth").read_bytes())
    models = "".join(
        f'[[models]]\npath = "{path}"\nmodule = "{target}"\n'
        for path, target in (("net.pth", first), ("second.pth", second))
    )
    (folder / "ckptool.toml").write_text(models)
    alone = ckptool.gate("second.pth")
    both = ckptool.gate(["net.pth", "second.pth"])
    assert both.checkpoints[-1] == alone.checkpoints[0]


def test_what_cannot_be_put_back_is_said(folder, monkeypatch):
    monkeypatch.setattr(torch, "set_default_dtype", torch.set_default_dtype)
    set_dtype = torch.set_default_dtype
    change = "torch.set_default_dtype(torch.float64); torch.set_default_dtype = None"
    target = write_module("world_that_stays", change, at_import=True)
    try:
        with pytest.warns(RuntimeWarning, match=r"not put back .*: default dtype \(TypeError\)"):
            ckptool.audit(target)
        assert torch.get_default_dtype() == torch.float64
    finally:
        set_dtype(torch.float32)


def test_what_an_import_sets_holds_for_its_module_each_time(folder):
    """Python imports a module once: the second command must not build another module."""
    target = write_module("world_double", "torch.set_default_dtype(torch.float64)", at_import=True)
    reports = [ckptool.audit(target) for _ in range(2)]
    from ckptool.modules import ModuleSpec, examine_module

    for _ in range(2):
        module_info = examine_module(ModuleSpec(target, search_paths=(folder,)))
        assert module_info.tensors["layer.weight"].tensor.dtype == "float64"
    assert reports[0] == reports[1]
    assert torch.get_default_dtype() == torch.float32


def test_what_a_constructor_sets_holds_in_forward(folder):
    """As in plain torch, where the output would be of the other dtype."""
    (folder / "world_forward.py").write_text(
        "import torch\nfrom torch import nn\nclass Net(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n"
        "        self.layer = nn.Linear(2, 3)\n"
        "        torch.set_default_dtype(torch.float64)\n"
        "    def forward(self, x):\n"
        "        assert torch.zeros(1).dtype == torch.float64\n"
        "        return self.layer.float()(x)\n"
    )
    report = ckptool.verify(
        folder / "net.pth", module="world_forward:Net", device="cpu", inputs="float32[1,2]"
    )
    assert {level.level: level.status for level in report.levels}["forward"] == "passed", report
