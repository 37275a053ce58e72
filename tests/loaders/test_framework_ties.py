"""Names that a module ties and a file has twice; truth is what each framework's load makes of it.

A framework either copies both into one tensor, so that the values of one are lost, or leaves the
two names separate.
"""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import ckptool

peft = pytest.importorskip("peft", reason="the extra `frameworks` is not installed")
diffusers = pytest.importorskip("diffusers", reason="the extra `frameworks` is not installed")
pl = pytest.importorskip("pytorch_lightning", reason="the extra `frameworks` is not installed")
transformers = pytest.importorskip("transformers", reason="the extra is not installed")

LORA = {"r": 2, "init_lora_weights": False}
BOTH = ["lm_head", "embed_tokens"]
ADAPTERS = {
    "peft, both saved": peft.LoraConfig(
        **LORA, target_modules=["q_proj"], modules_to_save=BOTH, ensure_weight_tying=True
    ),
    "peft, one saved": peft.LoraConfig(
        **LORA, target_modules=["q_proj"], modules_to_save=BOTH[1:], ensure_weight_tying=True
    ),
    "peft, both adapted": peft.LoraConfig(**LORA, target_modules=["q_proj", *BOTH]),
}


class TiedModel(diffusers.ModelMixin, diffusers.ConfigMixin):
    """A model of the user's own that ties two names, which no model of diffusers itself does."""

    config_name = "config.json"

    @diffusers.configuration_utils.register_to_config
    def __init__(self, size: int = 4) -> None:
        super().__init__()
        self.first = nn.Linear(size, size, bias=False)
        self.second = nn.Linear(size, size, bias=False)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.second(self.first(x))


