"""The lists that ckptool gives for transformers, against from_pretrained on the same file."""

import json
from pathlib import Path

import pytest
import torch
from loaders.changed_weights import change_file, cut_one
from loaders.transformers_zoo import CONVERTED, PLAIN, build_model
from safetensors.torch import load_file, save_file

from ckptool.compare.framework.loading_info import LoadingInfo
from ckptool.formats import open_checkpoint
from ckptool.loaders.describe import load_with_framework
from ckptool.loaders.model_folder import find_model_folder
from ckptool.loaders.registry import get_loader

pytest.importorskip("transformers", reason="the extra `frameworks` is not installed")

QUICK = ("LlamaForCausalLM", "GPT2LMHeadModel", "BertForMaskedLM", "ViTForImageClassification",
         "MixtralForCausalLM", "JambaForCausalLM", "BartForConditionalGeneration")  # fmt: skip
"""One of each kind: plain, tied, renamed, stacked, mixed, with missing buffers."""
ZOO = {**PLAIN, **CONVERTED}


def ask_from_pretrained(cls, folder) -> dict[str, set[str]]:
    _, info = cls.from_pretrained(folder, output_loading_info=True, ignore_mismatched_sizes=True)
    return {
        "missing": set(info["missing_keys"]),
        "unexpected": set(info["unexpected_keys"]),
        "mismatched": {key for key, *_ in info["mismatched_keys"]},
    }


def ask_ckptool(folder: Path) -> LoadingInfo:
    model_folder = find_model_folder(folder)
    assert model_folder is not None
    assert model_folder.loader == "transformers"
    module = get_loader("transformers").build_model(folder, model_folder.class_name)
    checkpoint = open_checkpoint(folder, weights_name=model_folder.weights_name)
    report = load_with_framework("transformers", module, checkpoint.states[0])
    assert isinstance(report, LoadingInfo), report
    return report


def assert_same_lists(cls, folder) -> LoadingInfo:
    truth, report = ask_from_pretrained(cls, folder), ask_ckptool(folder)
    assert {
        "missing": set(report.missing_keys),
        "unexpected": set(report.unexpected_keys),
        "mismatched": set(report.mismatched_shapes),
    } == truth
    assert report.is_whole == (not any(truth.values()))
    return report


def drop_one(state) -> None:
    del state[min(key for key in state if "norm" in key.lower() or "weight" in key)]


def add_one(state) -> None:
    state["model.surplus.weight"] = torch.ones(3)


def check_type(class_name: str, save_model) -> None:
    model = build_model(class_name, ZOO[class_name])
    folder = save_model(model)
    assert assert_same_lists(type(model), folder).is_whole
    for change in (add_one, drop_one, cut_one):
        folder = save_model(model, change.__name__)
        change_file(folder, change)
        report = assert_same_lists(type(model), folder)
        assert not report.is_whole or change is drop_one


@pytest.mark.parametrize("class_name", QUICK)
def test_lists_are_those_of_from_pretrained(class_name, save_model):
    check_type(class_name, save_model)


@pytest.mark.matrix
@pytest.mark.parametrize("class_name", [name for name in ZOO if name not in QUICK])
def test_lists_of_every_type_are_those_of_from_pretrained(class_name, save_model):
    check_type(class_name, save_model)


def test_the_zoo_has_forty_model_types():
    assert len(ZOO) >= 40
    assert len(CONVERTED) >= 10


@pytest.mark.parametrize(
    ("saved", "loaded"),
    [
        ("BertModel", "BertForMaskedLM"),
        ("BertForMaskedLM", "BertModel"),
        ("BertForMaskedLM", "BertForSequenceClassification"),
        ("MixtralModel", "MixtralForCausalLM"),
        ("MixtralForCausalLM", "MixtralModel"),
        ("GPT2LMHeadModel", "GPT2Model"),
        ("ViTModel", "ViTForImageClassification"),
    ],
)
def test_base_and_head_are_told_as_from_pretrained_tells_them(saved, loaded, save_model):
    """Renamed keys too: the base model's prefix comes and goes, also before a conversion."""
    import transformers

    fields = ZOO.get(saved) or ZOO.get(loaded) or ZOO["BertForMaskedLM"]
    model = build_model(saved, fields)
    folder = save_model(model)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": [loaded]}))
    assert_same_lists(getattr(transformers, loaded), folder)


