"""A pipeline of diffusers as one folder, against from_pretrained of each of its models."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from loaders.test_diffusers_models import add_one, build, cut_one, drop_one
from loaders.transformers_zoo import IMAGE, TEXT
from safetensors.torch import load_file, save_file

pytest.importorskip("diffusers", reason="the extra `frameworks` is not installed")

import diffusers
import transformers
from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker

pytestmark = pytest.mark.matrix  # every model of a pipeline: a minute

WEIGHTS = {
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
    "safety_checker": "model.safetensors",
}
CLASSES = {
    "unet": diffusers.UNet2DConditionModel,
    "vae": diffusers.AutoencoderKL,
    "text_encoder": transformers.CLIPTextModel,
    "safety_checker": StableDiffusionSafetyChecker,
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    text = transformers.CLIPTextConfig(**TEXT, projection_dim=8)
    vision = {**IMAGE, "projection_dim": 8}
    checked = transformers.CLIPConfig(
        text_config={**TEXT, "projection_dim": 8}, vision_config=vision, projection_dim=8
    )
    pipeline = diffusers.StableDiffusionPipeline(
        vae=build("AutoencoderKL"),
        text_encoder=transformers.CLIPTextModel(text),
        tokenizer=None,
        unet=build("UNet2DConditionModel"),
        scheduler=diffusers.DDIMScheduler(steps_offset=1, clip_sample=False),
        safety_checker=StableDiffusionSafetyChecker(checked),
        feature_extractor=transformers.CLIPImageProcessor(),
        requires_safety_checker=False,
    )
    folder = tmp_path_factory.mktemp("pipelines")
    pipeline.save_pretrained(folder / "whole")
    pipeline.save_pretrained(folder / "variant", variant="fp16")
    return folder


@pytest.fixture
def folder(saved, tmp_path) -> Path:
    return Path(shutil.copytree(saved / "whole", tmp_path / "pipeline"))


def ask_frameworks(folder: Path) -> dict[str, set[str]]:
    """Return what from_pretrained of each model reports, with the model's name before the keys."""
    truth: dict[str, set[str]] = {"missing": set(), "unexpected": set(), "mismatched": set()}
    for name, cls in CLASSES.items():
        _, info = cls.from_pretrained(
            folder / name, output_loading_info=True, ignore_mismatched_sizes=True
        )
        truth["missing"] |= {f"{name}.{key}" for key in info["missing_keys"]}
        truth["unexpected"] |= {f"{name}.{key}" for key in info["unexpected_keys"]}
        truth["mismatched"] |= {f"{name}.{key}" for key, *_ in info["mismatched_keys"]}
    return truth


def ask_ckptool(folder: Path, run_command) -> tuple[int, dict[str, set[str]]]:
    result = run_command("diff", str(folder), "--no-config", "--format", "json")
    report = json.loads(result.out)
    return result.code, {
        kind: set(report[f"{kind}_keys"]) for kind in ("missing", "unexpected", "mismatched")
    }


def test_a_whole_pipeline_loads(folder, run_command):
    assert not any(ask_frameworks(folder).values())
    for command in ("diff", "gate", "audit", "digest"):
        result = run_command(command, str(folder), "--no-config")
        assert result.code == 0, result.err
    result = run_command("diff", str(folder), "--no-config")
    assert result.out.startswith("loads with from_pretrained()")
    assert "models of the pipeline: safety_checker, text_encoder, unet, vae" in result.out
    assert "without weights, and not looked at: feature_extractor, scheduler" in result.out


@pytest.mark.parametrize(
    ("name", "change"),
    [("unet", drop_one), ("vae", cut_one), ("text_encoder", add_one), ("safety_checker", drop_one)],
)
def test_each_model_is_judged_by_its_own_loader(name, change, folder, run_command):
    file = folder / name / WEIGHTS[name]
    state = load_file(file)
    change(state)
    save_file(state, file, metadata={"format": "pt"})
    truth = ask_frameworks(folder)
    assert any(truth.values())
    assert ask_ckptool(folder, run_command) == (1, truth)


def test_a_variant_is_said_to_be_asked_for(saved, run_command):
    folder = saved / "variant"
    with pytest.raises(OSError, match="no file named"):
        diffusers.UNet2DConditionModel.from_pretrained(folder / "unet")
    diffusers.UNet2DConditionModel.from_pretrained(folder / "unet", variant="fp16")
    for place in (folder, folder / "unet", folder / "text_encoder"):
        result = run_command("diff", str(place), "--no-config")
        assert result.code == 0, result.err
        assert result.out.startswith('loads with from_pretrained(variant="fp16")')
        assert "CK229" in result.out


