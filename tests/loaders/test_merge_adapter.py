"""`migrate --merge-adapter`: the result against peft's merge, asked in the test."""

import json

import pytest
import torch
from loaders.transformers_zoo import PLAIN, build_model

pytest.importorskip("peft", reason="the extra `frameworks` is not installed")

import peft
import transformers
from safetensors import safe_open
from safetensors.torch import save_file

TARGETS = ["q_proj", "v_proj"]
LORA = {"r": 2, "init_lora_weights": False}
LLAMA, GPT2, BERT, RESNET = (
    "LlamaForCausalLM", "GPT2LMHeadModel", "BertForMaskedLM", "ResNetForImageClassification",
)  # fmt: skip
CASES = {
    "lora": (LLAMA, peft.LoraConfig(**LORA, target_modules=TARGETS)),
    "head and embedding": (LLAMA, peft.LoraConfig(
        **LORA, target_modules=[*TARGETS, "embed_tokens"], modules_to_save=["lm_head"])),
    "patterns, rank-stabilized": (LLAMA, peft.LoraConfig(
        **LORA, target_modules=TARGETS, rank_pattern={"q_proj": 4}, alpha_pattern={"v_proj": 32},
        use_rslora=True)),
    "dora": (LLAMA, peft.LoraConfig(**LORA, target_modules=[*TARGETS, "embed_tokens"],
                                    use_dora=True)),
    "stored as (in, out)": (GPT2, peft.LoraConfig(
        **LORA, target_modules=["c_attn", "c_proj"], fan_in_fan_out=True, use_dora=True)),
    "bias of lora": (BERT, peft.LoraConfig(**LORA, target_modules=["query"], lora_bias=True)),
    "all biases": (BERT, peft.LoraConfig(**LORA, target_modules=["query"], bias="all")),
    "biases of the layers": (BERT, peft.LoraConfig(**LORA, target_modules=["query"],
                                                   bias="lora_only")),
    "convolutions": (RESNET, peft.LoraConfig(
        **LORA, target_modules=["convolution"], modules_to_save=["classifier"])),
    "convolutions, dora": (RESNET, peft.LoraConfig(
        **LORA, target_modules=["convolution"], use_dora=True)),
    "loha": (LLAMA, peft.LoHaConfig(r=2, target_modules=TARGETS, init_weights=False)),
    "lokr": (RESNET, peft.LoKrConfig(r=2, target_modules=["convolution"], init_weights=False)),
    "ia3": (BERT, peft.IA3Config(
        target_modules=["query", "output.dense"], feedforward_modules=["output.dense"],
        init_ia3_weights=False)),
    "layer norm": (LLAMA, peft.LNTuningConfig(target_modules=["norm"])),
}  # fmt: skip
QUICK = ("patterns, rank-stabilized", "dora", "all biases", "ia3")


def mark_slow(name: str):
    return name if name in QUICK else pytest.param(name, marks=pytest.mark.matrix)


@pytest.fixture
def folders(tmp_path):
    """Return a function that saves base and trained adapter; it returns both folders."""

    def save(class_name: str, config, dtype=torch.float32):
        base, adapter = tmp_path / "base", tmp_path / "adapter"
        model = build_model(class_name, PLAIN[class_name]).to(dtype)
        model.save_pretrained(base)
        adapted = peft.get_peft_model(model, config)
        torch.manual_seed(1)
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.data.add_(torch.randn_like(parameter) / 10)
        adapted.save_pretrained(adapter)
        return base, adapter

    return save


def merge(run_command, adapter, base, target, *options):
    words = ("migrate", str(adapter), "--merge-adapter", str(base), "-o", str(target))
    return run_command(*words, *options)


