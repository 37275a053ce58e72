"""A pipeline of diffusers as one folder, against from_pretrained of each of its models."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from loaders.changed_weights import add_one, change_file, cut_one, drop_one
from loaders.test_diffusers_models import build
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
    change_file(folder / name, change)
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


def load_pipeline(folder: Path):
    return diffusers.StableDiffusionPipeline.from_pretrained(folder, tokenizer=None)


def is_equal(first, second) -> bool:
    return all(
        torch.equal(value, getattr(second, name).state_dict()[key])
        for name in CLASSES
        for key, value in getattr(first, name).state_dict().items()
    )


@pytest.mark.parametrize(
    ("command", "options"),
    [("migrate", ()), ("convert", ()), ("convert", ("--to", "pth")), ("migrate", ("--to", "pth"))],
)
@pytest.mark.parametrize("kind", ["whole", "variant"])
def test_a_pipeline_is_written_as_one(command, options, kind, saved, tmp_path, run_command):
    """It was written as single files, out/unet.safetensors, which from_pretrained never finds."""
    target = tmp_path / "out"
    result = run_command(command, str(saved / kind), "-o", str(target), *options, "--no-config")
    assert result.code == 0, result.err
    assert is_equal(load_pipeline(target), load_pipeline(saved / "whole"))
    settings = {p.relative_to(saved / kind) for p in (saved / kind).rglob("*.json")}
    assert settings == {p.relative_to(target) for p in target.rglob("*.json")} - {
        p.relative_to(target) for p in target.rglob("*.ckptool.json")
    }
    result = run_command(command, str(saved / kind), "-o", str(target), *options, "--no-config")
    assert result.code == 2  # what is there is kept


def test_a_cast_pipeline_loads_in_the_new_dtype(folder, tmp_path, run_command):
    target = tmp_path / "out"
    words = ("-o", str(target), "--dtype", "bf16")
    assert run_command("convert", str(folder), *words, "--no-config").code == 0
    _, info = diffusers.UNet2DConditionModel.from_pretrained(
        target / "unet", output_loading_info=True
    )
    assert not info["missing_keys"]
    stored = load_file(target / "unet" / WEIGHTS["unet"]).values()
    assert {value.dtype for value in stored} == {torch.bfloat16}


def test_a_model_of_a_pipeline_that_does_not_load_is_named(folder, tmp_path, run_command):
    """What is incomplete has no model_index.json, and so is no pipeline."""
    change_file(folder / "unet", drop_one)
    target = tmp_path / "out"
    result = run_command("migrate", str(folder), "-o", str(target), "--no-config")
    assert result.code != 0
    assert "unet" in result.out + result.err
    assert not (target / "unet").exists()
    assert not (target / "model_index.json").exists()


def test_a_pipeline_without_the_weights_of_a_model_is_not_written(folder, tmp_path, run_command):
    (folder / "vae" / WEIGHTS["vae"]).unlink()
    for command in ("migrate", "convert"):
        result = run_command(command, str(folder), "-o", str(tmp_path / "out"), "--no-config")
        assert result.code == 2
        assert "vae: has a config.json, and no weights" in result.err
        assert not (tmp_path / "out").exists()


def test_shards_of_a_pipeline_are_refused(folder, tmp_path, run_command):
    words = ("-o", str(tmp_path / "out"), "--max-shard-size", "100KB", "--no-config")
    result = run_command("migrate", str(folder), *words)
    assert result.code == 2
    assert "each model of a pipeline is written as one file" in result.err


def test_verify_runs_each_model(folder, run_command):
    """It exited with 2: nothing was run."""
    result = run_command("verify", str(folder), "--no-config")
    assert result.code == 0, result.out
    assert "input: made by its configuration: text_encoder, unet, vae" in result.out
    assert "not checked: forward of safety_checker" in result.out

    change_file(folder / "vae", drop_one)
    _, info = diffusers.AutoencoderKL.from_pretrained(folder / "vae", output_loading_info=True)
    (missing,) = info["missing_keys"]
    result = run_command("verify", str(folder), "--no-config")
    assert result.code == 1
    assert f"vae.{missing}" in result.out


@pytest.mark.parametrize("name", ["UNet2DModel", "UNet2DConditionModel", "AutoencoderKL"])
def test_inputs_of_a_model_are_those_that_it_takes(name, tmp_path, run_command):
    build(name).save_pretrained(tmp_path / name)
    result = run_command("verify", str(tmp_path / name), "--no-config")
    assert result.code == 0, result.out
    assert "sample" in result.out


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
