"""The lists that ckptool gives for an adapter, against peft's load_adapter on the same folder."""

import json
from pathlib import Path

import pytest
import torch
from loaders.changed_weights import change_file
from loaders.transformers_zoo import PLAIN, build_model
from safetensors.torch import load_file, save_file

from ckptool.compare.framework.loading_info import LoadingInfo
from ckptool.formats import open_checkpoint
from ckptool.loaders.describe import load_with_framework
from ckptool.modules.walk import walk_module

pytest.importorskip("peft", reason="the extra `frameworks` is not installed")

import peft
import transformers

TARGETS = ["q_proj", "v_proj"]
CONFIGS = {
    "lora": peft.LoraConfig(r=2, target_modules=TARGETS, init_lora_weights=False),
    "lora, head": peft.LoraConfig(r=2, target_modules=TARGETS, modules_to_save=["lm_head"]),
    "dora": peft.LoraConfig(r=2, target_modules=TARGETS, use_dora=True),
    "rank pattern": peft.LoraConfig(
        r=2, target_modules=TARGETS, rank_pattern={"q_proj": 4}, use_rslora=True
    ),
    "embedding": peft.LoraConfig(r=2, target_modules=[*TARGETS, "embed_tokens"]),
    "loha": peft.LoHaConfig(r=2, target_modules=TARGETS),
    "lokr": peft.LoKrConfig(r=2, target_modules=TARGETS),
    "ia3": peft.IA3Config(
        target_modules=[*TARGETS, "down_proj"], feedforward_modules=["down_proj"]
    ),
    "adalora": peft.AdaLoraConfig(target_modules=TARGETS, total_step=10),
    "layer norm": peft.LNTuningConfig(target_modules=["norm"]),
    "vera": peft.VeraConfig(r=2, target_modules=["up_proj"]),
    "prompt tuning": peft.PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
}


QUICK = ("lora", "lora, head", "ia3", "prompt tuning")


def mark_slow(name: str):
    return name if name in QUICK else pytest.param(name, marks=pytest.mark.matrix)


EDITS = {
    "nothing left": lambda state: state.clear(),
    "no key that matches": lambda state: [
        state.update({f"other.{key}": state.pop(key)}) for key in [*state]
    ],
    "another shape": lambda state: state.update({max(state): torch.ones(3, 5)}),
}
EDITED = {
    **CONFIGS,
    "classifier": peft.LoraConfig(r=2, target_modules=TARGETS, task_type="SEQ_CLS"),
    "prefix tuning": peft.PrefixTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
    "p-tuning": peft.PromptEncoderConfig(
        num_virtual_tokens=3, task_type="CAUSAL_LM", encoder_hidden_size=8
    ),
    "oft": peft.OFTConfig(oft_block_size=4, target_modules=TARGETS),
    "boft": peft.BOFTConfig(boft_block_size=4, target_modules=TARGETS),
    "hra": peft.HRAConfig(r=2, target_modules=TARGETS),
    "fourier": peft.FourierFTConfig(n_frequency=10, target_modules=TARGETS),
    "adaption prompt": peft.AdaptionPromptConfig(
        adapter_len=2, adapter_layers=1, task_type="CAUSAL_LM"
    ),
    "biases": peft.LoraConfig(r=2, target_modules=TARGETS, bias="all"),
    "all linear": peft.LoraConfig(r=2, target_modules="all-linear"),
    "one layer": peft.LoraConfig(r=2, target_modules=TARGETS, layers_to_transform=[1]),
    "tokens": peft.LoraConfig(r=2, target_modules=TARGETS, trainable_token_indices=[1, 2]),
    "tokens alone": peft.TrainableTokensConfig(
        target_modules=["embed_tokens"], token_indices=[1, 2]
    ),
    "shira": peft.ShiraConfig(r=1, target_modules=TARGETS),
    "osf": peft.OSFConfig(target_modules=TARGETS),
    "psoft": peft.PsoftConfig(r=4, target_modules=TARGETS),
    "frod": peft.FrodConfig(target_modules=TARGETS),
    "waveft": peft.WaveFTConfig(n_frequency=10, target_modules=TARGETS),
    "poly": peft.PolyConfig(r=2, target_modules=TARGETS),
}


