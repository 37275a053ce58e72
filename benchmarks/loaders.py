"""Verdict and key lists of `ckptool diff FOLDER` against the frameworks' own loading reports.

    python benchmarks/loaders.py [transformers] [diffusers] [peft] [timm] [cost]

Makes tiny models of every type in tests/loaders, saves them as their framework does, drops, adds
and cuts a tensor of each, and loads heads as bases and bases as heads. `cost` measures whole
processes on larger models. No weights are downloaded. Without names, all that is installed is run.
"""

import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "TQDM_DISABLE": "1"}
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

import torch
from growth import CKPTOOL, measured
from safetensors.torch import load_file, save_file

import ckptool

# `loaders` is the folder of the tests from here on, and not this file.
sys.path.remove(str(Path(__file__).resolve().parent))

State = dict[str, torch.Tensor]
Lists = tuple[set[str], set[str], set[str]]
"""Missing, unexpected and mismatched keys."""
WHOLE = ("loads with", "loads, but")
"""Beginnings of a verdict on a folder that loads whole."""
PAIRS = [
    ("BertModel", "BertForMaskedLM"), ("BertForMaskedLM", "BertModel"),
    ("BertForMaskedLM", "BertForSequenceClassification"),
    ("MixtralModel", "MixtralForCausalLM"), ("MixtralForCausalLM", "MixtralModel"),
    ("Qwen3MoeForCausalLM", "Qwen3MoeModel"), ("GPT2LMHeadModel", "GPT2Model"),
    ("GPT2Model", "GPT2LMHeadModel"), ("ViTModel", "ViTForImageClassification"),
    ("T5ForConditionalGeneration", "T5EncoderModel"), ("LlamaForCausalLM", "LlamaModel"),
]  # fmt: skip
"""Class that saves, and class that loads."""


def main(names: list[str]) -> int:
    warnings.simplefilter("ignore")
    logging.disable(logging.ERROR)
    checks = {
        "transformers": check_transformers, "diffusers": check_diffusers, "peft": check_peft,
        "timm": check_timm,
    }  # fmt: skip
    differing = 0
    for framework, check in checks.items():
        is_asked = framework in names if names else find_spec(framework) is not None
        needs_torchvision = framework == "timm" and find_spec("torchvision") is None
        if is_asked and not needs_torchvision:
            differing += print_table(framework, check)
    if "cost" in names or not names:
        measure_cost()
    return differing > 0


def print_table(framework: str, check: Callable[[Path], Iterator[tuple[str, str, bool]]]) -> int:
    """Print what agrees; return how many comparisons differ."""
    print(f"\n{framework} {version(framework)}, torch {torch.__version__}")
    with tempfile.TemporaryDirectory() as folder:
        rows = [*check(Path(folder))]
    for name, what, agrees in rows:
        if not agrees:
            print(f"  DIFFERS: {name}, {what}")
    counts = Counter(what for _, what, _ in rows)
    agreeing = Counter(what for _, what, agrees in rows if agrees)
    for what, count in counts.items():
        print(f"  {what:<40} {agreeing[what]} of {count} agree")
    print(f"  {len({name for name, _, _ in rows})} types")
    return sum(counts.values()) - sum(agreeing.values())


def ask_ckptool(folder: Path, **options: Any) -> tuple[Lists, bool, str]:
    """Return the lists of the report, whether it passes, and what the loader converts."""
    report = ckptool.diff(folder, **options)
    lists = tuple(
        set(keys) for keys in (report.missing_keys, report.unexpected_keys, report.mismatched_keys)
    )
    operations = sorted({step.operation for step in report.load_steps if step.operation})
    return lists, report.verdict.startswith(WHOLE), " and ".join(operations)


def agrees(folder: Path, truth: Lists, **options: Any) -> bool:
    lists, is_whole, _ = ask_ckptool(folder, **options)
    return lists == truth and is_whole == (not any(truth))


def ask_from_pretrained(cls: Any, folder: Path) -> Lists:
    _, info = cls.from_pretrained(folder, output_loading_info=True, ignore_mismatched_sizes=True)
    mismatched = {key for key, *_ in info["mismatched_keys"]}
    return set(info["missing_keys"]), set(info["unexpected_keys"]), mismatched


def change(folder: Path, edit: Callable[[State], None], name: str = "model.safetensors") -> None:
    state = load_file(folder / name)
    edit(state)
    save_file(state, folder / name, metadata={"format": "pt"})


def drop(state: State) -> None:
    del state[min(key for key in state if "weight" in key)]


def add(state: State) -> None:
    state["model.surplus.weight"] = torch.ones(3)


