"""apply = execute: what an operation says of the result is what torch computes, bit for bit."""

from collections import OrderedDict
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from files import same_bits
from hypothesis import given, settings
from hypothesis import strategies as st
from migration.states import FLOATS, SHM, filled, state_dicts
from paths import examples
from safetensors.torch import load_file

import ckptool
from ckptool.errors import PlanError
from ckptool.formats import open_checkpoint
from ckptool.formats.limits import DEFAULT_LIMITS
from ckptool.migration.plan.anonymous_file import AnonymousFile
from ckptool.migration.plan.draft import create_draft
from ckptool.migration.plan.key_operations import (
    AddPrefix,
    DropKeys,
    ExtractState,
    InjectTensor,
    RenameKeys,
    StripPrefix,
)
from ckptool.migration.plan.plan_file import Plan, apply_plan, reverse_plan
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
from ckptool.migration.plan.value_sources import ValueSources
from ckptool.migration.source_guard import SourceGuard

INTEGERS = {torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8}
"""Their products have one result; of NaNs there are many."""


def normalise(weight, u, v, dim):
    """Return what torch's own layer computes with these tensors."""
    layer = torch.nn.Module()
    layer.weight = torch.nn.Parameter(torch.ones_like(weight))
    torch.nn.utils.parametrizations.spectral_norm(layer.eval(), dim=dim)
    names = ("original", "0._u", "0._v")
    state = {f"parametrizations.weight.{n}": t for n, t in zip(names, (weight, u, v), strict=True)}
    layer.load_state_dict(state, strict=True)
    return layer.weight.detach()


def reference(op, state):  # noqa: C901, PLR0912 - a case each
    """Do to tensors what the operation says in words."""
    found = OrderedDict(state)
    match op:
        case InjectTensor(key=key, dtype=dtype, shape=shape):
            found[key] = torch.zeros(shape, dtype=getattr(torch, dtype))
        case RenameKeys(key=key, to=to, how="exact"):
            found = OrderedDict((to if k == key else k, v) for k, v in found.items())
        case DropKeys(key=key):
            del found[key]
        case AddPrefix(prefix=prefix):
            found = OrderedDict((prefix + k, v) for k, v in found.items())
        case CastTensors(keys=key, dtype=dtype):
            if found[key].is_floating_point():
                found[key] = found[key].to(getattr(torch, dtype))
        case ReshapeTensor(key=key, shape=shape):
            found[key] = found[key].reshape(shape)
        case TransposeTensor(key=key, dims=dims):
            found[key] = found[key].transpose(*dims)
        case SplitTensor(key=key, into=into, dim=dim, sizes=sizes):
            pieces = found.pop(key).split(sizes, dim)
            found |= zip(into, pieces, strict=True)
        case ConcatTensors(keys=keys, into=into, dim=dim):
            found[into] = torch.cat([found[key] for key in keys], dim)
            for key in keys:
                del found[key]
        case BakeMask(key=key, original=original, mask=mask):
            found[key] = found.pop(original) * found.pop(mask)
        case AddWeightNorm(key=key, g=g, v=v, dim=dim):
            found[g], found[v] = torch.norm_except_dim(found[key], 2, dim), found.pop(key)
        case RemoveWeightNorm(key=key, g=g, v=v, dim=dim):
            found[key] = torch._weight_norm(found.pop(v).contiguous(), found.pop(g), dim)
        case RemoveSpectralNorm(key=key, original=original, u=u, v=v, dim=dim):
            found[key] = normalise(*(found.pop(key) for key in (original, u, v)), dim)
        case TieTensors() | UntieTensor() | CompactViews():
            pass
    return found


