"""A hook loads what the plan migrates: every step, under plain torch, at the root and nested."""

import importlib.util
import itertools
import subprocess
from collections import OrderedDict

import pytest
import torch
from files import same_bits
from torch import nn

import ckptool
from ckptool.errors import PlanError, WriteError
from ckptool.migration.plan.key_operations import (
    AddPrefix,
    DropKeys,
    ExtractState,
    InjectTensor,
    RenameKeys,
    StripPrefix,
)
from ckptool.migration.plan.plan_file import Op, Plan
from ckptool.migration.plan.reparametrization_operations import (
    AddWeightNorm,
    RemoveSpectralNorm,
    RemoveWeightNorm,
)
from ckptool.migration.plan.tensor_operations import (
    BakeMask,
    CastTensors,
    CompactViews,
    ConcatTensors,
    ReshapeTensor,
    SplitTensor,
    TieTensors,
    TransposeTensor,
    UntieTensor,
)

torch.manual_seed(0)
SHARED = torch.randn(3, 2)
STATES = {
    "plain": {"enc.w": torch.randn(2, 3), "enc.b": torch.randn(2), "n": torch.tensor(3)},
    "wrapped": {"module.enc.w": torch.randn(2, 3), "module.b": torch.randn(2)},
    "twice": {"module.module.w": torch.randn(2, 3)},
    "layers": {f"layers.{n}.w": torch.randn(2, 2) for n in range(4)},
    "alike": {"q": torch.randn(2, 3), "k": torch.randn(2, 3), "v": torch.randn(2, 3)},
    "masked": {"w_orig": torch.randn(4), "w_mask": torch.tensor([1.0, 0.0, 1.0, 0.0])},
    "norm": {"g": torch.rand(4, 1), "v": torch.randn(4, 3), "u": torch.rand(4), "w": torch.rand(3)},
    "tied": {"a": SHARED, "b": SHARED},
    "view": {"w": torch.ones(1000)[:10], "b": torch.ones(2)},
}
LONG = "encoder.block_with_a_long_name.attention.projection.weight_of_the_first_head_of_all"
PLANS = [
    ("plain", InjectTensor(key="new", source="zeros", dtype="float32", shape=(2, 2))),
    ("plain", InjectTensor(key="new", source="literal:[1.5, -2, 3]", dtype="float32")),
    ("plain", InjectTensor(key="new", source="literal:7", dtype="int64", shape=(3,))),
    ("plain", InjectTensor(key="new", source="literal:0.5", dtype="bfloat16", shape=())),
    ("plain", InjectTensor(key="new", source="literal:true")),
    ("plain", RenameKeys(key="enc.w", to="dec.w")),
    ("plain", RenameKeys(key="enc.w", to=LONG)),
    ("plain", RenameKeys(keys={"enc.w": "enc.x", "enc.b": "enc.c"})),
    ("plain", RenameKeys(key="enc.", to="dec.", how="prefix")),
    ("plain", RenameKeys(key="enc.", to="", how="prefix")),
    ("plain", RenameKeys(key="enc.*", to="dec.*", how="glob")),
    ("plain", RenameKeys(key=r"^enc\.(\w)$", to=r"dec.\1.value", how="regex")),
    ("layers", RenameKeys(key="layers.{0..3}.w", to="blocks.{1..4}.w", how="glob")),
    ("layers", RenameKeys(key=r"^layers\.(\d)\.", to=r"h.\1.", how="regex", numbers={"1": "7"})),
    ("layers", RenameKeys(keys={f"layers.{n}.w": f"layers.{3 - n}.w" for n in range(4)})),
    ("plain", DropKeys(key="enc.b")),
    ("plain", DropKeys(key="enc.*")),
    ("plain", (DropKeys(key="enc.b"), DropKeys(key="n"))),
    ("wrapped", StripPrefix(prefix="module.")),
    ("wrapped", StripPrefix(prefix="enc.", anywhere=True)),
    ("twice", StripPrefix(prefix="module.")),
    ("twice", StripPrefix(prefix="module.", times=1)),
    ("plain", AddPrefix(prefix="model.")),
    ("wrapped", ExtractState(prefix="module.enc.")),
    ("plain", CastTensors(dtype="bfloat16")),
    ("plain", CastTensors(dtype="float64", keys="enc.*", keep=("enc.b",))),
    ("plain", CastTensors(dtype="float16", keys="enc.w")),
    ("plain", ReshapeTensor(key="enc.w", shape=(3, 2))),
    ("plain", TransposeTensor(key="enc.w")),
    ("alike", SplitTensor(key="q", into=("a", "b"), dim=1, sizes=(1, 2))),
    ("alike", SplitTensor(key="q", into=("a", "b"))),
    ("alike", ConcatTensors(keys=("q", "k", "v"), into="qkv", dim=1)),
    ("tied", UntieTensor(key="b")),
    ("plain", TieTensors(key="copy", to="enc.w")),
    ("view", CompactViews()),
    ("masked", BakeMask(key="w", original="w_orig", mask="w_mask")),
    ("norm", RemoveWeightNorm(key="weight", g="g", v="v")),
    ("norm", AddWeightNorm(key="v", g="v_g", v="v_v", dim=1)),
    ("norm", RemoveSpectralNorm(key="weight", original="v", u="u", v="w")),
    ("norm", RemoveSpectralNorm(key="weight", original="v", u="w", v="u", dim=1)),
    (
        "wrapped",
        (
            StripPrefix(prefix="module."),
            RenameKeys(key="enc.w", to="dec.w"),
            TransposeTensor(key="dec.w"),
            InjectTensor(key="dec.m", source="zeros", dtype="bool", shape=(2,)),
        ),
    ),
]  # fmt: skip