def make_base(**fields):
    return build_model("LlamaForCausalLM", {**PLAIN["LlamaForCausalLM"], **fields})


@pytest.fixture
def folders(tmp_path):
    """Return a function that saves base and adapter, and returns both folders."""

    def save(name: str, **fields) -> tuple[Path, Path]:
        make_base().save_pretrained(tmp_path / "base")
        model = peft.get_peft_model(make_base(**fields), CONFIGS[name])
        model.save_pretrained(tmp_path / "adapter")
        return tmp_path / "base", tmp_path / "adapter"

    return save


def ask_peft(adapter: Path) -> tuple[set[str], set[str]]:
    model = peft.PeftModel.from_pretrained(make_base(), adapter)
    result = model.load_adapter(str(adapter), "default")
    # peft reports a prompt as unexpected, though its prompt encoder has it.
    taken = {
        key
        for key, value in load_file(adapter / "adapter_model.safetensors").items()
        if key == "prompt_embeddings"
        and torch.equal(model.prompt_encoder["default"].embedding.weight, value)
    }
    return set(result.missing_keys), set(result.unexpected_keys) - taken


def ask_ckptool(base: Path, adapter: Path) -> LoadingInfo:
    from ckptool.loaders.peft_adapters import build_adapter_model

    module = build_adapter_model(adapter, base)
    info = load_with_framework("peft", module, open_checkpoint(adapter).states[0])
    assert isinstance(info, LoadingInfo), info
    assert not info.error
    return info


@pytest.mark.parametrize("name", [*map(mark_slow, CONFIGS)])
def test_lists_are_those_of_load_adapter(name, folders):
    base, adapter = folders(name)
    info = ask_ckptool(base, adapter)
    assert (
        (set(info.missing_keys), set(info.unexpected_keys)) == ask_peft(adapter) == (set(), set())
    )
    assert len(info.scope_keys or ()) >= len(load_file(adapter / "adapter_model.safetensors"))

    change_file(adapter, lambda state: state.update({"base_model.model.extra": torch.ones(2)}))
    info = ask_ckptool(base, adapter)
    assert (set(info.missing_keys), set(info.unexpected_keys)) == ask_peft(adapter)
    assert info.is_whole == (not info.unexpected_keys)


@pytest.mark.parametrize("name", [*map(mark_slow, ["lora", "loha", "ia3", "vera"])])
def test_a_dropped_key_is_missing_as_for_peft(name, folders):
    base, adapter = folders(name)
    change_file(adapter, lambda state: state.pop(min(k for k in state if "layers.1" in k)))
    info = ask_ckptool(base, adapter)
    truth = ask_peft(adapter)
    assert (set(info.missing_keys), set(info.unexpected_keys)) == truth
    assert truth[0]


def make_task_base(name: str):
    """Return the base as AutoPeftModel builds it for the adapter's task."""
    base = make_base()
    return transformers.LlamaForSequenceClassification(base.config) if "class" in name else base


@pytest.mark.parametrize("name", [*map(mark_slow, EDITED)])
@pytest.mark.parametrize("edit", ["as saved", *EDITS])
def test_an_adapter_that_does_not_fit_is_judged_as_by_peft(name, edit, tmp_path, run_command):
    """An adapter without tensors was judged by the base's keys: 29 missing, where peft says 8."""
    make_base().save_pretrained(tmp_path / "base")
    adapter = tmp_path / "adapter"
    peft.get_peft_model(make_task_base(name), EDITED[name]).save_pretrained(adapter)
    change_file(adapter, EDITS.get(edit, lambda _: None))
    result = run_command("diff", str(adapter), "--base", str(tmp_path / "base"), "--no-config")
    try:
        model = peft.PeftModel.from_pretrained(make_task_base(name), adapter)
        truth = model.load_adapter(str(adapter), "default")
    except (KeyError, RuntimeError, ValueError):
        assert result.code == 1
        assert result.out.startswith("does not load with load_adapter()")
        return
    # peft reports a prompt as unexpected, though its prompt encoder has it.
    unexpected = [key for key in truth.unexpected_keys if not key.startswith("prompt_")]
    counts = f"{len(truth.missing_keys)} missing, {len(unexpected)} unexpected"
    assert counts in result.out
    assert (result.code == 0) == (not truth.missing_keys and not unexpected)


