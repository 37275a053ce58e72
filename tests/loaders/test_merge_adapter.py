"""`migrate --merge-adapter`: the result against peft's merge, asked in the test."""

import json

import pytest
import torch
from loaders.transformers_zoo import PLAIN, build_model

pytest.importorskip("peft", reason="the extra `frameworks` is not installed")

import peft
import transformers

TARGETS = ["q_proj", "v_proj"]
CONFIGS = {
    "lora": peft.LoraConfig(r=2, target_modules=TARGETS, init_lora_weights=False),
    "head and embedding": peft.LoraConfig(
        r=2, target_modules=[*TARGETS, "embed_tokens"], modules_to_save=["lm_head"],
        init_lora_weights=False,
    ),
    "patterns": peft.LoraConfig(
        r=2, target_modules=TARGETS, rank_pattern={"q_proj": 4}, alpha_pattern={"v_proj": 32},
        use_rslora=True, init_lora_weights=False,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_the_merged_model_is_pefts(name, tmp_path, run_command):
    base, adapter, target = (tmp_path / part for part in ("base", "adapter", "merged"))
    model = build_model("LlamaForCausalLM", PLAIN["LlamaForCausalLM"])
    model.save_pretrained(base)
    peft.get_peft_model(model, CONFIGS[name]).save_pretrained(adapter)
    result = run_command("migrate", str(adapter), "--merge-adapter", str(base), "-o", str(target))
    assert result.code == 0, result.err
    assert "largest difference from the arithmetic in float64" in result.out

    cls = transformers.LlamaForCausalLM
    truth = peft.PeftModel.from_pretrained(cls.from_pretrained(base), adapter).merge_and_unload()
    merged, info = cls.from_pretrained(target, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    state = merged.state_dict()
    assert state.keys() == truth.state_dict().keys()
    assert all(torch.equal(state[key], value) for key, value in truth.state_dict().items())
    changed = sum(
        not torch.equal(state[key], value)
        for key, value in cls.from_pretrained(base).state_dict().items()
    )
    assert changed >= 4
    assert run_command("gate", str(target), "--no-config").code == 0
    again = run_command("migrate", str(adapter), "--merge-adapter", str(base), "-o", str(target))
    assert again.code == 2


def test_what_cannot_be_checked_is_not_merged(tmp_path, run_command):
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    model = build_model("LlamaForCausalLM", PLAIN["LlamaForCausalLM"])
    model.save_pretrained(base)
    peft.get_peft_model(model, CONFIGS["lora"]).save_pretrained(adapter)
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "use_dora": True}))
    target = tmp_path / "merged"
    result = run_command("migrate", str(adapter), "--merge-adapter", str(base), "-o", str(target))
    assert result.code == 2
    assert "use_dora" in result.err
    assert not target.exists()
