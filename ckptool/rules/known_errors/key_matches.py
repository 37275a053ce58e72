"""KeyDifference -> PatternMatch: layers, buffers and forms that keys on one side have.

Each function looks for one cause, and says which keys it explains.
"""

import re
from collections.abc import Collection
from typing import Final

from ckptool.phrases import join_limited, pluralize, quote_python
from ckptool.rules.known_errors.key_lists import KeyDifference
from ckptool.rules.known_errors.known_error import Certainty
from ckptool.rules.known_errors.pattern_match import PatternMatch

_STATE_KEYS: Final = (
    *("state_dict", "model_state_dict", "model_state", "model", "net", "network", "module"),
    *("ema_state_dict", "ema", "generator", "params_ema", "params", "weights"),
)
"""Keys of a training checkpoint under which scripts store the state_dict of a model."""
_TRAINING_KEYS: Final = frozenset(
    {
        *("epoch", "step", "global_step", "iteration", "optimizer", "optimizer_state_dict"),
        *("optimizer_states", "optim", "scheduler", "lr_scheduler", "lr_schedulers", "scaler"),
        *("best_acc", "best_acc1", "best_loss", "loss", "args", "arch", "config", "cfg", "hparams"),
        *("hyper_parameters", "pytorch-lightning_version", "callbacks", "loops", "rng_state"),
        *("scheduler_state_dict", "lr_scheduler_state_dict", "hparams_name", "meta"),
    }
)


def find_whole_checkpoint(difference: KeyDifference) -> PatternMatch | None:
    names = {key for key in difference.unexpected if "." not in key}
    if names != {*difference.unexpected}:
        return None
    places = [name for name in _STATE_KEYS if name in names]
    if not places or not (difference.missing or names & _TRAINING_KEYS):
        return None
    has_training_state = bool(names & _TRAINING_KEYS) or len(places[0]) > len("module")
    return PatternMatch(
        {*difference.missing, *names},
        {"place": places[0], "keys": join_limited(sorted(names), 4)},
        Certainty.CERTAIN if has_training_state and difference.missing else Certainty.PROBABLE,
    )


def find_optimizer_state(difference: KeyDifference) -> PatternMatch | None:
    if {*difference.unexpected} != {"state", "param_groups"} or not difference.missing:
        return None
    return PatternMatch((*difference.missing, *difference.unexpected), {})


def find_flat_parameters(difference: KeyDifference) -> PatternMatch | None:
    for keys, side in ((difference.unexpected, "checkpoint"), (difference.missing, "module")):
        flat = [key for key in keys if "_flat_param" in key]
        if flat:
            keys_of_sides = (*difference.missing, *difference.unexpected)
            return PatternMatch(keys_of_sides, {"side": side, "key": flat[0]})
    return None


_NORM_FORMS: Final = (
    # (suffixes of the module, suffixes of the file, form of the module, form of the file)
    (
        (".parametrizations.weight.original0", ".parametrizations.weight.original1"),
        (".weight_g", ".weight_v"),
        "torch.nn.utils.parametrizations.weight_norm",
        "the older torch.nn.utils.weight_norm",
    ),
    (
        (".weight_g", ".weight_v"),
        (".parametrizations.weight.original0", ".parametrizations.weight.original1"),
        "the older torch.nn.utils.weight_norm",
        "torch.nn.utils.parametrizations.weight_norm",
    ),
    ((".weight_g", ".weight_v"), (".weight",), "weight norm", "plain weights"),
    (
        (".parametrizations.weight.original0", ".parametrizations.weight.original1"),
        (".weight",),
        "weight norm",
        "plain weights",
    ),
    ((".weight",), (".weight_g", ".weight_v"), "plain weights", "weight norm"),
    (
        (".weight",),
        (".parametrizations.weight.original0", ".parametrizations.weight.original1"),
        "plain weights",
        "weight norm",
    ),
    ((".weight_orig", ".weight_u"), (".weight",), "spectral norm", "plain weights"),
    ((".weight",), (".weight_orig", ".weight_u"), "plain weights", "spectral norm"),
    ((".weight_orig", ".weight_mask"), (".weight",), "pruning", "plain weights"),
    ((".weight",), (".weight_orig", ".weight_mask"), "plain weights", "pruning"),
)