@pytest.mark.parametrize("class_name", ["MixtralForCausalLM", "GPT2LMHeadModel"])
def test_shards_and_pickles_are_read_as_the_framework_reads_them(class_name, save_model):
    model = build_model(class_name, ZOO[class_name])
    folder = save_model(model, "shards", max_shard_size="20KB")
    assert (folder / "model.safetensors.index.json").exists()
    assert assert_same_lists(type(model), folder).is_whole

    pickled = save_model(model, "pickled")
    torch.save(load_file(pickled / "model.safetensors"), pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    assert assert_same_lists(type(model), pickled).is_whole


def test_the_file_that_from_pretrained_takes_is_the_one_that_is_read(save_model, run_command):
    """A stale model.safetensors beside an index: from_pretrained takes the single file."""
    model = build_model("GPT2LMHeadModel", ZOO["GPT2LMHeadModel"])
    folder = save_model(model, "stale", max_shard_size="20KB")
    single = load_file(save_model(model, "single") / "model.safetensors")
    del single["transformer.ln_f.bias"]
    save_file(single, folder / "model.safetensors", metadata={"format": "pt"})
    assert ask_from_pretrained(type(model), folder)["missing"] == {"transformer.ln_f.bias"}
    result = run_command("diff", str(folder), "--no-config")
    assert result.code == 1
    assert "loads in part with from_pretrained(): 1 missing" in result.out


def test_conversions_name_the_file_keys_that_decide_the_values(save_model):
    """Truth: what of the loaded module changes if one tensor of the file does."""
    model = build_model("MixtralForCausalLM", CONVERTED["MixtralForCausalLM"])
    folder = save_model(model)
    report = ask_ckptool(folder)
    conversions = {c.key: c for c in report.conversions}
    before = type(model).from_pretrained(folder).state_dict()
    for file_key in load_file(folder / "model.safetensors"):
        changed = save_model(model, "changed")
        change_file(changed, lambda state, key=file_key: state[key].add_(1))
        after = type(model).from_pretrained(changed).state_dict()
        truth = {key for key in before if not torch.equal(before[key], after[key])}
        said = {key for key, c in conversions.items() if file_key in c.file_keys} or {file_key}
        assert said == truth, file_key
    operations = {c.operation for c in report.conversions}
    assert operations == {"renamed", "stacked", "stacked, concatenated"}


EXPERT = "model.layers.1.block_sparse_moe.experts.2.w1.weight"


@pytest.mark.parametrize(
    "change",
    [lambda state: state.pop(EXPERT), lambda state: state.update({EXPERT: torch.ones(3, 3)})],
    ids=["dropped", "another shape"],
)
def test_a_conversion_that_fails_names_the_keys(change, save_model, run_command):
    """The report said to look at the report above, which was not shown."""
    model = build_model("MixtralForCausalLM", CONVERTED["MixtralForCausalLM"])
    folder = save_model(model)
    change_file(folder, change)
    with pytest.raises(RuntimeError, match="automatic conversion"):
        ask_from_pretrained(type(model), folder)
    report = ask_ckptool(folder)
    key = "model.layers.1.mlp.experts.gate_up_proj"
    assert report.missing_keys == (key,)
    assert f"cannot make `{key}` from `model.layers.1.block_sparse_moe.experts.0.w1" in report.error
    result = run_command("diff", str(folder), "--no-config")
    assert result.code == 1
    assert result.out.startswith(
        f"does not load with from_pretrained(): transformers cannot make `{key}`"
    )


def test_a_file_without_tensors_is_judged_by_the_framework(save_model, run_command):
    model = build_model("MixtralForCausalLM", CONVERTED["MixtralForCausalLM"])
    folder = save_model(model)
    change_file(folder, lambda state: state.clear())
    missing_keys = ask_from_pretrained(type(model), folder)["missing"]
    result = run_command("diff", str(folder), "--no-config")
    assert result.out.startswith(
        f"loads in part with from_pretrained(): {len(missing_keys)} missing"
    )


def test_an_unexpected_key_that_is_renamed_first_is_found_in_the_file(save_model):
    model = build_model("MixtralForCausalLM", CONVERTED["MixtralForCausalLM"])
    folder = save_model(model)
    file_key = "model.layers.7.block_sparse_moe.gate.weight"
    change_file(folder, lambda state: state.update({file_key: torch.ones(4, 16)}))
    report = assert_same_lists(type(model), folder)
    assert report.file_names == {"model.layers.7.mlp.gate.weight": file_key}


def test_keys_that_the_class_ignores_are_named(save_model, run_command):
    model = build_model("LlamaForCausalLM", PLAIN["LlamaForCausalLM"])
    folder = save_model(model)
    file_key = "model.layers.0.self_attn.rotary_emb.inv_freq"
    change_file(folder, lambda state: state.update({file_key: torch.ones(4)}))
    assert assert_same_lists(type(model), folder).ignored_keys == (file_key,)
    result = run_command("diff", str(folder), "--no-config")
    assert result.code == 0
    assert f"CK228  `{file_key}` is in the file, and from_pretrained() drops it" in result.out


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_no_difference(dtype, save_model, run_command, tmp_path):
    model = build_model("LlamaForCausalLM", PLAIN["LlamaForCausalLM"]).to(dtype)
    folder = save_model(model)
    loaded = type(model).from_pretrained(folder)
    loaded.save_pretrained(tmp_path / "again")
    again = type(model).from_pretrained(tmp_path / "again")
    tokens = torch.arange(8)[None]
    assert loaded(tokens).logits.dtype is dtype
    assert torch.equal(loaded(tokens).logits, again(tokens).logits)
    assert assert_same_lists(type(model), folder).is_whole
    for command in ("gate", "verify"):
        assert run_command(command, str(folder), "--no-config").code == 0


def test_a_converted_folder_is_written_as_it_is_and_still_loads(save_model, run_command, tmp_path):
    """`migrate` leaves what the framework converts alone, and its check is the framework's load."""
    model = build_model("MixtralForCausalLM", CONVERTED["MixtralForCausalLM"])
    folder, target = save_model(model), tmp_path / "out.safetensors"
    result = run_command("migrate", str(folder), "-o", str(target), "--no-config")
    assert result.code == 0, result.err
    assert load_file(target).keys() == load_file(folder / "model.safetensors").keys()
    (folder / "model.safetensors").write_bytes(target.read_bytes())
    assert not any(ask_from_pretrained(type(model), folder).values())
