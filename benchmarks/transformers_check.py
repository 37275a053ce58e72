"""Architectures of `transformers` at tiny sizes -> false alarms of the simulated device.

Run it in an environment of its own, with transformers beside ckptool's dependencies:
`PYTHONPATH=. python benchmarks/transformers_check.py`. No weights are downloaded. Each architecture
is run as it is, where no clash may be reported, and once more for each kind of buffer that is made
a plain attribute.
"""

import copy
import sys
import warnings
from typing import Any

import torch
import transformers
from torch import nn

from ckptool.verification.backends import cpu, simulated
from ckptool.verification.forward_pass import ForwardPass, Inputs

warnings.simplefilter("ignore")

DEVICE = torch.device("cuda", 0)
TOKENS = {"input_ids": torch.arange(16).reshape(2, 8) % 50}
PIXELS = {"pixel_values": torch.linspace(-1, 1, 2 * 3 * 32 * 32).reshape(2, 3, 32, 32)}
SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
}
GROUPED = {**SMALL, "num_key_value_heads": 2, "head_dim": 8}
OLD = {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32}
VISION = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "image_size": 32,
    "patch_size": 8,
}
SEQ2SEQ = {
    "vocab_size": 64,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
}
BOTH = {**TOKENS, "decoder_input_ids": TOKENS["input_ids"]}
SWIN = {
    "image_size": 32,
    "patch_size": 4,
    "embed_dim": 16,
    "depths": [1, 1],
    "num_heads": [2, 2],
    "window_size": 4,
}
ARCHITECTURES: dict[str, tuple[dict[str, Any], dict[str, torch.Tensor]]] = {
    "GPT2": (OLD, TOKENS),
    "GPTNeoX": (SMALL, TOKENS),
    "GPTJ": ({**OLD, "rotary_dim": 4}, TOKENS),
    "OPT": ({**SMALL, "ffn_dim": 48, "word_embed_proj_dim": 32}, TOKENS),
    "Bloom": ({"vocab_size": 64, "hidden_size": 32, "n_layer": 2, "n_head": 4}, TOKENS),
    "Falcon": ({**SMALL, "new_decoder_architecture": False}, TOKENS),
    "CTRL": ({**OLD, "dff": 48}, TOKENS),
    "Llama": (GROUPED, TOKENS),
    "Mistral": (GROUPED, TOKENS),
    "Qwen2": (GROUPED, TOKENS),
    "Qwen3": (GROUPED, TOKENS),
    "Gemma2": (GROUPED, TOKENS),
    "Phi": (SMALL, TOKENS),
    "Mixtral": ({**GROUPED, "num_local_experts": 2}, TOKENS),
    "Bert": (SMALL, TOKENS),
    "Roberta": (SMALL, TOKENS),
    "DistilBert": ({"vocab_size": 64, "dim": 32, "n_layers": 2, "n_heads": 4}, TOKENS),
    "Electra": ({**SMALL, "embedding_size": 16}, TOKENS),
    "DebertaV2": (SMALL, TOKENS),
    "ModernBert": ({**SMALL, "pad_token_id": 0}, TOKENS),
    "T5": (
        {"vocab_size": 64, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4},
        BOTH,
    ),
    "Bart": (SEQ2SEQ, BOTH),
    "Whisper": (
        {
            **SEQ2SEQ,
            "num_mel_bins": 8,
            "max_source_positions": 10,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "decoder_start_token_id": 1,
        },
        {"input_features": torch.ones(2, 8, 20), "decoder_input_ids": TOKENS["input_ids"]},
    ),
    "ViT": (VISION, PIXELS),
    "Swin": (SWIN, PIXELS),
    "ConvNext": ({"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2}, PIXELS),
    "Mamba": (
        {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
        TOKENS,
    ),
}


def main() -> int:
    """Check the architectures named as arguments, or all; 1 where there was a false alarm."""
    print(f"torch {torch.__version__}, transformers {transformers.__version__}")
    alarms = 0
    for name in sys.argv[1:] or ARCHITECTURES:
        settings, inputs = ARCHITECTURES[name]
        try:
            module = build(name, settings)
        except (TypeError, ValueError, AttributeError) as error:
            print(f"{name:12} not built: {error}")
            continue
        found = run(copy.deepcopy(module), inputs)
        alarms += bool(found.device_mismatches)
        print(f"{name:12} {verdict(found)}; {plain_attributes(module, inputs)}", flush=True)
    return min(alarms, 1)


def build(name: str, settings: dict[str, Any]) -> nn.Module:
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**settings)
    return getattr(transformers, f"{name}Model")(config).eval()


def run(module: nn.Module, inputs: dict[str, torch.Tensor]) -> ForwardPass:
    return simulated.run_simulated(module, Inputs((), inputs), DEVICE)


def verdict(found: ForwardPass) -> str:
    if found.device_mismatches:
        return f"FALSE ALARM {found.device_mismatches[0]}"
    if found.error or found.unmodelled_operations:
        return f"inconclusive: {found.error or found.unmodelled_operations}"
    return "passed"


def plain_attributes(module: nn.Module, inputs: dict[str, torch.Tensor]) -> str:
    """Make each kind of buffer a plain attribute, and count which of them clash."""
    if cpu.run_on_cpu(module, Inputs((), inputs)).error:
        return "fails on the CPU as well"
    paths = {kind(path): path for path, _ in module.named_buffers()}
    flagged, others = [], []
    for path in paths.values():
        turned = copy.deepcopy(module)
        owner, _, name = path.rpartition(".")
        holder = turned.get_submodule(owner)
        # Not setattr(): torch registers what is given the name of a buffer that was popped.
        vars(holder)[name] = holder._buffers.pop(name)  # noqa: SLF001
        found = run(turned, inputs)
        (flagged if any(c.attribute == path for c in found.device_mismatches) else others).append(
            path
        )
    return f"{len(flagged)} of {len(paths)} kinds of buffers clash as plain attributes" + (
        f" (not: {', '.join(others)})" if others else ""
    )


def kind(path: str) -> str:
    return ".".join(step for step in path.split(".") if not step.isdigit())


if __name__ == "__main__":
    sys.exit(main())