def find_norm_forms(difference: KeyDifference) -> PatternMatch | None:
    # Each key with a dot in front, as keys of the module itself have none.
    missing = {f".{key}": None for key in difference.missing}
    unexpected = {f".{key}" for key in difference.unexpected}
    for module_suffixes, file_suffixes, module_form, file_form in _NORM_FORMS:
        stems = [
            key.removesuffix(module_suffixes[0])
            for key in missing
            if key.endswith(module_suffixes[0])
        ]
        stems = [
            stem
            for stem in stems
            if all(stem + suffix in missing for suffix in module_suffixes)
            and all(stem + suffix in unexpected for suffix in file_suffixes)
        ]
        if stems:
            extra = (".weight_v",) if "spectral norm" in {module_form, file_form} else ()
            suffixes = (*module_suffixes, *file_suffixes, *extra)
            keys = {(stem + suffix)[1:] for stem in stems for suffix in suffixes}
            layer = (stems[0] + file_suffixes[0])[1:]
            facts = {"module_form": module_form, "file_form": file_form, "layer": layer}
            return PatternMatch(keys, facts)
    return None


_LORA: Final = re.compile(
    r"\.(?:lora_(?:A|B|embedding_A|embedding_B|magnitude_vector)|base_layer)\b"
)


def find_adapter_file(difference: KeyDifference) -> PatternMatch | None:
    keys = [key for key in difference.unexpected if _LORA.search(f".{key}")]
    if not keys:
        return None
    return PatternMatch({*difference.unexpected, *difference.missing}, {"key": keys[0]})


def find_adapter_module(difference: KeyDifference) -> PatternMatch | None:
    keys = [key for key in difference.missing if _LORA.search(f".{key}")]
    if not keys:
        return None
    unexpected = {*difference.unexpected}
    plain = {key: key.replace(".base_layer.", ".") for key in keys}
    wrapped = {key.removeprefix("base_model.model."): key for key in plain.values()}
    sources = {key for key in unexpected if key in wrapped or key in plain.values()}
    return PatternMatch({*keys, *sources}, {"key": keys[0]})


_QUANTIZED: Final = re.compile(
    r"\.(?:qweight|qzeros|g_idx|scales|SCB|weight_format|absmax|quant_map|quant_state\.[\w.]+"
    r"|nested_absmax|nested_quant_map|weight_scale|weight_packed|_packed_params(?:\.[\w.]+)?"
    r"|weight\.(?:absmax|quant_map|nested_absmax|nested_quant_map|quant_state\.[\w.]+)"
    r"|zero_point|scale)$"
)


def find_quantized_file(difference: KeyDifference) -> PatternMatch | None:
    keys = {key for key in difference.unexpected if _QUANTIZED.search(f".{key}")}
    if not keys:
        return None
    stems = {key.rpartition(".")[0] for key in keys}
    weights = {key for key in difference.missing if key.rpartition(".")[0] in stems}
    return PatternMatch(keys | weights, {"key": next(iter(sorted(keys)))})


def find_gamma_beta(difference: KeyDifference) -> PatternMatch | None:
    missing = {*difference.missing}
    pairs = {
        key: stem + new
        for key in difference.unexpected
        for old, new in ((".gamma", ".weight"), (".beta", ".bias"))
        if key.endswith(old) and (stem := key.removesuffix(old)) + new in missing
    }
    return PatternMatch({*pairs, *pairs.values()}) if pairs else None


def _match_suffix(keys: Collection[str], suffix: str) -> frozenset[str]:
    return frozenset(key for key in keys if f".{key}".endswith(suffix))


def find_batch_counters(difference: KeyDifference) -> PatternMatch | None:
    keys = _leave_out_lost_layers(
        _match_suffix(difference.missing, ".num_batches_tracked"), difference.missing
    )
    return PatternMatch(keys, {"count": pluralize(len(keys), "counter")}) if keys else None


def _leave_out_lost_layers(keys: Collection[str], side: Collection[str]) -> frozenset[str]:
    """Return the keys of layers whose weight is not on the same side."""
    lost = {key.removesuffix("weight") for key in side if key.endswith("weight")}
    return frozenset(key for key in keys if key.rpartition(".")[0] + "." not in lost)


def find_running_statistics(difference: KeyDifference) -> PatternMatch | None:
    for side, other in (("missing", "checkpoint"), ("unexpected", "module")):
        all_keys = getattr(difference, side)
        statistics = {
            key
            for suffix in (".running_mean", ".running_var", ".num_batches_tracked")
            for key in _match_suffix(all_keys, suffix)
        }
        keys = _leave_out_lost_layers(statistics, all_keys)
        if any(key.endswith("running_mean") for key in keys):
            return PatternMatch(keys, {"side": other, "key": min(keys)})
    return None


