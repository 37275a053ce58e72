"""Every model type of transformers that a tiny model can be derived of, against from_pretrained.

    python benchmarks/loader_types.py [FIRST:LAST] [--converted] [--json FILE]

Takes the class that AutoModel has for a type, shrinks the numbers of its default configuration,
saves the model with save_pretrained, and compares `ckptool.diff` with the framework's report: as
saved, with a key dropped, and with a key more. `--converted` is those with a conversion mapping.
FIRST:LAST selects a batch; --json keeps the results in a file, and goes on where it stopped.
"""

import json
import logging
import os
import resource
import signal
import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "TQDM_DISABLE": "1"}
sys.path.insert(0, str(Path(__file__).resolve().parent))

import torch
import transformers
from loaders import add, agrees, ask_from_pretrained, change, drop
from transformers.conversion_mapping import get_checkpoint_conversion_mapping
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

import ckptool

MEMORY_NBYTES = 12 << 30
SECONDS_PER_TYPE = 40
MAX_PARAMETERS = 20_000_000
CLASS_MAPPINGS = (
    modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    modeling_auto.MODEL_MAPPING_NAMES,
)
"""The first that has a type gives its class."""
SMALL = {
    "vocab": 64, "hidden_size": 32, "d_model": 32, "n_embd": 32, "embed_dim": 32, "dim": 32,
    "intermediate": 48, "ffn_dim": 48, "d_ff": 48, "mlp_dim": 48, "inner": 48,
    "num_hidden_layers": 2, "n_layer": 2, "num_layers": 2, "encoder_layers": 1,
    "decoder_layers": 1, "depth": 2, "heads": 2, "n_head": 2, "head_dim": 16, "d_kv": 16,
    "experts_per_tok": 2, "top_k": 2, "experts": 4, "max_position": 64, "n_positions": 64,
    "image_size": 32, "patch_size": 8, "lora_rank": 8, "rope_head_dim": 8, "v_head_dim": 16,
    "projection_dim": 16, "n_group": 2, "topk_group": 1, "first_k_dense": 1, "state_size": 8,
    "num_queries": 4, "query_length": 4,
}  # fmt: skip
"""Part of a field's name -> its value at most; the longest part that fits counts."""


def shrink(config: Any) -> dict[str, Any]:
    """Return the fields of a configuration that are made smaller."""
    fields: dict[str, Any] = {}
    for name, value in vars(config).items():
        if isinstance(value, transformers.PretrainedConfig):
            fields[name] = shrink(value)
        elif name.endswith(("token_id", "token_index")):
            if isinstance(value, int) and value >= SMALL["vocab"]:
                fields[name] = SMALL["vocab"] - 1 - (len(fields) % 8)
        elif isinstance(value, int) and not isinstance(value, bool) and not name.startswith("_"):
            parts = [part for part in SMALL if part in name]
            if parts and value > SMALL[max(parts, key=len)]:
                fields[name] = SMALL[max(parts, key=len)]
    return fields


def list_types(*, is_converted: bool) -> list[str]:
    return [
        name
        for name in sorted(CONFIG_MAPPING)
        if not is_converted or get_checkpoint_conversion_mapping(name) is not None
    ]


def find_class(model_type: str) -> Any:
    for mapping in CLASS_MAPPINGS:
        name = mapping.get(model_type)
        if name:
            return getattr(transformers, name if isinstance(name, str) else name[0])
    raise LookupError("no Auto class has it")


def build(model_type: str) -> Any:
    """Return the tiny model.

    Raises:
        Exception: whatever the class raises with such a configuration.
    """
    cls = find_class(model_type)
    config_class = CONFIG_MAPPING[model_type]
    fields = shrink(config_class())
    attempts = (
        fields,
        {**fields, "num_key_value_heads": 2} if "num_attention_heads" in fields else fields,
        {key: value for key, value in fields.items() if "layer" not in key},
        {key: value for key, value in fields.items() if "head_dim" not in key},
    )
    error: Exception | None = None
    for attempt in attempts:
        try:
            return build_small(cls, config_class(**attempt))
        except Exception as caught:  # noqa: BLE001 (whatever a class raises: the next attempt)
            error = error or caught
    assert error is not None
    raise error


def build_small(cls: Any, config: Any) -> Any:
    """Return the model, under a fixed seed.

    Raises:
        MemoryError: it has more than MAX_PARAMETERS.
    """
    with torch.device("meta"):
        count = sum(p.numel() for p in cls(config).parameters())
    if count > MAX_PARAMETERS:
        raise MemoryError(f"{count / 1e6:.0f} million parameters")
    torch.manual_seed(0)
    return cls(config).eval()


def check_type(model_type: str, place: Path) -> str:
    """Return "agrees", "differs: ..." or "cannot be built: ..."."""
    try:
        model = build(model_type)
        model.save_pretrained(place / "model")
    except Exception as error:  # noqa: BLE001 (whatever a class raises is its reason)
        return f"cannot be built: {type(error).__name__}: {str(error).splitlines()[:1]}"[:160]
    differing = []
    for what, edit in {"as saved": None, "dropped key": drop, "extra key": add}.items():
        model.save_pretrained(place / "model")
        if edit is not None:
            change(place / "model", edit)
        difference = compare(type(model), place / "model")
        if difference is not None:
            differing.append(f"{what} {difference}")
    return f"differs: {', '.join(differing)}" if differing else "agrees"


def compare(cls: Any, folder: Path) -> str | None:
    """Return how ckptool differs from from_pretrained, which may raise; None if it agrees."""
    try:
        truth = ask_from_pretrained(cls, folder)
    except Exception:  # noqa: BLE001 (then the verdict is that it does not load)
        truth = None
    try:
        if truth is None:
            verdict = ckptool.diff(folder).verdict
            return None if verdict.startswith("does not load") else verdict[:80]
        return None if agrees(folder, truth) else "another verdict or other keys"
    except Exception as error:  # noqa: BLE001 (a fault of ckptool's is a difference)
        return f"{type(error).__name__}: {str(error)[:100]}"


def stop(*_: Any) -> None:
    raise TimeoutError(f"took more than {SECONDS_PER_TYPE} s")


def main(words: list[str]) -> int:
    warnings.simplefilter("ignore")
    logging.disable(logging.ERROR)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_NBYTES, MEMORY_NBYTES))
    signal.signal(signal.SIGALRM, stop)
    types = list_types(is_converted="--converted" in words)
    file = Path(words[words.index("--json") + 1]) if "--json" in words else None
    first, _, last = next((word for word in words if ":" in word), ":").partition(":")
    is_kept = file is not None and file.exists()
    results: dict[str, str] = json.loads(file.read_text()) if file and is_kept else {}
    for model_type in types[int(first or 0) : int(last or len(types))]:
        if model_type in results:
            continue
        with tempfile.TemporaryDirectory() as place:
            signal.alarm(SECONDS_PER_TYPE)
            try:
                results[model_type] = check_type(model_type, Path(place))
            except TimeoutError as error:
                results[model_type] = f"cannot be built: {error}"
            signal.alarm(0)
        print(f"  {model_type:<28} {results[model_type]}", flush=True)
        if file is not None:
            file.write_text(json.dumps(results, indent=1))
    counts = Counter(result.partition(":")[0] for result in results.values())
    print(f"{len(results)} of {len(types)} types: {dict(counts)}")
    return counts["differs"] > 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
