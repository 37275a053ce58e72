"""A name becomes two builds: parameters on meta, two seeds, and nothing of the caller's changed."""

import random
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from modules import modules_for_tests
from modules.marked_lines import marked
from modules.modules_for_tests import examined
from torch import nn

from ckptool.errors import ModuleError
from ckptool.model import CONSTANCY_CHECK, Constancy, Kind, Skipped
from ckptool.modules import ModuleSpec, build, examine_module
from ckptool.modules.assignment_hooks import hook_assignments
from ckptool.modules.assignment_locations import AssignmentLocations
from ckptool.modules.meta_parameters import MetaParameters

LEGACY = np.random.mtrand._rand
"""numpy's global generator, which is what a module's constructor draws from."""


@pytest.mark.process
def test_importing_the_package_imports_neither_torch_nor_numpy():
    code = (
        "import sys, ckptool.modules as m; m.class_exists('torch.nn', 'Linear');"
        "sys.exit(not {'torch', 'numpy'}.isdisjoint(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def drawn():
    return random.random(), LEGACY.rand(), torch.rand(3).tolist(), torch.randn(1).tolist()


@pytest.mark.parametrize(
    "target",
    [modules_for_tests.RandomModes, modules_for_tests.NeedsValues, modules_for_tests.make_same],
)
def test_random_generators_are_left_as_they_were(target):
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(7)
    # Half of a pair of normal values is kept for the next call: that too has to come back.
    before = (random.gauss(0, 1), torch.randn(1), LEGACY.randn())
    expected = drawn()
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(7)
    assert before == (random.gauss(0, 1), torch.randn(1), LEGACY.randn())
    examined(target)
    assert drawn() == expected


def test_generators_come_back_after_an_error_too():
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    with pytest.raises(ModuleError):
        examined(modules_for_tests.Raising, error=ValueError("no"))
    assert torch.equal(torch.rand(3), expected)


def test_constancy_of_what_two_seeds_make():
    held = examined(modules_for_tests.Parted).tensors
    assert {key: h.constancy for key, h in held.items()} == dict.fromkeys(
        ["random", "unseeded", "shape"], Constancy.RANDOM
    )


def test_nn_module_is_as_it_was_after_a_build_and_after_a_failure():
    before = [vars(nn.Module)[n] for n in ("__setattr__", "register_buffer", "register_parameter")]
    examined(modules_for_tests.AttrMask)
    with pytest.raises(ModuleError):
        examined(modules_for_tests.Raising, error=SystemExit(3))
    after = [vars(nn.Module)[n] for n in ("__setattr__", "register_buffer", "register_parameter")]
    assert after == before


def test_ties_views_and_devices_survive_on_meta():
    held = examined(modules_for_tests.Tied).tensors
    assert all(held[key].tensor.device == "cpu" for key in held)
    assert held["embed.weight"].tensor.storage == held["head.weight"].tensor.storage
    assert (held["low"].tensor.storage_offset, held["high"].tensor.storage_offset) == (0, 3)
    assert held["low"].tensor.storage.nbytes == 24
    assert not any(h.fingerprint for h in held.values())


def test_a_parameter_keeps_what_was_attached_to_it():
    parameter = nn.Parameter(torch.ones(2, 3).t(), requires_grad=False)
    parameter.tensor_parallel = True
    twins = MetaParameters()
    twin = twins.replace_parameter(parameter)
    assert (twin.is_meta, twin.tensor_parallel, twin.requires_grad) == (True, True, False)
    assert (twin.stride(), tuple(twin.shape)) == (parameter.stride(), (3, 2))
    assert twins.replace_parameter(parameter) is twin
    assert twins.replace_parameter(twin) is twin
    assert twins.is_replaced(parameter)
    assert not twins.is_replaced(twin)


def test_a_parameter_gone_is_not_taken_for_a_new_one_at_its_address():
    twins = MetaParameters()
    made = [twins.replace_parameter(nn.Parameter(torch.ones(2))) for _ in range(50)]
    assert len({id(twin) for twin in made}) == 50
    assert len({twin.untyped_storage()._cdata for twin in made}) == 50


def test_modules_that_another_thread_builds_stay_real():
    made = []
    with hook_assignments(AssignmentLocations(__file__), MetaParameters()):
        thread = threading.Thread(target=lambda: made.append(nn.Linear(1, 1)))
        thread.start()
        thread.join()
        made.append(nn.Linear(1, 1))
    assert [linear.weight.is_meta for linear in made] == [False, True]


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        (modules_for_tests.FromParameters, "the value of `start` depends on its parameters"),
        (
            modules_for_tests.NeedsValues,
            "it cannot be built with its parameters on meta (RuntimeError: ",
        ),
    ],
)
def test_a_module_that_needs_its_weights_is_built_with_real_ones(target, reason):
    state = examined(target)
    assert [skipped.what for skipped in state.skipped] == ["building without weights"]
    assert state.skipped[0].reason.startswith(reason)
    assert state.skipped[0].reason.endswith("it was built with real ones")
    assert all(held.constancy is Constancy.RANDOM for held in state.tensors.values())
    assert all(held.fingerprint for held in state.tensors.values())


