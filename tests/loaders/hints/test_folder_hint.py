"""A checkpoint near a framework's configuration: the message names it, and its command works."""

import shlex

import pytest
import torch
from loaders.transformers_zoo import PLAIN, build_model
from torch.distributed import checkpoint as dcp

pytest.importorskip("transformers", reason="the extra `frameworks` is not installed")

LLAMA = "LlamaForCausalLM"


@pytest.fixture
def folder(tmp_path):
    """A folder of transformers."""
    build_model(LLAMA, PLAIN[LLAMA]).save_pretrained(tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("depth", ["checkpoint-9", "checkpoint-9/global_step9"])
@pytest.mark.parametrize("is_dcp", [True, False])
def test_a_checkpoint_below_a_configuration_names_it(depth, is_dcp, folder, run_command):
    model = build_model(LLAMA, PLAIN[LLAMA])
    place = folder / depth
    place.mkdir(parents=True)
    if is_dcp:
        dcp.save({"model": model.state_dict()}, checkpoint_id=place, no_dist=True)
    else:
        torch.save({"module": model.state_dict()}, place / "mp_rank_00_model_states.pt")
    (folder / "model.safetensors").unlink()
    named = str(place)
    result = run_command("diff", named, "--no-config")
    assert result.code == 2
    _, _, option = result.err.partition(
        f"In {folder}, config.json names `{LLAMA}` of transformers: "
    )
    words = shlex.split(option)
    assert words[0] == "-m"
    assert run_command("diff", named, *words, "--no-config").out.startswith("loads strictly")
    gated = run_command("gate", named, "--no-config")
    assert "not checked: the module: no module was given with -m" in gated.out
    assert option.strip() in gated.out


def test_the_weights_of_a_folder_named_by_themselves(folder, run_command):
    result = run_command("diff", str(folder / "model.safetensors"), "--no-config")
    assert result.code == 2
    assert result.err.rstrip().endswith("give the folder, or --loader transformers")
    for words in ([str(folder)], [str(folder / "model.safetensors"), "--loader", "transformers"]):
        assert run_command("diff", *words, "--no-config").out.startswith(
            "loads with from_pretrained"
        )


def test_a_class_that_is_no_name_is_not_put_into_a_command(folder, run_command):
    (folder / "config.json").write_text(
        '{"architectures": ["X(__import__)"], "model_type": "llama"}'
    )
    (folder / "deep").mkdir()
    torch.save(build_model(LLAMA, PLAIN[LLAMA]).state_dict(), folder / "deep" / "x.pth")
    result = run_command("diff", str(folder / "deep" / "x.pth"), "--no-config")
    assert "transformers:X" not in result.err


@pytest.mark.filterwarnings("ignore")
def test_an_fsdp_folder_of_accelerate_names_the_folders_in_it(folder, run_command):
    model = build_model(LLAMA, PLAIN[LLAMA])
    place = folder.parent / "state"
    dcp.save(
        {"model": model.state_dict()}, checkpoint_id=place / "pytorch_model_fsdp_0", no_dist=True
    )
    dcp.save(
        {"optimizer": {"step": torch.ones(1)}}, checkpoint_id=place / "optimizer_0", no_dist=True
    )
    torch.save({"last_epoch": 1}, place / "scheduler.bin")
    torch.save({"seed": torch.get_rng_state()}, place / "random_states_0.pkl")
    result = run_command("diff", str(place), "--no-config")
    assert "choose one of 'optimizer_0/', 'pytorch_model_fsdp_0/'" in result.err
