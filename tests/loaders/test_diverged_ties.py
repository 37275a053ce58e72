"""A tied configuration whose file has both tensors; truth is from_pretrained on the same folder."""

import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptool

transformers = pytest.importorskip("transformers", reason="the extra `frameworks` is not installed")

SIZES = {"vocab_size": 16, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
LLAMA = transformers.LlamaConfig(
    **SIZES, intermediate_size=8, num_key_value_heads=2, tie_word_embeddings=True
)
BERT = transformers.BertConfig(**SIZES, intermediate_size=8, max_position_embeddings=12)
BART = transformers.BartConfig(
    vocab_size=16, d_model=8, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
    decoder_attention_heads=2, encoder_ffn_dim=8, decoder_ffn_dim=8, max_position_embeddings=16,
    pad_token_id=1, bos_token_id=2, eos_token_id=3, decoder_start_token_id=2, forced_eos_token_id=3,
)  # fmt: skip
MODELS = {
    "llama": (transformers.LlamaForCausalLM, LLAMA, "lm_head.weight"),
    "bert": (transformers.BertForMaskedLM, BERT, "cls.predictions.decoder.weight"),
    "bart": (transformers.BartForConditionalGeneration, BART, "lm_head.weight"),
}


@pytest.mark.parametrize("saved", ["different", "equal", "once", "pickle"])
@pytest.mark.parametrize("model", MODELS)
def test_tied_names_with_different_tensors_are_separate_as_from_pretrained_leaves_them(
    tmp_path, model, saved
):
    cls, config, head = MODELS[model]
    folder = tmp_path / "release"
    cls(config).save_pretrained(folder)
    path = folder / "model.safetensors"
    state = load_file(path)
    (embedding,) = [k for k in cls(config).state_dict() if k in state and state[k].shape == (16, 8)]
    if saved != "once":
        state[head] = state[embedding] + (saved in {"different", "pickle"})
    save_file({k: t.clone() for k, t in state.items()}, path, {"format": "pt"})
    if saved == "pickle":
        path.unlink()
        torch.save(state, folder / "pytorch_model.bin")
    loaded, info = cls.from_pretrained(folder, output_loading_info=True)
    tensors = loaded.state_dict(keep_vars=True)
    is_separate = tensors[head] is not tensors[embedding]
    assert is_separate == (saved in {"different", "pickle"})
    assert not info["missing_keys"]
    loaded.save_pretrained(tmp_path / "again")
    again = cls.from_pretrained(tmp_path / "again").state_dict()
    assert all(torch.equal(again[key], tensor) for key, tensor in tensors.items())

    report = ckptool.verify(folder)
    levels = {level.level: level.status for level in report.levels}
    assert levels["round trip"] == levels["persistence"] == levels["load"] == "passed"
    (load,) = [level for level in report.levels if level.level == "load"]
    assert any("not tied" in detail and head in detail for detail in load.details) == is_separate
    found = [f for f in ckptool.diff(folder).findings if f.code == "CK502"]
    assert [f.level for f in found] == ["warning"] * is_separate
    assert ckptool.gate(folder).exit_code == 0


def test_load_state_dict_into_a_tied_model_still_loses_one_of_two_different_tensors(tmp_path):
    model = transformers.LlamaForCausalLM(LLAMA)
    model.lm_head.weight = torch.nn.Parameter(torch.randn(16, 8))
    path = tmp_path / "model.pt"
    torch.save(model.state_dict(), path)
    tied = transformers.LlamaForCausalLM(LLAMA)
    tied.load_state_dict(torch.load(path))
    assert torch.equal(tied.lm_head.weight, tied.model.embed_tokens.weight)
    (finding,) = [
        f
        for f in ckptool.diff(
            path, module=transformers.LlamaForCausalLM(LLAMA), loader="torch"
        ).findings
        if f.code == "CK502"
    ]
    assert finding.level == "error"