@st.composite
def steps(draw, state):
    """Return an operation that fits `state`."""
    key = draw(st.sampled_from(list(state)))
    tensor = state[key]
    choices = [
        InjectTensor(key="new", source="zeros", dtype="float32", shape=(2, 2)),
        RenameKeys(key=key, to="renamed"),
        AddPrefix(prefix="model."),
    ]
    if "tied" not in state:
        choices.append(TieTensors(key="tied", to=key))
    if len(state) > 1:
        choices.append(DropKeys(key=key))
    if tensor.dtype in FLOATS:
        choices.append(CastTensors(keys=key, dtype=draw(st.sampled_from(["bfloat16", "float32"]))))
    if tensor.is_contiguous():
        choices.append(ReshapeTensor(key=key, shape=(tensor.numel(), 1), was=tuple(tensor.shape)))
    if tensor.dim() >= 2:
        choices.append(TransposeTensor(key=key, dims=(0, -1)))
    if tensor.dim():
        dim = draw(st.integers(0, tensor.dim() - 1))
        size = tensor.shape[dim]
        first = draw(st.integers(0, size))
        choices.append(
            SplitTensor(key=key, into=("one", "two"), dim=dim, sizes=(first, size - first))
        )
        alike = [k for k, t in state.items() if (t.shape, t.dtype) == (tensor.shape, tensor.dtype)]
        if len(alike) > 1:
            choices.append(ConcatTensors(keys=tuple(alike), into="joined", dim=dim))
        if len(alike) > 1 and tensor.dtype in INTEGERS:
            choices.append(BakeMask(key="baked", original=alike[0], mask=alike[1]))
    return draw(st.sampled_from(choices))


def _into(op) -> tuple[str, ...]:
    into = getattr(op, "into", ())
    return (into,) if isinstance(into, str) else into


@st.composite
def cases(draw):
    state = draw(state_dicts())
    plan, after = [], state
    for _ in range(draw(st.integers(1, 3))):
        op = draw(steps(after))
        produced = {getattr(op, "to", ""), getattr(op, "key", ""), *_into(op)}
        taken = {"renamed", "new", "joined", "baked", "one", "two"} & after.keys()
        if isinstance(op, TieTensors):
            after = OrderedDict(after, tied=after[op.to])
        elif produced & taken:
            continue
        else:
            after = reference(op, after)
        plan.append(op)
    return state, plan, after


@given(cases())
@settings(max_examples=examples(60))
def test_apply_is_execute(case):
    state, plan, after = case
    with TemporaryDirectory(dir=SHM) as name:
        folder = Path(name)
        torch.save(state, folder / "a.pth")
        try:
            described = described_after(folder / "a.pth", plan)
        except PlanError as error:
            # A transposed tensor cannot be reshaped, a joined one not be cut: both say so.
            assert "compact it first" in str(error) or "only plain tensors" in str(error)  # noqa: PT017
            return
        forms = {key: (t.shape, t.dtype) for key, t in described.items()}
        assert forms == {
            key: (tuple(t.shape), str(t.dtype).removeprefix("torch.")) for key, t in after.items()
        }
        for target in (folder / "b.pth", folder / "c.safetensors"):
            ckptool.migrate(folder / "a.pth", target, plan=Plan(tuple(plan)))
        found = torch.load(folder / "b.pth")
        assert found.keys() == after.keys()
        assert all(same_bits(found[key], after[key]) for key in after)
        written = load_file(folder / "c.safetensors")
        assert all(same_bits(written[key], after[key]) for key in written)


def described_after(path, plan, **facts):
    checkpoint = open_checkpoint(path)
    with AnonymousFile() as memory:
        sources = ValueSources(None, None, memory, SourceGuard(), DEFAULT_LIMITS)
        draft = apply_plan(plan, create_draft(checkpoint, checkpoint.states[0]), sources)
        return draft.result_state.tensors


@given(cases())
@settings(max_examples=examples(30))
def test_a_plan_and_its_reverse_give_the_same_state(case):
    state, plan, _ = case
    try:
        back = reverse_plan(Plan(tuple(plan)))
    except PlanError as error:
        assert "has no reverse" in str(error)  # noqa: PT017
        return
    with TemporaryDirectory(dir=SHM) as name:
        folder = Path(name)
        torch.save(OrderedDict(state), folder / "a.pth")
        try:
            ckptool.migrate(folder / "a.pth", folder / "b.pth", plan=Plan(tuple(plan)))
            ckptool.migrate(folder / "b.pth", folder / "c.pth", plan=back)
        except PlanError as error:
            # A name that a tie brought stays when it is undone, and may be in a prefix's way.
            expected = (
                "compact it first",
                "only plain tensors",
                "shares nothing",
                "both be called",
            )
            assert any(text in str(error) for text in expected)  # noqa: PT017
            return
        found = torch.load(folder / "c.pth")
        kept = {key: tensor for key, tensor in found.items() if key != "tied"}
        assert kept.keys() == state.keys()
        assert all(same_bits(kept[key], state[key]) for key in state)


W = {"module.enc.w": filled((2, 3), torch.float32), "module.enc.b": filled((2,), torch.float32)}
NUMBERS = {"w": torch.arange(6).reshape(2, 3), "v": torch.ones(2, 3)}