def test_a_model_without_weights_does_not_load(folder, run_command):
    (folder / "vae" / WEIGHTS["vae"]).unlink()
    with pytest.raises(OSError, match="no file named"):
        diffusers.AutoencoderKL.from_pretrained(folder / "vae")
    result = run_command("diff", str(folder), "--no-config")
    assert result.code == 1
    assert result.out.startswith("does not load with from_pretrained()")


@pytest.mark.parametrize(
    "component",
    [
        ["own_code", "Net"], ["os", "system"], ["diffusers", "../x"], ["transformers", "pipeline"],
        ["diffusers.pipelines", "DDPMPipeline"], ["transformers", 7], ["importlib", "reload"],
        ["transformers"], [{}, {}],
    ],
)  # fmt: skip
def test_a_component_that_is_no_class_of_a_framework_is_refused(component, folder, run_command):
    (folder / "unet" / "own_code.py").write_text(f"open({str(folder / 'ran')!r}, 'w').close()\n")
    index = json.loads((folder / "model_index.json").read_text())
    index["unet"] = component
    (folder / "model_index.json").write_text(json.dumps(index))
    result = run_command("diff", str(folder), "--no-config")
    assert result.code == 2
    assert "`unet` is" in result.err
    assert not (folder / "ran").exists()


def test_the_index_is_taken_before_the_whole_file(saved, tmp_path, run_command):
    """Diffusers takes the index, where transformers takes the whole file."""
    model = build("UNet2DModel")
    folder = tmp_path / "sharded"
    model.save_pretrained(folder, max_shard_size="50KB")
    whole = {key: value.clone() for key, value in model.state_dict().items()}
    del whole["conv_in.weight"]
    save_file(whole, folder / WEIGHTS["unet"], metadata={"format": "pt"})
    _, info = diffusers.UNet2DModel.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    assert run_command("diff", str(folder), "--no-config").code == 0

    (folder / "diffusion_pytorch_model.safetensors.index.json").unlink()
    _, info = diffusers.UNet2DModel.from_pretrained(folder, output_loading_info=True)
    assert info["missing_keys"] == ["conv_in.weight"]
    assert run_command("diff", str(folder), "--no-config").code == 1


@pytest.mark.parametrize("command", ["migrate", "convert"])
def test_a_pipeline_is_written_model_by_model(command, folder, tmp_path, run_command):
    target = tmp_path / "out"
    result = run_command(command, str(folder), "-o", str(target), "--no-config")
    assert result.code == 0, result.err
    assert {file.stem for file in target.iterdir()} == {*CLASSES}
    for name, cls in CLASSES.items():
        written = target / f"{name}.safetensors"
        (folder / name / WEIGHTS[name]).write_bytes(written.read_bytes())
        _, info = cls.from_pretrained(folder / name, output_loading_info=True)
        assert not info["missing_keys"]
        assert not info["unexpected_keys"]


def test_a_model_of_a_pipeline_that_does_not_load_is_named(folder, tmp_path, run_command):
    file = folder / "unet" / WEIGHTS["unet"]
    state = load_file(file)
    drop_one(state)
    save_file(state, file, metadata={"format": "pt"})
    target = tmp_path / "out"
    result = run_command("migrate", str(folder), "-o", str(target), "--no-config")
    assert result.code != 0
    assert "unet" in result.out + result.err
    assert not (target / "unet.safetensors").exists()


def test_commands_for_one_model_ask_for_one_of_them(folder, tmp_path, run_command):
    words = ("--merge-adapter", str(folder), "-o", str(tmp_path / "x"), "--no-config")
    result = run_command("migrate", str(folder), *words)
    assert result.code == 2
    assert f"--merge-adapter is for one source: give one of {folder}" in result.err
    result = run_command("merge", str(folder))
    assert result.code == 2
    assert "is a folder: give the files that `diff --shard` wrote" in result.err


def test_a_pipeline_is_recorded_as_one(folder, tmp_path, run_command):
    lock = str(tmp_path / "pipeline.lock.json")
    assert run_command("lock", str(folder), "-o", lock, "--no-config").code == 0
    places = json.loads((tmp_path / "pipeline.lock.json").read_text())
    assert "unet.conv_in.weight" in json.dumps(places)
    result = run_command("verify", str(folder), "--no-config")
    assert "load" in result.out
    assert "models of the pipeline: safety_checker, text_encoder, unet, vae" in result.out
