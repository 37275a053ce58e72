"""The lists that ckptool gives for models of diffusers, against from_pretrained itself."""

from pathlib import Path

import pytest
import torch
from loaders.changed_weights import add_one, change_file, cut_one, drop_one

from ckptool.compare.framework.loading_info import LoadingInfo
from ckptool.formats import open_checkpoint
from ckptool.loaders.describe import load_with_framework
from ckptool.loaders.model_folder import find_model_folder
from ckptool.loaders.registry import get_loader

pytest.importorskip("diffusers", reason="the extra `frameworks` is not installed")

import diffusers

BLOCKS = {"block_out_channels": (8, 16), "norm_num_groups": 4, "layers_per_block": 1}
MODELS = {
    "UNet2DModel": {
        **BLOCKS,
        "sample_size": 8,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": 4,
    },
    "UNet2DConditionModel": {
        **BLOCKS,
        "sample_size": 8,
        "cross_attention_dim": 8,
        "attention_head_dim": 2,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    },
    "AutoencoderKL": {
        **BLOCKS,
        "down_block_types": ("DownEncoderBlock2D", "DownEncoderBlock2D"),
        "up_block_types": ("UpDecoderBlock2D", "UpDecoderBlock2D"),
        "latent_channels": 2,
    },
    "VQModel": {
        **BLOCKS,
        "down_block_types": ("DownEncoderBlock2D", "DownEncoderBlock2D"),
        "up_block_types": ("UpDecoderBlock2D", "UpDecoderBlock2D"),
        "num_vq_embeddings": 8,
    },
    "DiTTransformer2DModel": {
        "num_attention_heads": 2,
        "attention_head_dim": 4,
        "in_channels": 2,
        "num_layers": 1,
        "sample_size": 4,
        "num_embeds_ada_norm": 8,
    },
    "ControlNetModel": {
        **BLOCKS,
        "cross_attention_dim": 8,
        "attention_head_dim": 2,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "conditioning_embedding_out_channels": (4, 8),
    },
    "PriorTransformer": {
        "num_attention_heads": 2,
        "attention_head_dim": 4,
        "num_layers": 1,
        "embedding_dim": 8,
        "num_embeddings": 4,
        "additional_embeddings": 4,
    },
}


def build(class_name: str):
    torch.manual_seed(0)
    return getattr(diffusers, class_name)(**MODELS[class_name])


def ask_diffusers(cls, folder: Path) -> tuple[set[str], set[str], set[str]]:
    _, info = cls.from_pretrained(folder, output_loading_info=True, ignore_mismatched_sizes=True)
    mismatched = {key for key, *_ in info["mismatched_keys"]}
    return set(info["missing_keys"]), set(info["unexpected_keys"]), mismatched


def ask_ckptool(folder: Path) -> LoadingInfo:
    model_folder = find_model_folder(folder)
    assert model_folder is not None
    assert model_folder.loader == "diffusers"
    module = get_loader("diffusers").build_model(folder, model_folder.class_name)
    checkpoint = open_checkpoint(folder, weights_name=model_folder.weights_name)
    info = load_with_framework("diffusers", module, checkpoint.states[0])
    assert isinstance(info, LoadingInfo), info
    assert not info.error
    return info


@pytest.mark.parametrize("class_name", MODELS)
def test_lists_are_those_of_from_pretrained(class_name, save_model):
    model = build(class_name)
    assert ask_ckptool(save_model(model)).is_whole
    for change in (drop_one, add_one, cut_one):
        folder = save_model(model, change.__name__)
        change_file(folder, change)
        truth, info = ask_diffusers(type(model), folder), ask_ckptool(folder)
        lists = (set(info.missing_keys), set(info.unexpected_keys), set(info.mismatched_shapes))
        assert lists == truth
        assert any(truth)
        assert not info.is_whole


def test_old_names_of_attention_are_converted(save_model):
    """Files of before 0.18 have query, key, value and proj_attn, which from_pretrained renames."""
    model = build("AutoencoderKL")
    folder = save_model(model)
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def rename(state) -> None:
        for key in [*state]:
            for new, old in names.items():
                if f"attentions.0.{new}." in key:
                    state[key.replace(new, old)] = state.pop(key)

    change_file(folder, rename)
    truth = ask_diffusers(type(model), folder)
    assert truth == (set(), set(), set())
    info = ask_ckptool(folder)
    assert info.is_whole
    assert {c.operation for c in info.conversions} == {"renamed"}
    assert len(info.conversions) == 16


def test_a_folder_needs_no_options(save_model, run_command):
    folder = save_model(build("UNet2DModel"))
    for command in ("diff", "gate", "audit"):
        result = run_command(command, str(folder), "--no-config")
        assert result.code == 0, result.out
    assert "loads with from_pretrained()" in run_command("diff", str(folder), "--no-config").out


def test_only_models_of_diffusers_are_built(tmp_path):
    from ckptool.errors import ModuleError

    (tmp_path / "config.json").write_text('{"_class_name": "DDPMPipeline"}')
    with pytest.raises(ModuleError, match="has no such model"):
        get_loader("diffusers").build_model(tmp_path, "DDPMPipeline")


def test_diffusers_reads_no_shards_of_bin_files(run_command, tmp_path):
    model = build("UNet2DModel")
    model.save_pretrained(tmp_path / "model")
    words = ("convert", tmp_path / "model", "--max-shard-size", "1KB", "-o")
    ran = run_command(*words, tmp_path / "new", "--to", "pth")
    assert (ran.code, "diffusers loads one file" in ran.err) == (2, True), ran
    assert run_command(*words, tmp_path / "new").code == 0
    loaded = diffusers.UNet2DModel.from_pretrained(tmp_path / "new").state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in model.state_dict().items())
