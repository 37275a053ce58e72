"""A framework raises where a shard is missing, and so does the verdict."""

import pytest

import ckptool


def make_transformers_folder(folder):
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=37,
        vocab_size=50,
    )  # fmt: skip
    transformers.BertModel(config).save_pretrained(folder, max_shard_size="20KB")
    return transformers.BertModel


def make_diffusers_folder(folder):
    diffusers = pytest.importorskip("diffusers")
    model = diffusers.AutoencoderKL(block_out_channels=(32,), norm_num_groups=8)
    model.save_pretrained(folder, max_shard_size="100KB")
    return diffusers.AutoencoderKL


@pytest.mark.parametrize("make_folder", [make_transformers_folder, make_diffusers_folder])
def test_a_folder_without_a_shard_does_not_load(make_folder, tmp_path):
    model_class = make_folder(tmp_path)
    model_class.from_pretrained(tmp_path)
    assert ckptool.diff(tmp_path).verdict.startswith("loads")
    shard = min(tmp_path.glob("*-00002-of-*.safetensors"))
    shard.unlink()
    with pytest.raises(OSError, match=shard.name):
        model_class.from_pretrained(tmp_path)
    report = ckptool.diff(tmp_path)
    assert report.verdict.startswith("does not load with from_pretrained(): ")
    assert shard.name in report.verdict
    assert ckptool.gate(tmp_path, values=False).exit_code == 1
    verification = ckptool.verify(tmp_path, device="cpu")
    assert verification.verdict.startswith("failed at load: from_pretrained() raises: ")
    assert shard.name in verification.verdict
    assert "the file does not load" in verification.unrun_reason