class Tensors(nn.Module):
    """A module whose state_dict has these keys, with other values."""

    def __init__(self, state):
        super().__init__()
        for key, tensor in state.items():
            *path, name = key.split(".")
            owner = self
            for part in path:
                if part not in owner._modules:
                    owner.add_module(part, nn.Module())
                owner = owner._modules[part]
            owner.register_buffer(name, torch.zeros_like(tensor))


def save_old(folder, state, version):
    old = OrderedDict(state)
    if version is not None:
        old._metadata = OrderedDict({"": {"version": version}})
    torch.save(old, folder / "old.pth")


def emit(folder, state, steps, version=1):
    """Migrate an old file, and write the hook; return the hook's module and the new state."""
    save_old(folder, state, version)
    steps = steps if isinstance(steps, tuple) else (steps,)
    ckptool.migrate(
        folder / "old.pth", folder / "new.pth", plan=Plan(steps), emit_hook=folder / "upgrade.py"
    )
    spec = importlib.util.spec_from_file_location("upgrade", folder / "upgrade.py")
    hook = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hook)
    return hook, torch.load(folder / "new.pth")


@pytest.mark.parametrize(("name", "steps"), PLANS)
def test_a_hook_loads_what_the_plan_migrates(tmp_path, name, steps):
    hook, new = emit(tmp_path, STATES[name], steps)
    old = torch.load(tmp_path / "old.pth")
    module = Tensors(new)
    module._version = hook.VERSION
    hook.register_upgrade_hook(module)
    module.load_state_dict(old)
    found = module.state_dict()
    assert found.keys() == new.keys()
    assert all(same_bits(found[key], new[key]) for key in new)
    # A file that has been upgraded is left as it is.
    again = Tensors(new)
    again._version = hook.VERSION
    hook.register_upgrade_hook(again)
    again.load_state_dict(found)
    assert all(same_bits(again.state_dict()[key], new[key]) for key in new)


@pytest.mark.parametrize(("name", "steps"), PLANS)
def test_a_hook_loads_it_in_another_module(tmp_path, name, steps):
    hook, new = emit(tmp_path, STATES[name], steps)
    inner = Tensors(new)
    inner._version = hook.VERSION
    hook.register_upgrade_hook(inner)
    outer = nn.ModuleDict({"net": inner, "other": nn.Linear(2, 2)})
    whole = nn.ModuleDict({"outer": outer})
    other = {f"outer.other.{k}": v for k, v in outer["other"].state_dict().items()}
    old = OrderedDict({f"outer.net.{key}": value for key, value in STATES[name].items()} | other)
    old._metadata = OrderedDict({"outer.net": {"version": 1}})
    whole.load_state_dict(old)
    found = inner.state_dict()
    assert all(same_bits(found[key], new[key]) for key in new)


def test_every_operation_has_a_plan():
    steps = itertools.chain.from_iterable(
        steps if isinstance(steps, tuple) else (steps,) for _, steps in PLANS
    )
    assert {type(step) for step in steps} == {*Op.__args__}


def test_files_are_laid_out_as_ruff_does(tmp_path):
    for number, (name, steps) in enumerate(PLANS):
        folder = tmp_path / str(number)
        folder.mkdir()
        emit(folder, STATES[name], steps)
    done = subprocess.run(
        ["ruff", "format", "--isolated", "--diff", tmp_path],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == ""
    assert "already formatted" in done.stderr


def test_the_test_beside_it_passes(tmp_path):
    emit(tmp_path, STATES["wrapped"], PLANS[-1][1])
    spec = importlib.util.spec_from_file_location("test_upgrade", tmp_path / "test_upgrade.py")
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        spec.loader.exec_module(module)
        module.test_an_old_state_dict_is_upgraded()


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        (ExtractState(at="model"), "cannot do step 1, extract `model`: load_state_dict"),
        (
            InjectTensor(key="big", source="zeros", dtype="float32", shape=(65,)),
            "cannot do step 1, inject `big` from zeros: the value has more than 64 elements",
        ),
    ],
)
def test_what_a_hook_cannot_do_is_named(tmp_path, steps, message):
    torch.save({"model": STATES["plain"], "epoch": 3}, tmp_path / "old.pth")
    with pytest.raises(PlanError, match=message):
        ckptool.migrate(
            tmp_path / "old.pth",
            at="model",
            dry_run=True,
            drop_extra=True,
            plan=Plan((steps,)),
            emit_hook=tmp_path / "upgrade.py",
        )
    assert not (tmp_path / "upgrade.py").exists()


def test_a_file_that_cannot_be_told_from_a_new_one_gets_no_hook(tmp_path):
    state = {"w": torch.randn(3, 3)}
    with pytest.raises(PlanError, match="cannot be distinguished from a new one"):
        emit(tmp_path, state, TransposeTensor(key="w"), version=None)
    hook, new = emit(tmp_path, state, TransposeTensor(key="w"))
    module = Tensors(new)
    module._version = hook.VERSION
    hook.register_upgrade_hook(module)
    module.load_state_dict(torch.load(tmp_path / "old.pth"))
    assert torch.equal(module.w, state["w"].T)


def test_files_of_a_hook_are_replaced_only_by_force(tmp_path):
    emit(tmp_path, STATES["plain"], DropKeys(key="n"))
    with pytest.raises(WriteError, match="already exists"):
        ckptool.migrate(
            tmp_path / "old.pth",
            dry_run=True,
            plan=Plan((DropKeys(key="n"),)),
            emit_hook=tmp_path / "upgrade.py",
        )