UNSAVED = ("tokens", "shira", "osf", "fourier", "tokens alone", "psoft", "frod", "waveft", "boft")


@pytest.mark.parametrize(
    "name", [*UNSAVED[:2], *(pytest.param(n, marks=pytest.mark.matrix) for n in UNSAVED[2:])]
)
def test_what_peft_makes_from_the_base_or_restores_is_not_lost(name, tmp_path, run_command):
    """`trainable_tokens_original` and `shira_indices` were errors, and verify failed."""
    make_base().save_pretrained(tmp_path / "base")
    adapter = tmp_path / "adapter"
    peft.get_peft_model(make_base(), EDITED[name]).save_pretrained(adapter)
    loaded = []
    for seed in (0, 1):
        base = make_base()
        torch.manual_seed(seed)
        loaded.append(peft.PeftModel.from_pretrained(base, adapter))
    first, second = ({f.path: f.value for f in walk_module(model).tensors} for model in loaded)
    unsaved = first.keys() - loaded[0].state_dict().keys()
    assert any("rotary_emb" not in path for path in unsaved)
    assert all(torch.equal(first[path], second[path]) for path in unsaved)
    for command in ("diff", "verify", "gate"):
        options = ("--base", str(tmp_path / "base"), "--no-config")
        result = run_command(command, str(adapter), *options)
        assert result.code == 0, result.out


def test_what_an_adapter_draws_and_does_not_save_is_lost(tmp_path, run_command, monkeypatch):
    """Of the near kind: random, in no file, and not of the base."""
    from peft.tuners.trainable_tokens.layer import TrainableTokensLayer

    update_layer = TrainableTokensLayer.update_layer

    def draw(self, adapter_name, *args, **kwargs):
        update_layer(self, adapter_name, *args, **kwargs)
        original = self.trainable_tokens_original[adapter_name]
        self.trainable_tokens_original[adapter_name] = torch.randn(original.shape)

    make_base().save_pretrained(tmp_path / "base")
    adapter = tmp_path / "adapter"
    monkeypatch.setattr(TrainableTokensLayer, "update_layer", draw)
    peft.get_peft_model(make_base(), EDITED["tokens"]).save_pretrained(adapter)
    options = ("--base", str(tmp_path / "base"), "--no-config", "--in-process")
    result = run_command("diff", str(adapter), *options)
    assert result.code == 1
    assert "trainable_tokens_original.default` is not in the state_dict" in result.out


def test_a_second_adapter_has_a_folder_of_its_own(folders, run_command):
    base, adapter = folders("lora")
    model = peft.get_peft_model(make_base(), CONFIGS["lora"])
    model.add_adapter("second", peft.LoraConfig(r=4, target_modules=["q_proj"]))
    model.save_pretrained(adapter)
    result = run_command("diff", str(adapter / "second"), "--base", str(base), "--no-config")
    truth = peft.PeftModel.from_pretrained(make_base(), adapter / "second")
    assert not truth.load_adapter(str(adapter / "second"), "default").missing_keys
    assert result.code == 0
    assert "4 match, 0 missing, 0 unexpected" in result.out
    assert "adapter LORA: r 4" in result.out


def test_an_adapter_is_told_by_its_own_tensors(folders, run_command):
    """A correct LoRA was "0 % would load", the words for one that matches nothing."""
    base, adapter = folders("lora")
    result = run_command("diff", str(adapter), "--base", str(base), "--no-config")
    assert result.code == 0
    assert result.out.startswith("loads with load_adapter()")
    assert "8 match, 0 missing, 0 unexpected" in result.out
    assert "adapter LORA: r 2, lora_alpha 8, target_modules q_proj+v_proj" in result.out
    for command in ("gate", "verify"):
        assert run_command(command, str(adapter), "--base", str(base), "--no-config").code == 0