def cut(state: State) -> None:
    key = max(sorted(state), key=lambda key: state[key].numel())
    state[key] = state[key][: len(state[key]) // 2].clone()


EDITS = {"dropped key": drop, "extra key": add, "another shape": cut}


def check_transformers(place: Path) -> Iterator[tuple[str, str, bool]]:
    import transformers
    from loaders.transformers_zoo import CONVERTED, PLAIN, build_model

    fields = {**PLAIN, **CONVERTED}
    for name, values in fields.items():
        model = build_model(name, values)
        folder = place / name
        model.save_pretrained(folder)
        what = ask_ckptool(folder)[2] or "as saved"
        is_tied = bool(getattr(model.config, "tie_word_embeddings", False))
        yield (
            name,
            f"{what}, tied head" if is_tied else what,
            agrees(folder, ask_from_pretrained(type(model), folder)),
        )
        for what, edit in EDITS.items():
            model.save_pretrained(folder)
            change(folder, edit)
            yield name, what, agrees(folder, ask_from_pretrained(type(model), folder))
    for saved, loaded in PAIRS:
        config = fields.get(saved) or fields[loaded]
        folder = place / f"{saved}-{loaded}"
        build_model(saved, config).save_pretrained(folder)
        settings = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**settings, "architectures": [loaded]}))
        truth = ask_from_pretrained(getattr(transformers, loaded), folder)
        yield f"{saved} -> {loaded}", "base to head, head to base", agrees(folder, truth)


def check_diffusers(place: Path) -> Iterator[tuple[str, str, bool]]:
    from loaders.test_diffusers_models import MODELS, build

    for name in MODELS:
        model = build(name)
        for what, edit in {"as saved": lambda _: None, **EDITS}.items():
            folder = place / f"{name}-{what}"
            model.save_pretrained(folder)
            change(folder, edit, "diffusion_pytorch_model.safetensors")
            yield name, what, agrees(folder, ask_from_pretrained(type(model), folder))


def check_peft(place: Path) -> Iterator[tuple[str, str, bool]]:
    import peft
    from loaders.test_peft_adapters import CONFIGS, ask_peft, make_base

    base = place / "base"
    make_base().save_pretrained(base)
    for name, config in CONFIGS.items():
        edits = {"as saved": lambda _: None, "extra key": add}
        if name not in {"prompt tuning", "layer norm"}:  # they have one tensor
            edits["dropped key"] = lambda state: state.pop(min(state))
        for what, edit in edits.items():
            folder = place / f"{name}-{what}"
            peft.get_peft_model(make_base(), config).save_pretrained(folder)
            change(folder, edit, "adapter_model.safetensors")
            try:
                truth = (*ask_peft(folder), set())
            except (KeyError, RuntimeError):
                verdict = ckptool.diff(folder, base=base).verdict
                yield name, "load_adapter() raises", verdict.startswith("does not load")
                continue
            yield name, what, agrees(folder, truth, base=base)


def check_timm(place: Path) -> Iterator[tuple[str, str, bool]]:
    from loaders.test_timm_models import ARCHITECTURES, add_one, ask_timm, drop_one, save

    edits = {"as saved": lambda _: None, "dropped key": drop_one, "extra key": add_one}
    for name in ARCHITECTURES:
        for what, edit in edits.items():
            folder = save(place / f"{name}-{what}", name, edit)
            missing, unexpected = ask_timm(folder)
            report = ckptool.diff(folder)
            is_same = (set(report.missing_keys), set(report.unexpected_keys)) == (
                missing, unexpected,
            )  # fmt: skip
            loads = not missing and not unexpected
            yield name, what, is_same and report.verdict.startswith(WHOLE) == loads


LARGE = {
    "LlamaForCausalLM": {
        "vocab_size": 32000, "hidden_size": 1024, "intermediate_size": 2816,
        "num_hidden_layers": 12, "num_attention_heads": 16, "num_key_value_heads": 16,
    },
    "MixtralForCausalLM": {
        "vocab_size": 32000, "hidden_size": 512, "intermediate_size": 1024,
        "num_hidden_layers": 12, "num_attention_heads": 8, "num_key_value_heads": 8,
        "num_local_experts": 8,
    },
}  # fmt: skip
SCRIPT = """
import sys, transformers
cls = getattr(transformers, sys.argv[1])
print(cls.from_pretrained(sys.argv[2], output_loading_info=True)[1])
"""
MAKE = """
import sys
from loaders.transformers_zoo import build_model
build_model(sys.argv[1], eval(sys.argv[2])).save_pretrained(sys.argv[3])
"""
ROUNDS = 3


def measure_cost() -> None:
    """Print time and memory of whole processes: the median of three rounds in turn."""
    print("\nwhole processes: from_pretrained(..., output_loading_info=True), ckptool diff FOLDER")
    for name, fields in LARGE.items():
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place) / "model"
            # In a process of its own: what a process holds counts for those that it starts.
            subprocess.run(
                [sys.executable, "-c", MAKE, name, repr(fields), str(folder)],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
                check=True,
            )
            nbytes = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
            commands = {
                "from_pretrained": [sys.executable, "-c", SCRIPT, name, str(folder)],
                "ckptool diff": [*CKPTOOL, "diff", str(folder), "--no-config"],
            }
            runs: dict[str, list[tuple[float, float]]] = {what: [] for what in commands}
            for _ in range(ROUNDS):
                for what, command in commands.items():
                    runs[what].append(measured(command, folder.parent))
        medians = {
            what: [statistics.median(values) for values in zip(*found, strict=True)]
            for what, found in runs.items()
        }
        for what, (seconds, mib) in medians.items():
            print(f"  {name}, {nbytes / 2**30:.2f} GiB  {what:<16} {seconds:6.2f} s {mib:7.0f} MiB")
        ratios = [b / a for a, b in zip(*medians.values(), strict=True)]
        print(f"  {'ratio':<40} {ratios[0]:6.2f}   {ratios[1]:7.2f}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