def test_weights_too_large_are_never_real(monkeypatch):
    monkeypatch.setattr(build, "REAL_BUILD_BYTES", 8)
    state = examined(modules_for_tests.FromParameters)
    assert [skipped.what for skipped in state.skipped] == ["values"]
    assert {key: h.constancy for key, h in state.unsaved_tensors.items()} == {
        "norm": Constancy.UNKNOWN
    }


def test_one_instance_for_every_call_is_no_evidence():
    state = examined(modules_for_tests.make_same)
    assert Skipped(CONSTANCY_CHECK, "every call returns the same instance") in state.skipped
    assert state.tensors["mask"].constancy is Constancy.UNKNOWN
    assert not state.tensors["mask"].follows_to
    assert not modules_for_tests.INSTANCE.fc.weight.is_meta


def test_each_build_gets_arguments_of_its_own():
    config = {"width": 3}
    state = examined(modules_for_tests.Popping, config=config)
    assert state.tensors["fc.weight"].tensor.shape == (1, 3)
    assert config == {"width": 3}
    assert state.skipped == ()


def test_what_the_users_code_prints_is_no_part_of_a_report(capsys):
    examined(modules_for_tests.Printing)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert {"building", "saving"} <= set(printed.err.split())


def test_defaults_are_taken_where_they_fit():
    spec = ModuleSpec("modules.modules_for_tests:AttrMask", {}, (), {"n": 2, "lr": 0.1})
    assert examine_module(spec).tensors["mask"].tensor.shape == (2, 2)
    spec = ModuleSpec("modules.modules_for_tests:AttrMask", {"n": 3}, (), {"n": 2})
    assert examine_module(spec).tensors["mask"].tensor.shape == (3, 3)


@pytest.mark.parametrize("path", ["Builder.build", "AttrMask", "INSTANCE"])
def test_what_a_name_may_lead_to(path):
    state = examine_module(ModuleSpec(f"modules.modules_for_tests:{path}"))
    assert state.target == f"modules.modules_for_tests:{path}"
    assert state.tensors["mask"].kind is Kind.ATTRIBUTE


MODEL = """
import torch
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.mask = torch.ones({n})
"""


def test_search_directories_are_importable_meanwhile(tmp_path):
    (tmp_path / "searched_model.py").write_text(MODEL.format(n=2))
    before = list(sys.path)
    state = examine_module(ModuleSpec("searched_model:Net", search_paths=(tmp_path,)))
    assert sys.path == before
    assert state.tensors["mask"].assigned_at == f"{tmp_path.as_posix()}/searched_model.py:6"


def test_a_module_of_the_same_name_elsewhere_is_not_mixed_up(tmp_path):
    for n in (1, 2, 3):
        (tmp_path / f"d{n}").mkdir()
        (tmp_path / f"d{n}" / "same_name.py").write_text(MODEL.format(n=n))
    shapes = [
        examine_module(ModuleSpec("same_name:Net", search_paths=(tmp_path / f"d{n}",)))
        .tensors["mask"]
        .tensor.shape
        for n in (1, 2, 1, 3)
    ]
    assert shapes == [(1,), (2,), (1,), (3,)]
    assert sys.modules["same_name"].__file__ == str(tmp_path / "d1" / "same_name.py")


def test_places_are_relative_inside_the_current_directory(tmp_path, monkeypatch):
    (tmp_path / "inside_model.py").write_text(MODEL.format(n=2))
    monkeypatch.chdir(tmp_path)
    state = examine_module(ModuleSpec("inside_model:Net", search_paths=(tmp_path,)))
    assert state.tensors["mask"].assigned_at == "inside_model.py:6"


def test_places_of_assignments():
    passing = examined(modules_for_tests.Passing).tensors
    assert passing["mask"].assigned_at == marked("Passing.mask")
    assert passing["table"].assigned_at == marked("Passing.table")
    sneaky = examined(modules_for_tests.Sneaky).tensors
    assert sneaky["mask"].assigned_at == marked("Sneaky.mask")
    assert sneaky["other"].assigned_at == marked("Sneaky.other")


def test_torchs_own_classes_have_a_place_too():
    weight = examine_module(ModuleSpec("torch.nn:Linear", {"in_features": 1, "out_features": 1}))
    assert "torch/nn/modules/linear.py:" in weight.tensors["weight"].assigned_at