def test_an_adapter_of_another_base_matches_nothing(folders, run_command):
    """Trained on the backbone alone: one segment less in every key (peft#2566)."""
    base, adapter = folders("lora")
    change_file(
        adapter,
        lambda state: [state.update({k.replace("model.model.layers", "model.layers"): state.pop(k)})
                       for k in [*state]],
    )  # fmt: skip
    missing, unexpected = ask_peft(adapter)
    assert len(missing) == len(unexpected) == 8
    result = run_command("diff", str(adapter), "--base", str(base), "--no-config")
    assert result.code == 1
    assert "loads in part with load_adapter(): 8 missing, 8 unexpected" in result.out


def test_another_vocabulary_does_not_load(folders, run_command):
    base, adapter = folders("lora, head", vocab_size=72)
    with pytest.raises(RuntimeError, match="size mismatch"):
        ask_peft(adapter)
    result = run_command("diff", str(adapter), "--base", str(base), "--no-config")
    assert result.code == 1
    assert "does not load with load_adapter(): 1 shape mismatch" in result.out


def test_targets_that_the_base_lacks_are_said_in_pefts_words(folders, run_command):
    base, adapter = folders("lora")
    config = json.loads((adapter / "adapter_config.json").read_text())
    config["target_modules"] = ["query"]
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    result = run_command("diff", str(adapter), "--base", str(base), "--no-config")
    assert result.code == 2
    assert "Target modules" in result.err