@pytest.mark.parametrize(
    ("state", "op", "keys"),
    [
        (W, StripPrefix(prefix="module."), ["enc.w", "enc.b"]),
        (W, StripPrefix(prefix="enc.", anywhere=True), ["module.w", "module.b"]),
        (W, RenameKeys(key="module.enc.", to="e.", how="prefix"), ["e.w", "e.b"]),
        (W, RenameKeys(key=r"^module\.(\w+)\.", to=r"\1_", how="regex"), ["enc_w", "enc_b"]),
        (W, DropKeys(key="*.b"), ["module.enc.w"]),
        (W, ExtractState(prefix="module.enc."), ["w", "b"]),
        ({"module.module.w": W["module.enc.w"]}, StripPrefix(prefix="module."), ["w"]),
        (W, SplitTensor(key="module.enc.w", into=("a", "b"), dim=0), ["module.enc.b", "a", "b"]),
    ],
)
def test_keys(tmp_path, state, op, keys):
    torch.save(state, tmp_path / "a.pth")
    assert list(described_after(tmp_path / "a.pth", [op])) == keys


@pytest.mark.parametrize(
    ("op", "message"),
    [
        (DropKeys(key="x"), "step 1: drop `x`: no key of the file matches"),
        (RenameKeys(key="x", to="y"), ": no key of the file matches"),
        (RenameKeys(key="w", to="v"), "CK221: `w` is not renamed to `v`: the file already has `v`"),
        (RenameKeys(key="(", to="v", how="regex"), "is not a regular expression:"),
        (StripPrefix(prefix="module."), ": no key begins with it"),
        (StripPrefix(prefix="w"), "only complete segments can be changed: write `w.`"),
        (AddPrefix(prefix="model"), "only complete segments can be changed:"),
        (ExtractState(at="ema"), "no tensors at that key path; there are `.`"),
        (ExtractState(prefix="enc."), ": no key begins with it"),
        (InjectTensor(key="w", source="zeros"), "the file already has that key"),
        (InjectTensor(key="x", source="zeroes"), "is not a source: attribute,"),
        (InjectTensor(key="x", source="constructor"), r"needs a module \(-m\)"),
        (InjectTensor(key="x", source="attribute"), "no pickled module has the attribute `x`"),
        (InjectTensor(key="x", source="literal:one"), "is not a number or nested list"),
        (InjectTensor(key="x", source="literal:" + "[" * 100_000), "the literal nests too deep"),
        (InjectTensor(key="x", source='literal:["a"]'), "something other than numbers"),
        (InjectTensor(key="x", source="literal:[1,2]", shape=(3,)), "2 numbers for the shape"),
        (InjectTensor(key="x", source="literal:300", dtype="uint8"), "is not a uint8"),
        (
            InjectTensor(key="x", source="literal:0.1", dtype="bfloat16"),
            "cannot be converted to bfloat16",
        ),
        (CastTensors(dtype="int8"), "`int8` is not one of"),
        (CastTensors(keys="w", dtype="float16"), ": no floating point tensor matches"),
        (CastTensors(dtype="float16", keep=("*",)), "no floating point tensor"),
        (ReshapeTensor(key="w", shape=(4,)), r"\[2, 3\] does not fit \[4\]"),
        (ReshapeTensor(key="w", shape=(6,), was=(6, 1)), r"it is \[2, 3\], not \[6, 1\]"),
        (TransposeTensor(key="x"), "the file has no tensor with that name"),
        (TransposeTensor(key="w", dims=(0, 2)), "no dimension 2"),
        (
            SplitTensor(key="w", into=("a", "b"), dim=1),
            "3 along dimension 1 does not divide into 2 pieces",
        ),
        (SplitTensor(key="w", into=("v", "b")), "the file already has `v`"),
        (ConcatTensors(keys=(), into="x"), ": no tensors were given"),
        (ConcatTensors(keys=("w", "v"), into="x"), "`v` does not fit `w`"),
        (TieTensors(key="v", to="w"), "its values differ from those of `w`"),
        (UntieTensor(key="w"), "it shares nothing"),
        (CompactViews(), "none is a view of a larger storage"),
    ],
)
def test_what_an_operation_refuses(tmp_path, op, message):
    torch.save(NUMBERS, tmp_path / "a.pth")
    with pytest.raises(PlanError, match=message):
        described_after(tmp_path / "a.pth", [op])


