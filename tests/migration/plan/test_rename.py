"""A rename step: all its keys at once, by a table, a pattern or a regular expression."""

import re
from pathlib import Path

import pytest
import torch
from files import save_dcp
from torch import nn

import ckptool
from ckptool.errors import PlanError
from ckptool.migration.plan.key_operations import RenameKeys
from ckptool.migration.plan.plan_file import Plan, format_plan, parse_plan, reverse_plan

STATE = {f"net.{n}.{name}": torch.full((2,), float(n)) for n in range(4) for name in ("w", "b")}
SHIFT = {"0": "1", "1": "2", "2": "3", "3": "0"}
STEPS = {
    "table": RenameKeys(
        keys={f"net.{a}.{name}": f"net.{b}.{name}" for a, b in SHIFT.items() for name in ("w", "b")}
    ),
    "glob": RenameKeys(key="net.{0..3}.*", to="net.{1..3,0}.*", how="glob"),
    "regex": RenameKeys(key=r"^net\.(\d)\.(.*)", to=r"net.\1.\2", how="regex", numbers=SHIFT),
    "named group": RenameKeys(
        key=r"^(net)\.(?P<number>\d)", to=r"\1.\2", how="regex", numbers=SHIFT
    ),
}


def migrated(tmp_path, state, *steps, name="b.pth", **options):
    torch.save(state, tmp_path / "a.pth")
    ckptool.migrate(tmp_path / "a.pth", tmp_path / name, plan=Plan(steps), force=True, **options)
    return torch.load(tmp_path / name)


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
def test_layers_trade_places_in_one_step(tmp_path, step):
    found = migrated(tmp_path, STATE, step)
    assert found.keys() == STATE.keys()
    for key, value in STATE.items():
        _, number, name = key.split(".")
        assert torch.equal(found[f"net.{SHIFT[number]}.{name}"], value)


@pytest.mark.parametrize(
    "step",
    [
        STEPS["table"],
        STEPS["glob"],
        RenameKeys(keys={"net.0.w": "net.1.w", "net.1.w": "net.0.w"}),
        RenameKeys(key="net.*.w", to="layers.*.weight", how="glob"),
        RenameKeys(key="*.w", to="*.weight", how="glob"),
        RenameKeys(key="net.", to="", how="prefix"),
        RenameKeys(key="net.0.w", to="first"),
    ],
)
def test_what_maps_one_to_one_has_a_reverse(tmp_path, step):
    after = migrated(tmp_path, STATE, step)
    assert [*after] != [*STATE]
    back = migrated(tmp_path, after, *reverse_plan(Plan((step,))).ops)
    assert back.keys() == STATE.keys()
    assert all(torch.equal(back[key], STATE[key]) for key in STATE)


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
def test_a_step_is_read_as_it_is_written(step):
    plan = Plan((step, RenameKeys(key="a", to="b")))
    assert parse_plan(format_plan(plan)) == plan


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (RenameKeys(keys={"net.0.w": "net.1.w"}), "the file already has `net.1.w`"),
        (
            RenameKeys(keys={"net.0.w": "x", "net.9.w": "y"}),
            "`net.9.w`: no key of the file matches",
        ),
        (RenameKeys(keys={"net.0.w": "x", "net.1.w": "x"}), "two keys of the table"),
        (RenameKeys(key="net.*.w", to="x", how="glob"), "1 wildcards and `x` 0"),
        (RenameKeys(key="net.{0,1}.w", to="net.{5}.w", how="glob"), "must have the same length"),
        (RenameKeys(key="net.{0..999999999}.w", to="n.{1..5}.w", how="glob"), "more than 100,000"),
        (RenameKeys(key="net.{0,1}.w", to="net.*.w", how="glob"), "must have the same length"),
        (RenameKeys(key="nett.*", to="n.*", how="glob"), ": no key of the file matches"),
        (RenameKeys(key=r"net\.\d", to="x", how="regex", numbers=SHIFT), "needs a captured group"),
        (RenameKeys(key=r"net\.(\d)", to=r"\2", how="regex"), "is not a regular expression:"),
        (RenameKeys(key="net.0.w", to="x", numbers=SHIFT), "goes with how = "),
        (RenameKeys(key="a", to="b", keys={"net.0.w": "x"}), "either `key` and `to`, or a table"),
        (RenameKeys(), "either `key` and `to`, or a table"),
        (RenameKeys(key=r"net\.\d\.w", to="x", how="regex"), "would both become `x`"),
    ],
)
def test_what_a_rename_refuses(tmp_path, step, message):
    with pytest.raises(PlanError, match=f"step 1: .*{message}"):
        migrated(tmp_path, STATE, step)


def test_the_documented_steps_are_three_ways_of_one(tmp_path):
    page = Path(__file__).parents[3] / "docs" / "plan.md"
    section = page.read_text(encoding="utf-8").partition("## Renames of many keys")[2]
    texts = re.findall(r"```toml\n(.*?)```", section.partition("\n## ")[0], re.DOTALL)
    state = Net((2, 3, 4)).state_dict()
    for text in texts:
        found = migrated(tmp_path, state, *parse_plan(text).ops)
        assert {key.split(".")[1] for key in found} == {"0", "2", "3"}
        assert torch.equal(found["net.2.weight"], state["net.1.weight"])
        assert torch.equal(found["net.3.bias"], state["net.2.bias"])
    assert len(texts) == 3


