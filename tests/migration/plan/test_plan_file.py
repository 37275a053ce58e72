"""read(write(plan)) = plan, and what a file that is no plan is told."""

from collections.abc import Mapping
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

import ckptool
from ckptool.errors import PlanError
from ckptool.migration.plan.key_operations import DropKeys, InjectTensor, RenameKeys, RenameMode
from ckptool.migration.plan.plan_file import (
    Op,
    Plan,
    encode_plan,
    format_plan,
    parse_plan,
    reverse_plan,
)
from ckptool.migration.plan.tensor_operations import TransposeTensor

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
numbers = st.integers(0, 2**40)
fields = {
    str: text,
    bool: st.booleans(),
    RenameMode: st.sampled_from(get_args(RenameMode)),
    int: numbers,
    Mapping[str, str]: st.dictionaries(text, text, max_size=3),
    tuple[int, ...]: st.lists(numbers, max_size=3).map(tuple),
    tuple[str, ...]: st.lists(text, max_size=3).map(tuple),
    tuple[int, int]: st.tuples(numbers, numbers),
    tuple[int, ...] | None: st.none() | st.lists(numbers, max_size=3).map(tuple),
}
ops = st.one_of(
    *(st.builds(op, **{f.name: fields[f.type] for f in structs.fields(op)}) for op in Op.__args__)
)


@given(st.lists(ops, max_size=4).map(tuple), st.booleans())
def test_read_write(steps, undoes):
    plan = Plan(steps, undoes=undoes)
    assert parse_plan(format_plan(plan)) == plan


def test_the_text():
    plan = Plan((InjectTensor(key="mask", source="constructor", shape=(6, 6), why='a\n"b"'),))
    assert format_plan(plan) == (
        'schema = 1\n\n[[ops]]\nop = "inject"\nwhy = "a\\n\\"b\\""\nkey = "mask"\n'
        'source = "constructor"\nshape = [\n    6,\n    6,\n]\n'
    )


def test_half_of_a_surrogate_pair_is_no_reason_to_fail():
    """A key of a pickle may have one; a plan that named it ended with a UnicodeEncodeError."""
    plan = Plan((DropKeys(key="a\ud800"),))
    assert parse_plan(format_plan(plan)).ops == (DropKeys(key="a\ufffd"),)
    assert encode_plan(plan) == [{"op": "drop", "key": "a\ud800"}]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ops = ", "is not valid TOML:"),
        ("schema = 2", "schema 2 is not supported"),
        ("opps = []", r"there is no key 'opps': did you mean 'ops'\?"),
        (
            '[[ops]]\nop = "injct"',
            r"step 1: there is no operation 'injct': did you mean 'inject'\?",
        ),
        (
            '[[ops]]\nop = "drop"\nkeys = "x"',
            r"step 1: drop has no key 'keys': did you mean 'key'\?",
        ),
        ('[[ops]]\nop = "drop"', "step 1: `key` is missing"),
        ('[[ops]]\nop = "drop"\nkey = 1', "step 1: key: expected text in quotes"),
        ('[[ops]]\nkey = "x"', "step 1: `op` is missing"),
        ("ops = 3", "ops: expected a list, and it is an integer"),
        (
            '[[ops]]\nop = "rename"\nkey = "a"\nto = "b"\nhow = "regx"',
            "step 1: how: 'regx' is not one of exact, prefix, glob, regex",
        ),
    ],
)
def test_what_is_no_plan(text, message):
    with pytest.raises(PlanError, match=message):
        parse_plan(text)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(PlanError, match=r"plan.toml: no such file"):
        ckptool.migrate(tmp_path / "a.pth", tmp_path / "b.pth", plan=tmp_path / "plan.toml")


def test_what_cannot_be_undone_is_named():
    plan = Plan(
        (RenameKeys(key="a", to="b"), DropKeys(key="x"), RenameKeys(key="x", to="y", how="regex"))
    )
    with pytest.raises(PlanError) as error:
        reverse_plan(plan)
    assert str(error.value) == (
        "the plan has no reverse: drop `x`: its value is not in the output; "
        "rename `x`: a regular expression cannot be reversed"
    )


def test_a_saved_plan_is_run_again_undone_and_refused_twice(tmp_path, samples):
    options = {"module": "samples.attention:CausalAttentionWithBuffer",
               "kwargs": {"d_in": 3, "d_out": 2, "context_length": 6}}  # fmt: skip
    first = ckptool.migrate(
        samples / "model.pth", dry_run=True, save_plan=tmp_path / "plan.toml", **options
    )
    assert first.verdict == "planned (dry run): would load strictly"
    options["plan"] = tmp_path / "plan.toml"
    done = ckptool.migrate(samples / "model.pth", tmp_path / "a.pth", **options)
    assert done.steps == first.steps
    again = ckptool.migrate(tmp_path / "a.pth", tmp_path / "b.pth", **options)
    assert again.verdict == "copied without changes: the plan was already applied: loads strictly"
    assert again.result_digest == done.result_digest
    back = ckptool.migrate(
        tmp_path / "a.pth", tmp_path / "c.pth", plan=tmp_path / "plan.toml", reverse=True
    )
    assert back.result_digest == done.source_digest
    with pytest.raises(PlanError, match="the file already has that key"):
        ckptool.migrate(samples / "buffer.pth", tmp_path / "d.pth", **options)


def test_a_plan_that_is_its_own_reverse_is_undone(tmp_path):
    torch.save({"w": torch.arange(6).reshape(2, 3)}, tmp_path / "a.pth")
    plan = Plan((TransposeTensor(key="w", dims=(0, 1)),))
    ckptool.migrate(tmp_path / "a.pth", tmp_path / "b.pth", plan=plan)
    done = ckptool.migrate(tmp_path / "b.pth", tmp_path / "c.pth", plan=reverse_plan(plan))
    assert done.verdict == "migrated"
    assert torch.load(tmp_path / "c.pth")["w"].equal(torch.arange(6).reshape(2, 3))
    again = ckptool.migrate(tmp_path / "b.pth", tmp_path / "d.pth", plan=plan)
    assert again.verdict.startswith("copied without changes")
