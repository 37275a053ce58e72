"""What distributed training leaves: placeholders, DCP folders, DeepSpeed's folders."""

import argparse
import io
import json
import pathlib
import pickle

import pytest
import torch
import torch.distributed.checkpoint as dcp
from command_runs import Ran
from torch import nn

import ckptool


def build_net():
    return nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))


def empty_state(prefix, only=""):
    """Return a state as ZeRO-3 leaves it: tensors of shape [0] below a wrapper's prefix."""
    return {
        prefix + key: torch.empty(0) if key.startswith(only) else value
        for key, value in build_net().state_dict().items()
    }


WRAPPED = {
    "plain": empty_state(""),
    "module": empty_state("module."),
    "compiled": empty_state("module._orig_mod."),
    "fsdp": empty_state("_fsdp_wrapped_module."),
    "lightning": {"state_dict": empty_state("_forward_module.model."), "epoch": 1},
    "averaged": {"n_averaged": torch.tensor(3), **empty_state("module.")},
    "renamed": empty_state("backbone."),
    "in part": empty_state("module.", only="0"),
}


@pytest.mark.parametrize("kind", WRAPPED)
def test_placeholders_under_a_wrapper_are_called_so(kind, tmp_path):
    path, content = tmp_path / "zero3.pth", WRAPPED[kind]
    torch.save(content, path)
    state = content.get("state_dict", content)
    with pytest.raises(RuntimeError):
        build_net().load_state_dict(state)
    report = ckptool.diff(path, module=build_net())
    assert report.verdict.startswith("does not load")
    placeholders = {key for key, value in state.items() if value.shape == (0,)}
    codes = {k.key: k.code for k in report.verdicts}
    assert {codes[key] for key in placeholders} == {"CK320"}
    missing = {k.key for k in report.verdicts if k.problem == "missing" and k.code == "CK320"}
    assert len(missing) == (0 if kind == "plain" else len(placeholders))
    assert not {f.code for f in report.findings} & {"CK201", "CK207", "CK208", "CK211"}
    assert ("CK209" in {f.code for f in report.findings}) == (kind == "in part")
    with pytest.raises(ckptool.CkptoolError, match="CK320"):
        ckptool.migrate(path, tmp_path / "new.pth", module=build_net())
    assert not (tmp_path / "new.pth").exists()


class PathOfWindows:
    def __reduce__(self):
        return pathlib.WindowsPath, ("D:\\runs", "best.pt")


def test_a_migrated_file_that_torch_refuses_by_default_is_called_so(tmp_path):
    """A Namespace and a path beside the state are kept, and torch.load refuses them."""
    path, module = tmp_path / "old.pt", nn.Linear(3, 4)
    options = argparse.Namespace(data=PathOfWindows(), lr=0.1)
    torch.save({"model": module.state_dict(), "opt": options}, path)
    for dry_run in (True, False):
        report = ckptool.migrate(path, tmp_path / "new.pth", module=module, dry_run=dry_run)
        assert report.verdict.endswith(
            "torch.load refuses the file by default (weights_only=True): "
            "`argparse.Namespace`, `pathlib.WindowsPath`"
        )
    with pytest.raises(pickle.UnpicklingError, match=r"argparse\.Namespace"):
        torch.load(tmp_path / "new.pth")
    alone = ckptool.migrate(path, tmp_path / "alone.pth", module=module, drop_extra=True)
    assert "refuses" not in alone.verdict
    module.load_state_dict(torch.load(tmp_path / "alone.pth"))
    ckptool.convert(tmp_path / "new.pth", tmp_path / "plain.pth")
    assert torch.load(tmp_path / "plain.pth")["opt"] == {"data": "D:\\runs/best.pt", "lr": 0.1}


@pytest.mark.filterwarnings("ignore")
def test_a_dcp_folder_with_bytes_beside_the_model(tmp_path):
    module, buffer = build_net(), io.BytesIO()
    torch.save({"step": torch.tensor(5)}, buffer)
    content = {
        "model": module.state_dict(), "train_state": buffer,
        "dataloader": {"dp_rank_0": b"abc"},
    }  # fmt: skip
    dcp.save(content, checkpoint_id=tmp_path / "step5", no_dist=True)
    report = ckptool.diff(tmp_path / "step5", module=build_net())
    assert (report.verdict, report.at) == ("loads strictly", "model")
    migrated = ckptool.migrate(tmp_path / "step5", tmp_path / "new.pth", module=build_net())
    written = torch.load(tmp_path / "new.pth")
    assert all(torch.equal(written["model"][k], v) for k, v in module.state_dict().items())
    assert migrated.notes == ("dropped, as loading it would run code: `train_state` (_io.BytesIO)",)
    assert written["dataloader"] == {"dp_rank_0": b"abc"}