class Net(nn.Module):
    """Three layers once; today a layer more, in second place."""

    def __init__(self, sizes=(2, 3, 4, 5)):
        super().__init__()
        self.net = nn.Sequential(*(nn.Linear(a, a + 1) for a in sizes))


def build_longer():
    module = Net()
    module.net.insert(1, nn.LayerNorm(3))
    return module


def build_equal():
    return Net((2, 2, 2))


HERE = "migration.plan.test_rename:"


def test_refusals_judge_what_is_there_after_the_step(tmp_path):
    """`net.1` is a key of the module, of another shape: the layer in its place is a new one."""
    old = Net()
    step = RenameKeys(key="net.{1..3}.*", to="net.{2..4}.*", how="glob")
    found = migrated(tmp_path, old.state_dict(), step, name="c.pth")
    assert [key for key in build_longer().state_dict() if key not in found] == [
        "net.1.weight",
        "net.1.bias",
    ]
    with pytest.raises(ckptool.CkptoolError, match=r"2 missing \(net.1.bias, net.1.weight\)"):
        migrated(tmp_path, old.state_dict(), step, module=f"{HERE}build_longer")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"net.1.weight": "x"}, "the module has `net.1.weight`"),
        ({"extra": "other"}, "the module has no `other`"),
        ({"extra": "net.0.weight"}, "the file already has `net.0.weight`"),
        ({"net.0.weight": "extra", "extra": "net.0.weight"}, "the module has no `extra`"),
    ],
)
def test_a_module_refuses_what_it_would_lose(tmp_path, keys, message):
    state = build_equal().state_dict() | {"extra": torch.ones(3, 2)}
    with pytest.raises(PlanError, match=f"CK221: .*{message}"):
        migrated(tmp_path, state, RenameKeys(keys=keys), module=f"{HERE}build_equal")


def test_two_layers_that_the_module_has_may_trade_places(tmp_path):
    state = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)).state_dict()
    state = {f"net.{key}": value for key, value in state.items()} | {
        "net.2.weight": torch.ones(3, 2), "net.2.bias": torch.ones(3),
    }  # fmt: skip
    step = RenameKeys(key="net.{0,1}.*", to="net.{1,0}.*", how="glob")
    found = migrated(tmp_path, state, step)
    assert torch.equal(found["net.0.weight"], state["net.1.weight"])
    assert torch.equal(found["net.1.bias"], state["net.0.bias"])


def test_versions_move_with_their_modules(tmp_path):
    """BatchNorm's version, without which torch takes the file for one of before 0.4.1."""
    module = nn.ModuleDict(
        {
            "net": nn.Sequential(nn.BatchNorm1d(2), nn.ReLU(), nn.BatchNorm1d(2)),
            "fc": nn.Linear(2, 2),
        }
    )
    for step in (
        RenameKeys(key="net.{0,2}.*", to="net.{2,0}.*", how="glob"),
        RenameKeys(key="net.*", to="body.*", how="glob"),
        RenameKeys(key="net.", to="body.", how="prefix"),
        RenameKeys(keys={k: f"body.{k[4:]}" for k in module.state_dict() if k.startswith("net.")}),
    ):
        found = migrated(tmp_path, module.state_dict(), step)
        renamed = {k.rpartition(".")[0] for k in found if "running_mean" in k}
        assert {found._metadata[prefix]["version"] for prefix in renamed} == {2}
        assert "" in found._metadata
        assert "net.0" not in found._metadata or "net.0" in renamed
    loaded = nn.ModuleDict({"body": module.net, "fc": module.fc}).load_state_dict(found)
    assert str(loaded) == "<All keys matched successfully>"


def test_a_version_stays_where_part_of_a_module_stays(tmp_path):
    module = nn.ModuleDict({"conv": nn.Linear(2, 2)})
    found = migrated(
        tmp_path, module.state_dict(), RenameKeys(key="conv.weight", to="conv.lin.weight")
    )
    assert found._metadata["conv"] == found._metadata["conv.lin"] == {"version": 1}


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_chunked_tensors_are_renamed(tmp_path):
    save_dcp({"model": dict(STATE)}, tmp_path / "dcp")
    steps = [RenameKeys(key="net.{0..3}.*", to="net.{1..3,0}.*", how="glob")]
    ckptool.migrate(tmp_path / "dcp", tmp_path / "b.pth", plan=Plan(tuple(steps)))
    found = torch.load(tmp_path / "b.pth")["model"]
    assert torch.equal(found["net.1.w"], STATE["net.0.w"])
    assert torch.equal(found["net.0.b"], STATE["net.3.b"])


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_packed_tensors_are_renamed(tmp_path):
    module = torch.ao.quantization.quantize_dynamic(
        nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2)), {nn.Linear}, torch.qint8
    )
    state = {f"net.{key}": value for key, value in module.state_dict().items()}
    quantised = {
        f"net.{n}.q": torch.quantize_per_tensor(torch.tensor([1.0 - n]), 0.1, 0, torch.qint8)
        for n in range(2)
    }
    step = RenameKeys(key="net.{0,1}.*", to="net.{1,0}.*", how="glob")
    found = migrated(tmp_path, quantised, step)
    assert torch.equal(found["net.1.q"].dequantize(), torch.ones(1))
    moved = migrated(tmp_path, state, step)
    for old, new in (("0", "1"), ("1", "0")):
        weight, _ = state[f"net.{old}._packed_params._packed_params"]
        found_weight, _ = moved[f"net.{new}._packed_params._packed_params"]
        assert torch.equal(found_weight.dequantize(), weight.dequantize())
