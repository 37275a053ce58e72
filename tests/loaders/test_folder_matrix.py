"""Every kind of folder x every command, whole and with a tensor dropped, against the framework."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from loaders.transformers_zoo import CONVERTED, PLAIN, build_model
from safetensors.torch import load_file, save_file

peft = pytest.importorskip("peft", reason="the extra `frameworks` is not installed")
transformers = pytest.importorskip("transformers", reason="the extra is not installed")

pytestmark = pytest.mark.matrix

LLAMA = "LlamaForCausalLM"


def save_single(folder: Path) -> None:
    build_model(LLAMA, PLAIN[LLAMA]).save_pretrained(folder)


def save_sharded(folder: Path) -> None:
    build_model(LLAMA, PLAIN[LLAMA]).save_pretrained(folder, max_shard_size="10KB")


def save_pickled(folder: Path) -> None:
    save_single(folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def save_tied(folder: Path) -> None:
    build_model("Qwen3ForCausalLM", PLAIN["Qwen3ForCausalLM"]).save_pretrained(folder)


def save_converted(folder: Path) -> None:
    build_model("MixtralForCausalLM", CONVERTED["MixtralForCausalLM"]).save_pretrained(folder)


def save_variant(folder: Path) -> None:
    build_model(LLAMA, PLAIN[LLAMA]).save_pretrained(folder, variant="fp16")


def save_peft(folder: Path, config) -> None:
    base = folder.parent / "base"
    save_single(base)
    model = transformers.LlamaForCausalLM.from_pretrained(base)
    peft.get_peft_model(model, config).save_pretrained(folder)


def save_adapter(folder: Path) -> None:
    save_peft(folder, peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))


def save_tokens_adapter(folder: Path) -> None:
    targets = {"target_modules": ["q_proj"], "trainable_token_indices": [1, 2]}
    save_peft(folder, peft.LoraConfig(r=2, **targets))


def save_shira_adapter(folder: Path) -> None:
    save_peft(folder, peft.ShiraConfig(r=1, target_modules=["q_proj"]))


def save_trainer(folder: Path) -> None:
    """Write what Trainer writes next to a model, without what is unsafe to unpickle."""
    save_single(folder)
    model = build_model(LLAMA, PLAIN[LLAMA])
    torch.save(torch.optim.AdamW(model.parameters()).state_dict(), folder / "optimizer.pt")
    (folder / "trainer_state.json").write_text('{"global_step": 50}')


def save_pipeline(folder: Path) -> None:
    diffusers = pytest.importorskip("diffusers", reason="the extra is not installed")
    from loaders.test_diffusers_models import build

    pipeline = diffusers.DDPMPipeline(build("UNet2DModel"), diffusers.DDPMScheduler())
    pipeline.save_pretrained(folder)


ADAPTERS = ("adapter", "tokens adapter", "shira adapter")
KINDS: dict[str, Callable[[Path], None]] = {
    "single": save_single, "sharded": save_sharded, "pickled": save_pickled, "tied": save_tied,
    "converted": save_converted, "variant": save_variant, "adapter": save_adapter,
    "tokens adapter": save_tokens_adapter, "shira adapter": save_shira_adapter,
    "trainer": save_trainer, "pipeline": save_pipeline,
}  # fmt: skip


def drop_one(folder: Path) -> None:
    """Drop a tensor of a layer from the first file that has one."""
    for file in sorted(folder.rglob("*.safetensors")) + sorted(folder.glob("*.bin")):
        is_pickle = file.suffix == ".bin"
        state = torch.load(file, weights_only=True) if is_pickle else load_file(file)
        keys = [key for key in state if ".layers.1." in key or "conv_in" in key]
        if keys:
            del state[keys[0]]
            torch.save(state, file) if is_pickle else save_file(state, file, {"format": "pt"})
            return


def load_as_framework(folder: Path, kind: str) -> bool:
    """Whether the framework's own loader finds nothing missing and nothing unexpected."""
    if kind == "pipeline":
        import diffusers

        _, info = diffusers.UNet2DModel.from_pretrained(folder / "unet", output_loading_info=True)
        return not (info["missing_keys"] or info["unexpected_keys"])
    if kind in ADAPTERS:
        base = transformers.LlamaForCausalLM.from_pretrained(folder.parent / "base")
        model = peft.PeftModel.from_pretrained(base, folder)
        result = model.load_adapter(str(folder), "default")
        return not (result.missing_keys or result.unexpected_keys)
    variant = "fp16" if kind == "variant" else None
    try:
        _, info = transformers.AutoModelForCausalLM.from_pretrained(
            folder, output_loading_info=True, variant=variant
        )
    except RuntimeError:  # of the experts that are stacked one is missing
        return False
    return not (info["missing_keys"] or info["unexpected_keys"] or info["mismatched_keys"])


@pytest.mark.parametrize("loader", [(), ("--loader", "own")], ids=["", "named"])
@pytest.mark.parametrize("is_whole", [True, False], ids=["whole", "dropped"])
@pytest.mark.parametrize("kind", KINDS)
def test_commands_say_what_the_framework_does(kind, is_whole, loader, tmp_path, run_command):
    folder = tmp_path / "model"
    KINDS[kind](folder)
    if not is_whole:
        drop_one(folder)
    if kind == "sharded" and not is_whole:  # the index names a tensor that no shard has
        assert run_command("diff", str(folder), "--no-config").code == 1
        return
    assert load_as_framework(folder, kind) == is_whole
    framework = "peft" if kind in ADAPTERS else "transformers"
    framework = "diffusers" if kind == "pipeline" else framework
    options = ("--loader", framework) if loader else ()
    for command in ("diff", "verify", "gate"):
        result = run_command(command, str(folder), *options, "--no-config")
        assert (result.code == 0) == is_whole, (command, result.out, result.err)
        assert result.code in {0, 1}
    # audit looks at the module alone, whose state_dict lacks what peft saves and restores.
    audit_code = 1 if kind == "shira adapter" else 0
    assert run_command("audit", str(folder), *options, "--no-config").code == audit_code
    assert run_command("digest", str(folder), "--no-config").code == 0


@pytest.mark.parametrize("kind", [k for k in KINDS if k not in {*ADAPTERS, "pipeline"}])
def test_a_migrated_folder_still_loads(kind, tmp_path, run_command):
    folder, target = tmp_path / "model", tmp_path / "out.safetensors"
    KINDS[kind](folder)
    result = run_command("migrate", str(folder), "-o", str(target), "--no-config")
    assert result.code == 0, result.err
    for file in [*folder.glob("*.safetensors"), *folder.glob("*.bin"), *folder.glob("*.index*")]:
        file.unlink()
    shutil.copyfile(target, folder / "model.safetensors")
    assert load_as_framework(folder, "migrated")