_DERIVED_BUFFERS: Final = re.compile(
    r"\.(?:position_ids|token_type_ids|masked_bias|inv_freq|attn\.bias|attention\.bias"
    r"|relative_position_index|attn_mask|causal_mask|mask|tril|pe|freqs_cis|cos_cached|sin_cached"
    r"|rope\.freqs|embed_positions\._float_tensor)$"
)
"""Buffers that constructors compute; libraries have stopped saving many of them."""


def find_old_buffers(difference: KeyDifference) -> PatternMatch | None:
    keys = sorted(key for key in difference.unexpected if _DERIVED_BUFFERS.search(f".{key}"))
    if not keys:
        return None
    names = {key.rpartition(".")[2] for key in keys}
    facts = {"key": keys[0], "count": pluralize(len(keys), "key"), "names": repr(tuple(names))}
    endings = ", ".join(quote_python(name) for name in sorted(names))
    facts["code"] = f"({endings}{',' if len(names) == 1 else ''})"
    return PatternMatch(frozenset(keys), facts)


def find_new_buffers(difference: KeyDifference) -> PatternMatch | None:
    keys = sorted(key for key in difference.missing if _DERIVED_BUFFERS.search(f".{key}"))
    return PatternMatch(frozenset(keys), {"key": keys[0]}) if keys else None


def find_tied_head(difference: KeyDifference) -> PatternMatch | None:
    names = ("lm_head.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight",
             "cls.predictions.decoder.weight", "lm_head.decoder.weight")  # fmt: skip
    keys = {key for key in difference.missing if key.endswith(names)}
    return PatternMatch(keys, {"key": min(keys)}) if keys else None


def find_extra_layers(difference: KeyDifference) -> PatternMatch | None:
    """Find keys of one side that are all layers beyond those of the other side; else None."""
    for keys, side in ((difference.unexpected, "file"), (difference.missing, "module")):
        other = difference.missing if side == "file" else difference.unexpected
        matches = [re.match(r"((?:[^.]+\.){0,6}?)(\d{1,6})\.(.+)", key) for key in keys]
        stacks = {match[1] for match in matches if match}
        if keys and not other and all(matches) and len(stacks) == 1:
            numbers = sorted({int(match[2]) for match in matches if match})
            is_range = numbers == [*range(numbers[0], numbers[-1] + 1)] and numbers[0] > 0
            if is_range:
                shown = f"{numbers[0]}-{numbers[-1]}" if len(numbers) > 1 else str(numbers[0])
                facts = {"side": side, "layers": f"{next(iter(stacks))}{shown}",
                         "count": str(numbers[0])}  # fmt: skip
                return PatternMatch(frozenset(keys), facts)
    return None


def find_head(difference: KeyDifference) -> PatternMatch | None:
    for keys, side in ((difference.missing, "module"), (difference.unexpected, "file")):
        head = {key for key in keys if HEAD_NAME.search(key)}
        if head and len(head) == len(keys):
            return PatternMatch(head, {"side": side, "key": min(head)})
    return None


HEAD_NAME: Final = re.compile(
    r"(?:^|\.)(?:fc|head|heads?\.head|classifier(?:\.\d+)?|cls|score|logits|output_layer|out_proj"
    r"|qa_outputs|linear_head|roi_heads\.box_predictor\.\w+|class_embed|last_linear)"
    r"\.(?:[\w]+\.){0,2}(?:weight|bias)$"
)
"""Keys of a classification head."""


def find_only_unexpected(difference: KeyDifference) -> PatternMatch | None:
    if difference.missing or not difference.unexpected:
        return None
    return PatternMatch(difference.unexpected, _describe_some(difference.unexpected))


def find_only_missing(difference: KeyDifference) -> PatternMatch | None:
    if difference.unexpected or not difference.missing:
        return None
    return PatternMatch(difference.missing, _describe_some(difference.missing))


def find_other(difference: KeyDifference) -> PatternMatch | None:
    keys = (*difference.missing, *difference.unexpected)
    return PatternMatch(
        keys,
        {
            "missing": _describe_some(difference.missing)["keys"],
            "unexpected": _describe_some(difference.unexpected)["keys"],
        },
    )


def _describe_some(keys: Collection[str]) -> dict[str, str]:
    return {"keys": join_limited([f"`{key}`" for key in keys], 2)}