NORMED = {"g": torch.rand(4, 1), "v": torch.randn(4, 3), "u": torch.rand(4), "w": torch.rand(3)}
NORM_STEPS = [
    RemoveWeightNorm(key="new", g="g", v="v"),
    AddWeightNorm(key="v", g="v_g", v="v_v", dim=1),
    AddWeightNorm(key="v", g="v_g", v="v_v", dim=-1),
    RemoveSpectralNorm(key="new", original="v", u="u", v="w"),
    RemoveSpectralNorm(key="new", original="v", u="w", v="u", dim=1),
]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("op", NORM_STEPS)
def test_norms_are_what_torch_computes(tmp_path, op, dtype):
    state = {key: tensor.to(dtype) for key, tensor in NORMED.items()}
    torch.save(state, tmp_path / "a.pth")
    expected = reference(op, state)
    described = described_after(tmp_path / "a.pth", [op])
    assert {key: t.shape for key, t in described.items()} == {
        key: tuple(t.shape) for key, t in expected.items()
    }
    ckptool.migrate(tmp_path / "a.pth", tmp_path / "b.pth", plan=Plan((op,)))
    found = torch.load(tmp_path / "b.pth")
    assert found.keys() == expected.keys()
    assert all(same_bits(found[key], expected[key]) for key in expected)


@pytest.mark.parametrize(
    ("op", "message"),
    [
        (
            RemoveWeightNorm(key="x", g="u", v="v"),
            r"`u` is \[4\], which is not a norm of `v` \[4, 3\]",
        ),
        (RemoveWeightNorm(key="x", g="g", v="v", dim=1), "along dimension 1"),
        (RemoveWeightNorm(key="w", g="g", v="v"), "the file already has `w`"),
        (RemoveWeightNorm(key="x", g="y", v="v"), "remove-weight-norm `y`: the file has no tensor"),
        (AddWeightNorm(key="v", g="a", v="b", dim=2), "2 dimensions and no dimension 2"),
        (AddWeightNorm(key="v", g="g", v="b"), "the file already has `g`"),
        (
            RemoveSpectralNorm(key="x", original="v", u="u", v="u"),
            "do not match dimension 0 of `v`",
        ),
    ],
)
def test_what_a_norm_refuses(tmp_path, op, message):
    torch.save(NORMED, tmp_path / "a.pth")
    with pytest.raises(PlanError, match=message):
        described_after(tmp_path / "a.pth", [op])


def test_a_norm_of_what_was_cast_is_refused(tmp_path):
    torch.save(NORMED, tmp_path / "a.pth")
    steps = [CastTensors(dtype="float16"), NORM_STEPS[0]]
    with pytest.raises(PlanError, match=": compute first, then cast the result"):
        described_after(tmp_path / "a.pth", steps)


def test_a_collision_is_refused(tmp_path):
    torch.save({"module.w": NUMBERS["w"], "w": NUMBERS["w"]}, tmp_path / "a.pth")
    with pytest.raises(PlanError, match=r"`module.w` and `w` would both become `w`"):
        described_after(tmp_path / "a.pth", [StripPrefix(prefix="module.")])


def test_compact_leaves_the_rest_of_a_storage_behind(tmp_path):
    torch.save({"w": torch.ones(100_000)[:10]}, tmp_path / "a.pth")
    ckptool.migrate(tmp_path / "a.pth", tmp_path / "b.pth")
    assert (tmp_path / "b.pth").stat().st_size > 400_000
    report = ckptool.migrate(tmp_path / "a.pth", tmp_path / "c.pth", plan=Plan((CompactViews(),)))
    assert (tmp_path / "c.pth").stat().st_size < 4000
    assert report.steps[0].loses == "the elements of storages that no tensor uses"
    assert torch.equal(torch.load(tmp_path / "c.pth")["w"], torch.ones(10))


def test_versions_are_carried_along(tmp_path):
    module = torch.nn.Sequential(torch.nn.BatchNorm1d(2))
    torch.save(torch.nn.DataParallel(module).state_dict(), tmp_path / "a.pth")
    ckptool.migrate(
        tmp_path / "a.pth", tmp_path / "b.pth", plan=Plan((StripPrefix(prefix="module."),))
    )
    found = torch.load(tmp_path / "b.pth")
    assert found._metadata == module.state_dict()._metadata
    assert list(found) == list(module.state_dict())