def test_a_base_that_is_not_here_is_asked_for(folders, run_command):
    base, adapter = folders("lora")
    result = run_command("diff", str(adapter), "--no-config")
    assert result.code == 2
    assert "--base FOLDER" in result.err
    config = json.loads((adapter / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = str(base)
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    assert run_command("diff", str(adapter), "--no-config").code == 0


def test_an_adapter_that_peft_refuses_has_no_list_of_keys(folders, run_command):
    """With DDP's prefix peft looks up a key that is not there: no key was compared then."""
    base, adapter = folders("lora, head")
    change_file(
        adapter, lambda state: [state.update({f"module.{k}": state.pop(k)}) for k in [*state]]
    )
    with pytest.raises(KeyError):
        ask_peft(adapter)
    result = run_command("diff", str(adapter), "--base", str(base), "--no-config")
    assert result.code == 1
    assert result.out.startswith("does not load with load_adapter(): KeyError")
    assert "keys: not compared" in result.out
    assert "keys and shapes match" not in result.out


def test_peft_reads_no_shards_so_none_are_written(folders, run_command, tmp_path):
    """`--max-shard-size` wrote shards and an index, in which peft finds no adapter."""
    base, adapter = folders("lora")
    sharded = tmp_path / "sharded"
    state = load_file(adapter / "adapter_model.safetensors")
    sharded.mkdir()
    (sharded / "adapter_config.json").write_bytes((adapter / "adapter_config.json").read_bytes())
    parts = {f"adapter_model-0000{n}-of-00002.safetensors": key for n, key in enumerate(state, 1)}
    for name, key in [*parts.items()][:2]:
        save_file({key: state[key]}, sharded / name)
    index = {"metadata": {}, "weight_map": {key: name for name, key in [*parts.items()][:2]}}
    (sharded / "adapter_model.safetensors.index.json").write_text(json.dumps(index))
    # It finds no file of its names, and takes the folder for a repository on the hub.
    with pytest.raises((ValueError, OSError), match="Repo id"):
        peft.PeftModel.from_pretrained(make_base(), str(sharded))

    for source in (adapter, adapter / "adapter_model.safetensors"):
        for words in (("migrate", "--loader", "torch"), ("convert",)):
            out = tmp_path / "out"
            size = ("--max-shard-size", "1KB", "-o", out)
            ran = run_command(words[0], source, *words[1:], *size)
            assert (ran.code, ran.out, out.exists()) == (2, "", False), ran
            assert ran.err.splitlines()[-1] == (
                "ckptool: --max-shard-size: peft loads one file (adapter_model.safetensors, "
                "adapter_model.bin) and no shards of .safetensors files: leave the option out"
            )
    # Without the option it is one file, which peft reads; `migrate` asks for the base.
    ran = run_command("migrate", adapter, "-o", tmp_path / "out")
    assert (ran.code, "give it with --base FOLDER" in ran.err) == (2, True), ran
    ran = run_command("migrate", adapter, "-o", tmp_path / "out", "--base", base)
    assert (ran.code, ran.err) == (0, ran.err), ran
    assert ask_peft(tmp_path / "out") == (set(), set())


def test_an_adapter_without_a_task_is_for_the_class_that_was_trained(tmp_path, run_command):
    """Trained on the backbone; the folder of the base names the model with a head."""
    make_base().save_pretrained(tmp_path / "base")
    adapter = tmp_path / "adapter"
    peft.get_peft_model(make_base().model, CONFIGS["lora"]).save_pretrained(adapter)
    config = json.loads((adapter / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = str(tmp_path / "base")
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    truth = peft.AutoPeftModel.from_pretrained(str(adapter))
    assert type(truth.get_base_model()) is transformers.LlamaModel
    assert not truth.load_adapter(str(adapter), "default").missing_keys
    result = run_command("diff", str(adapter), "--no-config")
    assert result.code == 0
    assert "8 match, 0 missing, 0 unexpected" in result.out
    assert "the base is built as LlamaModel, for auto_mapping" in result.out


@pytest.mark.parametrize("is_whole", [True, False], ids=["whole", "without its bank"])
def test_a_vector_bank_that_layers_share_is_missing_only_if_the_file_lacks_it(
    is_whole, tmp_path, run_command
):
    """Peft stores it once, and names it missing in each layer that has it."""
    make_base().save_pretrained(tmp_path / "base")
    adapter = tmp_path / "adapter"
    config = peft.VBLoRAConfig(r=2, target_modules=TARGETS, num_vectors=8, vector_length=4, topk=2)
    peft.get_peft_model(make_base(), config).save_pretrained(adapter)
    if not is_whole:
        change_file(adapter, lambda state: state.pop("base_model.vblora_vector_bank"))
    banks = []
    for seed in (0, 1):
        base = make_base()
        torch.manual_seed(seed)
        model = peft.PeftModel.from_pretrained(base, adapter)
        banks.append([t for k, t in model.state_dict().items() if "vector_bank" in k])
    assert all(map(torch.equal, *banks)) == is_whole
    options = ("--base", str(tmp_path / "base"), "--no-config")
    result = run_command("diff", str(adapter), *options)
    assert (result.code == 0) == is_whole
    assert ("0 missing" in result.out) == is_whole


def test_weights_and_an_adapter_in_one_folder_are_base_and_adapter(tmp_path, run_command):
    """Training often saves both in one folder, which is then its own base."""
    folder = tmp_path / "both"
    make_base().save_pretrained(folder)
    base = transformers.LlamaForCausalLM.from_pretrained(folder)
    peft.get_peft_model(base, CONFIGS["lora"]).save_pretrained(folder)
    truth = peft.AutoPeftModel.from_pretrained(str(folder))
    assert not truth.load_adapter(str(folder), "default").missing_keys
    result = run_command("diff", str(folder), "--no-config")
    assert result.code == 0
    assert result.out.startswith("loads with load_adapter()")
    merged = tmp_path / "merged"
    words = ("--merge-adapter", str(folder), "-o", str(merged), "--no-config")
    assert run_command("migrate", str(folder), *words).code == 0
    state = transformers.LlamaForCausalLM.from_pretrained(merged).state_dict()
    expected = truth.merge_and_unload().state_dict()
    assert all(torch.equal(state[key], tensor) for key, tensor in expected.items())