class TiedLightning(pl.LightningModule):
    """A module whose own `strict_loading` has Lightning's loader asked."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4, bias=False)
        self.second = nn.Linear(4, 4, bias=False)
        self.second.weight = self.first.weight
        self.strict_loading = False


def save_adapter(tmp_path: Path, config) -> tuple[Path, Path]:
    base_config = transformers.LlamaConfig(
        vocab_size=16, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, intermediate_size=8, tie_word_embeddings=True,
    )  # fmt: skip
    transformers.LlamaForCausalLM(base_config).save_pretrained(tmp_path / "base")
    base = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "base")
    peft.get_peft_model(base, config).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter", tmp_path / "adapter" / "adapter_model.safetensors"


def load_adapter(folder: Path) -> dict[str, torch.Tensor]:
    """Return the tensors that peft loads, under the names of the file."""
    base = transformers.LlamaForCausalLM.from_pretrained(folder.parent / "base")
    state = peft.PeftModel.from_pretrained(base, folder).state_dict(keep_vars=True)
    return {
        key.replace("modules_to_save.default.", "").replace(".default", ""): tensor
        for key, tensor in state.items()
        if "original_module" not in key
    }


@pytest.mark.parametrize("saved", ["as saved", "equal", "different", "different, turned"])
@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapter_whose_tied_names_differ_loses_one_of_them(name, saved, tmp_path):
    folder, path = save_adapter(tmp_path, ADAPTERS[name])
    state = load_file(path)
    (head,) = [k for k in state if "lm_head" in k and "lora" not in k]
    (embedding,) = [k for k in state if "embed_tokens" in k and "lora" not in k]
    if saved != "as saved":
        state[head] = state[embedding] + saved.startswith("different")
        items = state.items() if saved != "different, turned" else reversed(state.items())
        save_file({key: tensor.clone() for key, tensor in items}, path, {"format": "pt"})
    loaded = load_adapter(folder)
    assert loaded[head] is loaded[embedding]
    lost = {key for key in (head, embedding) if not torch.equal(loaded[key], state[key])}
    assert len(lost) == saved.startswith("different")

    report = ckptool.diff(folder)
    found = [f for f in report.findings if f.code in {"CK502", "CK228"}]
    assert [(f.code, f.level) for f in found] == [("CK502", "error")] * len(lost)
    for finding in found:
        (lost_key,) = lost
        assert f"over `{lost_key}`, whose values are lost" in finding.message
    assert (report.exit_code == 0) == (not lost)
    assert (ckptool.gate(folder).exit_code == 0) == (not lost)
    (load,) = [level for level in ckptool.verify(folder).levels if level.level == "load"]
    assert any(f"over `{key}`" in detail for key in lost for detail in load.details) == bool(lost)


@pytest.mark.parametrize("saved", ["equal", "different"])
def test_a_model_of_diffusers_whose_tied_names_differ_has_both(saved, tmp_path):
    folder = tmp_path / "model"
    TiedModel().save_pretrained(folder, safe_serialization=False)
    (folder / "diffusion_pytorch_model.bin").unlink()
    weight = torch.randn(4, 4)
    state = {"first.weight": weight, "second.weight": weight + (saved == "different")}
    save_file(state, folder / "diffusion_pytorch_model.safetensors", {"format": "pt"})
    loaded = TiedModel.from_pretrained(folder).state_dict(keep_vars=True)
    assert loaded["first.weight"] is not loaded["second.weight"]
    assert all(torch.equal(loaded[key], tensor) for key, tensor in state.items())
    report = ckptool.diff(folder, module=TiedModel(), loader="diffusers")
    found = [f for f in report.findings if f.code == "CK502"]
    assert [f.level for f in found] == ["warning"] * (saved == "different")
    assert all("loads both and does not tie them" in f.message for f in found)
    assert report.exit_code == 0


@pytest.mark.parametrize("saved", ["equal", "different"])
def test_a_pipeline_whose_text_encoder_has_different_tied_names_has_both(saved, tmp_path):
    folder = tmp_path / "pipeline"
    config = transformers.T5Config(
        vocab_size=16, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2
    )
    from loaders.test_diffusers_models import build

    pipeline = diffusers.DDPMPipeline(build("UNet2DModel"), diffusers.DDPMScheduler())
    pipeline.save_pretrained(folder)
    transformers.T5EncoderModel(config).save_pretrained(folder / "text_encoder")
    index = folder / "model_index.json"
    index.write_text(
        index.read_text().replace(
            '"unet":', '"text_encoder": ["transformers", "T5EncoderModel"], "unet":'
        )
    )
    path = folder / "text_encoder" / "model.safetensors"
    state = load_file(path)
    second = "encoder.embed_tokens.weight"
    state[second] = state["shared.weight"] + (saved == "different")
    save_file(state, path, {"format": "pt"})
    loaded = transformers.T5EncoderModel.from_pretrained(path.parent).state_dict(keep_vars=True)
    is_separate = loaded["shared.weight"] is not loaded[second]
    assert is_separate == (saved == "different")
    assert torch.equal(loaded[second], state[second])
    found = [f for f in ckptool.diff(folder).findings if f.code == "CK502"]
    assert [f.level for f in found] == ["warning"] * is_separate


@pytest.mark.parametrize("saved", ["equal", "different"])
def test_lightning_keeps_the_later_of_two_tied_names(saved, tmp_path):
    path = tmp_path / "last.ckpt"
    weight = torch.randn(4, 4)
    state = {"first.weight": weight, "second.weight": weight + (saved == "different")}
    torch.save({"state_dict": state, "pytorch-lightning_version": pl.__version__}, path)
    loaded = TiedLightning.load_from_checkpoint(path).state_dict(keep_vars=True)
    assert loaded["first.weight"] is loaded["second.weight"]
    lost = {key for key, tensor in state.items() if not torch.equal(loaded[key], tensor)}
    assert len(lost) == (saved == "different")
    report = ckptool.diff(path, module=TiedLightning())
    found = [f for f in report.findings if f.code in {"CK502", "CK228"}]
    assert [(f.code, f.level) for f in found] == [("CK502", "error")] * len(lost)
    assert all(f"over `{key}`" in f.message for key in lost for f in found)