@pytest.mark.parametrize("name", [*map(mark_slow, CASES)])
def test_the_merged_model_is_pefts(name, folders, tmp_path, run_command):
    class_name, config = CASES[name]
    base, adapter = folders(class_name, config)
    target = tmp_path / "merged"
    result = merge(run_command, adapter, base, target)
    assert result.code == 0, result.err
    assert "largest difference from the arithmetic in float64" in result.out

    cls = getattr(transformers, class_name)
    truth = peft.PeftModel.from_pretrained(cls.from_pretrained(base), adapter).merge_and_unload()
    merged, info = cls.from_pretrained(target, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    state, original = merged.state_dict(), cls.from_pretrained(base).state_dict()
    assert state.keys() == truth.state_dict().keys()
    assert all(torch.equal(state[key], value) for key, value in truth.state_dict().items())
    assert any(not torch.equal(state[key], value) for key, value in original.items())
    assert run_command("gate", str(target), "--no-config").code == 0


TIED_BASE = {**PLAIN[LLAMA], "tie_word_embeddings": True}
MERGED_INTO_TIED = {
    "both saved": ({"modules_to_save": ["lm_head", "embed_tokens"]}, True),
    "the head saved": ({"modules_to_save": ["lm_head"]}, True),
    "saved tied": ({"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}, True),
    "both adapted": ({"target_modules": ["q_proj", "lm_head", "embed_tokens"]}, False),
}


@pytest.mark.parametrize("name", MERGED_INTO_TIED)
def test_an_adapter_is_merged_into_a_tied_base_where_peft_keeps_what_was_trained(
    name, tmp_path, run_command
):
    """Two changes of one tied tensor are added up by peft: it is not the trained model."""
    fields, is_mergeable = MERGED_INTO_TIED[name]
    base, adapter, target = tmp_path / "base", tmp_path / "adapter", tmp_path / "merged"
    build_model(LLAMA, TIED_BASE).save_pretrained(base)
    cls = transformers.LlamaForCausalLM
    config = peft.LoraConfig(**{**LORA, "target_modules": TARGETS, **fields})
    trained = peft.get_peft_model(cls.from_pretrained(base), config)
    with torch.no_grad():
        for parameter in trained.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter))
    trained.save_pretrained(adapter)
    inputs = torch.arange(4)[None]
    trained_logits = trained.eval()(inputs).logits
    truth = peft.PeftModel.from_pretrained(cls.from_pretrained(base), adapter).merge_and_unload()
    is_kept = torch.allclose(truth.eval()(inputs).logits, trained_logits, rtol=1e-3, atol=1e-3)
    assert is_kept == is_mergeable
    result = merge(run_command, adapter, base, target)
    assert (result.code == 0) == is_mergeable, result.err
    if is_mergeable:
        merged = cls.from_pretrained(target).eval()
        assert torch.equal(merged(inputs).logits, truth(inputs).logits)
    else:
        assert "are tied in the base, and the adapter changes both" in result.err
        assert not target.exists()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_within_its_own_tolerance(dtype, folders, tmp_path, run_command):
    base, adapter = folders(*CASES["lora"], dtype=dtype)
    assert merge(run_command, adapter, base, tmp_path / "merged").code == 0
    with safe_open(tmp_path / "merged" / "model.safetensors", "pt") as file:
        assert {file.get_tensor(key).dtype for key in file.keys()} == {dtype}  # noqa: SIM118


def test_a_merge_is_recorded_and_replaced_only_by_force(folders, tmp_path, run_command):
    base, adapter = folders(*CASES["lora"])
    target = tmp_path / "merged"
    result = merge(run_command, adapter, base, target, "--format", "json")
    report = json.loads(result.out)
    digests = [
        json.loads(run_command("digest", str(place), "--format", "json").out)["checkpoints"][0]
        for place in (adapter, base, target)
    ]
    assert report["source_digest"] == digests[0]["digest"]
    assert report["result_digest"] == digests[2]["digest"]
    with safe_open(target / "model.safetensors", "pt") as file:
        record = json.loads(file.metadata()["ckptool.provenance"])
        assert file.metadata()["format"] == "pt"
    assert record["source"] == {"name": "adapter", "digest": digests[0]["digest"]}
    assert record["merged_into"] == {"name": "base", "digest": digests[1]["digest"]}
    assert record["result"]["digest"] == digests[2]["digest"]

    refused = merge(run_command, adapter, base, target)
    assert refused.code == 2
    assert "--force" in refused.err
    forced = merge(run_command, adapter, base, target, "--force", "--no-provenance")
    assert forced.code == 0, forced.err
    with safe_open(target / "model.safetensors", "pt") as file:
        assert "ckptool.provenance" not in file.metadata()


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"peft_type": "VERA"}, "peft_type 'VERA' has no arithmetic here"),
        ({"target_parameters": ["x"]}, "target_parameters"),
        ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights 'pissa', which changes the base"),
        ({"megatron_config": {"a": 1}}, "`megatron_config`"),
        ({"r": 10**9}, "not merged: "),
    ],
)
def test_what_cannot_be_checked_is_not_merged(fields, reason, folders, tmp_path, run_command):
    base, adapter = folders(*CASES["lora"])
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))
    target = tmp_path / "merged"
    result = merge(run_command, adapter, base, target)
    assert result.code == 2
    assert reason in result.err
    assert not target.exists()


def test_a_merge_that_is_wrong_is_not_written(folders, tmp_path, run_command, monkeypatch):
    """Peft's own arithmetic is held to ours: twice the product is found."""
    from peft.tuners.lora.layer import Linear

    base, adapter = folders(*CASES["lora"])
    right = Linear.get_delta_weight
    monkeypatch.setattr(Linear, "get_delta_weight", lambda self, name: right(self, name) * 1.001)
    result = merge(run_command, adapter, base, tmp_path / "merged")
    assert result.code == 2
    assert "is not what the formula gives" in result.err


@pytest.mark.parametrize("name", ["lora", "dora", "ia3", "loha", "layer norm"])
@pytest.mark.parametrize("adapter_name", ["default", "other"])
def test_keys_with_the_name_of_the_adapter_are_merged_if_peft_loads_them(
    adapter_name, name, folders, tmp_path, run_command
):
    class_name, config = CASES[name]
    base, adapter = folders(class_name, config)
    cls = getattr(transformers, class_name)
    path = adapter / "adapter_model.safetensors"
    adapted = peft.PeftModel.from_pretrained(cls.from_pretrained(base), adapter)
    state = {
        key.replace("default", adapter_name): tensor.contiguous()
        for key, tensor in adapted.state_dict().items()
        if ".default" in key
    }
    save_file(state, path, {"format": "pt"})
    truth = peft.PeftModel.from_pretrained(cls.from_pretrained(base), adapter).merge_and_unload()
    trained = adapted.merge_and_unload().state_dict()
    is_loaded = all(torch.equal(trained[key], t) for key, t in truth.state_dict().items())
    result = merge(run_command, adapter, base, tmp_path / "merged")
    assert (result.code == 0) == is_loaded == (adapter_name == "default"), result.err
    if is_loaded:
        merged = cls.from_pretrained(tmp_path / "merged").state_dict()
        assert all(torch.equal(merged[key], t) for key, t in truth.state_dict().items())
