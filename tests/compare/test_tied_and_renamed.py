"""Ties that safetensors leaves out, in files whose keys have other names.

The truth is torch's: the keys that `load_state_dict` misses once the names are right.
"""

import shlex

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import ckptool
from ckptool import api


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(8, 4)
        self.body = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
        self.head = nn.Linear(4, 8, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x):
        return self.head(self.body(self.embed(x)))


PREFIXES = ("module.", "model.transformer.", "_orig_mod.")
MAKE_NAMES = {
    **{prefix: lambda key, prefix=prefix: prefix + key for prefix in PREFIXES},
    "embed -> wte": lambda key: key.replace("embed.", "wte."),
    "embed and body": lambda key: key.replace("embed.", "wte.").replace("body.", "layers."),
}


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Tied()


def write(path, state, *, declared):
    """Write the state as safetensors with one of the tied names; return the name left out."""
    tied = next(key for key in state if key.endswith("head.weight"))
    kept = {key: tensor.contiguous() for key, tensor in state.items() if key != tied}
    stored = next(k for k, t in kept.items() if t.data_ptr() == state[tied].data_ptr())
    save_file(kept, path, metadata={tied: stored} if declared else None)
    return tied


@pytest.mark.parametrize("declared", [True, False])
@pytest.mark.parametrize("names", MAKE_NAMES)
def test_a_tied_key_is_no_cause_of_its_own_where_the_names_are(tmp_path, model, names, declared):
    rename = MAKE_NAMES[names]
    path = tmp_path / "a.safetensors"
    write(path, {rename(k): t for k, t in model.state_dict().items()}, declared=declared)
    report = api.diff(path, module=Tied())
    right = {k: t for k, t in model.state_dict().items() if k != "head.weight"}
    assert Tied().load_state_dict(right, strict=False).missing_keys == ["head.weight"]
    codes = {finding.code for finding in report.findings}
    assert "CK201" not in codes
    assert codes & {"CK209", "CK211"}
    target = tmp_path / "b.pth"
    assert api.migrate(path, target, module=Tied(), accept_renames=True).exit_code == 0
    new = Tied()
    assert new.load_state_dict(torch.load(target)).missing_keys == []
    x = torch.arange(6)
    assert torch.equal(new(x), model(x))


@pytest.mark.parametrize("prefix", PREFIXES)
def test_the_advice_for_a_prefix_is_code_only_where_code_cures_it(tmp_path, model, prefix):
    state = {prefix + key: tensor for key, tensor in model.state_dict().items()}
    path = tmp_path / "a.safetensors"
    write(path, state, declared=True)
    finding = next(f for f in api.diff(path, module=Tied()).findings if f.code == "CK209")
    assert "in code:" not in finding.fix
    torch.save(state, tmp_path / "a.pth")
    report = api.diff(tmp_path / "a.pth", module=Tied())
    finding = next(f for f in report.findings if f.code == "CK209")
    code = finding.fix.rpartition("state_dict = ")[2]
    rewritten = eval(code, {"state_dict": state})
    assert Tied().load_state_dict(rewritten).missing_keys == []


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("declared", [True, False])
@pytest.mark.parametrize("names", MAKE_NAMES)
def test_a_renamed_tie_is_no_removed_key(tmp_path, model, names, declared, swapped):
    rename = MAKE_NAMES[names]
    torch.save(model.state_dict(), tmp_path / "a.pth")
    tied = write(
        tmp_path / "b.safetensors",
        {rename(k): t for k, t in model.state_dict().items()},
        declared=declared,
    )
    files = [tmp_path / "a.pth", tmp_path / "b.safetensors"]
    report = ckptool.diff(*(reversed(files) if swapped else files))
    renames = {b: a for a, b in report.renamed_keys.items()} if swapped else report.renamed_keys
    expected = {k: rename(k) for k in model.state_dict() if rename(k) != k}
    assert rename("head.weight") == tied
    assert renames == expected
    assert {*report.added_keys, *report.removed_keys} == {*expected, *expected.values()}


def test_a_rename_of_two_files_is_one_problem_with_a_command_that_cures_it(
    tmp_path, model, run_command
):
    torch.save({f"module.{k}": t for k, t in model.state_dict().items()}, tmp_path / "a.pth")
    torch.save(model.state_dict(), tmp_path / "b.pth")
    report = api.diff(tmp_path / "a.pth", tmp_path / "b.pth")
    assert len({finding.cause for finding in report.findings}) == 1
    finding = next(f for f in report.findings if f.code == "CK211")
    assert (finding.key, finding.facts["found"]) == ("module.*", "*")
    words = shlex.split(finding.fix.rpartition(": ")[2])
    target = tmp_path / "c.pth"
    words[words.index("-o") + 1] = str(target)
    assert run_command(*words[1:]).code == 0
    cured = ckptool.diff(target, tmp_path / "b.pth")
    assert (cured.removed_keys, cured.added_keys, cured.changed_keys) == ((), (), ())


def test_shards_of_a_file_are_the_same_state_with_nothing_left_to_compare(tmp_path, model):
    torch.save(model.state_dict(), tmp_path / "a.pth")
    api.convert(tmp_path / "a.pth", tmp_path / "shards", max_shard_size=200)
    report = ckptool.diff(tmp_path / "a.pth", tmp_path / "shards")
    assert (report.verdict, report.skipped) == ("same state, different format", ())