def test_a_deepspeed_folder_without_weights_names_its_script(tmp_path, run_command):
    step = tmp_path / "global_step50"
    step.mkdir()
    (tmp_path / "zero_to_fp32.py").write_text("")
    for rank in (0, 1):
        torch.save({"w": torch.ones(2)}, step / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
    for folder in (tmp_path, step):
        ran: Ran = run_command("inspect", folder)
        (line,) = ran.err.splitlines()
        assert ran.code == 2
        assert "is a DeepSpeed checkpoint" in line
        assert "zero_to_fp32.py" in line


def test_a_stale_single_file_beside_an_index_and_a_configuration_fails_the_gate(tmp_path):
    """A config.json names the framework that loads the folder: the index is passed over too."""
    from safetensors.torch import save_file

    for name in ("model.safetensors", "model-00001-of-00001.safetensors"):
        save_file(build_net().state_dict(), tmp_path / name, metadata={"format": "pt"})
    index = {
        "weight_map": dict.fromkeys(build_net().state_dict(), "model-00001-of-00001.safetensors")
    }
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    config = {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    report = ckptool.gate(tmp_path, module=build_net(), values=False)
    assert report.exit_code == 1
    assert "CK317" in {f.code for f in report.findings}


LISTS = {
    "other tensors": [torch.ones(2), torch.ones(3), torch.ones(5)],
    "one more": [torch.ones(4, 3), torch.ones(4), torch.ones(5)],
    "many more": [torch.ones(n) for n in range(1, 40)],
    "a tuple": (torch.ones(4, 3), torch.ones(7)),
}


@pytest.mark.parametrize("tensors", LISTS.values(), ids=LISTS.keys())
def test_the_fix_of_a_list_of_tensors_runs(tmp_path, tensors):
    torch.save(tensors, tmp_path / "list.pth")
    module = nn.Linear(3, 4)
    report = ckptool.diff(tmp_path / "list.pth", module=module)
    findings = [f for f in report.findings if f.code == "CK204"]
    assert findings
    for finding in findings:
        scope = {"state_dict": torch.load(tmp_path / "list.pth"), "module": module}
        exec(finding.fix.partition(": ")[2], scope)
        assert isinstance(scope["state_dict"], dict)
        assert finding.key not in scope["state_dict"]


def test_a_list_of_the_values_of_a_state_dict_is_asked_for_in_order(tmp_path):
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    torch.save([*module.state_dict().values()], tmp_path / "list.pth")
    report = ckptool.diff(tmp_path / "list.pth", module=module)
    assert "CK204" not in {f.code for f in report.findings}
    name = "state_dict().values() in order"
    ckptool.migrate(tmp_path / "list.pth", tmp_path / "new.pth", module=module, renames={"*": name})
    written = torch.load(tmp_path / "new.pth")
    assert all(torch.equal(written[key], value) for key, value in module.state_dict().items())


def test_nothing_is_guessed_among_equal_tensors(tmp_path):
    """Two vectors of zeros of one shape: their values do not say which is which."""
    for name, keys in (("old", "ab"), ("new", "cd")):
        torch.save({key: torch.zeros(4) for key in keys}, tmp_path / f"{name}.pth")
    report = ckptool.diff(tmp_path / "old.pth", tmp_path / "new.pth")
    assert report.renamed_keys == {}
    assert "CK211" not in {f.code for f in report.findings}


def test_a_file_in_half_precision_loads_exactly_and_is_said_to(tmp_path):
    """DeepSeek's routing bias rounded by the one who saved: the file alone does not show it."""
    state = {key: value.bfloat16() for key, value in build_net().state_dict().items()}
    torch.save(state, tmp_path / "bf16.pth")
    report = ckptool.diff(tmp_path / "bf16.pth", module=build_net())
    assert report.verdict == "loads strictly"
    loaded = build_net()
    loaded.load_state_dict(torch.load(tmp_path / "bf16.pth"))
    assert all(torch.equal(v, state[k].to(v.dtype)) for k, v in loaded.state_dict().items())
