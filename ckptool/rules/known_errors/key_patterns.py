"""KeyDifference -> explanations: what the names of keys say of the cause.

`KEY_PATTERNS` is the table: one block a pattern, tried in order on the keys that those before it
have not explained.
"""

from collections.abc import Callable, Iterator
from typing import Final

from msgspec import Struct

from ckptool.rules.fixes.state_code import FULL_STATE_DICT
from ckptool.rules.known_errors.key_lists import KeyDifference
from ckptool.rules.known_errors.key_matches import (
    find_adapter_file,
    find_adapter_module,
    find_batch_counters,
    find_extra_layers,
    find_flat_parameters,
    find_gamma_beta,
    find_head,
    find_new_buffers,
    find_norm_forms,
    find_old_buffers,
    find_only_missing,
    find_only_unexpected,
    find_optimizer_state,
    find_other,
    find_quantized_file,
    find_running_statistics,
    find_tied_head,
    find_whole_checkpoint,
)
from ckptool.rules.known_errors.known_error import (
    Advice,
    Certainty,
    ErrorFacts,
    Explanation,
    fill_advice,
    fill_words,
)
from ckptool.rules.known_errors.pattern_match import PatternMatch
from ckptool.rules.known_errors.prefix_matches import (
    find_prefix_in_file,
    find_prefix_in_module,
    find_renamed_subtrees,
    find_wrapped_file,
    find_wrapped_module,
)


class KeyPattern(Struct, frozen=True):
    """A cause of missing and unexpected keys. `cause` and `advice` are format strings."""

    name: str
    find: Callable[[KeyDifference], PatternMatch | None]
    cause: str
    certainty: Certainty
    advice: tuple[Advice, ...]


MIGRATE: Final = Advice(
    "or write a checkpoint that loads as it is",
    command="ckptool migrate {file:path} -o {result:sh} {module_options}",
)
DIFF: Final = Advice(
    "to see which keys differ, and why", command="ckptool diff {file:path} {module_options}"
)
INSPECT: Final = Advice("to see what the file contains", command="ckptool inspect {file:path}")


def explain_keys(difference: KeyDifference, facts: ErrorFacts) -> Iterator[Explanation]:
    """Yield an explanation for each cause of the difference, the first that fits first."""
    left = difference
    for pattern in KEY_PATTERNS:
        if not left.missing and not left.unexpected:
            return
        match = pattern.find(left)
        if match is None:
            continue
        left = left.without(match.keys)
        words = {**facts.words, **match.facts}
        yield Explanation(
            pattern.name,
            fill_words(pattern.cause, words),
            match.certainty or pattern.certainty,
            fill_advice(pattern.advice, words),
        )


KEY_PATTERNS: Final = (
    KeyPattern(
        name="fsdp-flat-parameter",
        find=find_flat_parameters,
        cause=(
            "the {side} has the flat parameters of FSDP (`{key}`): it is not a full state_dict, "
            "which is what load_state_dict() needs"
        ),
        certainty=Certainty.CERTAIN,
        advice=(
            Advice(
                "save the full state_dict",
                code=FULL_STATE_DICT,
            ),
            INSPECT,
        ),
    ),
    KeyPattern(
        name="optimizer-state",
        find=find_optimizer_state,
        cause="the state_dict of an optimizer was passed to load_state_dict() of a module",
        certainty=Certainty.CERTAIN,
        advice=(
            Advice("pass it to the optimizer", code="optimizer.load_state_dict(state_dict)"),
            INSPECT,
        ),
    ),
    KeyPattern(
        name="whole-checkpoint",
        find=find_whole_checkpoint,
        cause=(
            "a whole training checkpoint ({keys}) was passed to load_state_dict(); the state_dict "
            "is one of its entries, `{place}`"
        ),
        certainty=Certainty.CERTAIN,
        advice=(
            Advice(
                "pass that entry",
                code="model.load_state_dict(state_dict[{place:py}])",
            ),
            INSPECT,
            Advice(
                "or write the state_dict alone",
                command="ckptool migrate {file:path} -o {result:sh} --at {place:sh} --drop-extra",
            ),
        ),
    ),
    KeyPattern(
        name="wrapped-file",
        find=find_wrapped_file,
        cause=(
            "the checkpoint was saved from a model wrapped by {wrapper}: its keys have `{prefix}`"
        ),
        certainty=Certainty.PROBABLE,
        advice=(
            Advice(
                "remove the prefix",
                code=(
                    "model.load_state_dict({{{code}: value for key, value in state_dict.items()}})"
                ),
            ),
            MIGRATE,
        ),
    ),
    KeyPattern(
        name="wrapped-module",
        find=find_wrapped_module,
        cause=(
            "the model is wrapped by {wrapper}, so that its keys have `{prefix}`; the checkpoint "
            "was saved without it"
        ),
        certainty=Certainty.PROBABLE,
        advice=(
            Advice(
                "load into the model inside the wrapper",
                code="model.{attribute}.load_state_dict(state_dict)",
            ),
            DIFF,
        ),
    ),
    KeyPattern(
        name="old-weight-norm",
        find=find_norm_forms,
        cause="the module uses {module_form}, the checkpoint has {file_form} (`{layer}`)",
        certainty=Certainty.PROBABLE,
        advice=(
            Advice(
                "write a checkpoint with the tensors in the form of the module",
                command="ckptool migrate {file:path} -o {result:sh} {module_options}",
            ),
            Advice(
                "or apply to the module, before loading, what the checkpoint has ({file_form}), "
                "and "
                "change it after loading"
            ),
        ),
    ),
    KeyPattern(
        name="adapter-file",
        find=find_adapter_file,
        cause="the checkpoint has LoRA weights of PEFT (`{key}`), and the model has none",
        certainty=Certainty.PROBABLE,
        advice=(
            Advice(
                "load an adapter on top of its base model",
                code='model = peft.PeftModel.from_pretrained(model, "ADAPTER_FOLDER")',
            ),
            Advice(
                "or merge it into the base model",
                command="ckptool migrate ADAPTER_FOLDER -o merged --merge-adapter BASE_FOLDER",
            ),
        ),
    ),
    KeyPattern(
        name="adapter-module",
        find=find_adapter_module,
        cause="the model has LoRA layers of PEFT (`{key}`), and the checkpoint is a plain model's",
        certainty=Certainty.PROBABLE,
        advice=(
            Advice(
                "load the weights before the adapter is added",
                code=(
                    "model.load_state_dict(state_dict); model = peft.get_peft_model(model, config)"
                ),
            ),
            DIFF,
        ),
    ),
    KeyPattern(
        name="prefix-in-file",
        find=find_prefix_in_file,
        cause=(
            "the keys of the checkpoint have the prefix `{prefix}`, {origin}; the module's do not"
        ),
        certainty=Certainty.PROBABLE,
        advice=(
            Advice(
                "remove the prefix",
                code=(
                    "model.load_state_dict({{key.removeprefix({prefix:py}): value for key, value "
                    "in "
                    "state_dict.items()}})"
                ),
            ),
            MIGRATE,
        ),
    ),
    KeyPattern(
        name="prefix-in-module",
        find=find_prefix_in_module,
        cause=(
            "the module's keys have the prefix `{prefix}`: the checkpoint is the state of that part"
        ),
        certainty=Certainty.PROBABLE,
        advice=(
            Advice("load into that part", code="{target}.load_state_dict(state_dict)"),
            MIGRATE,
        ),
    ),
    KeyPattern(
        name="quantized-file",
        find=find_quantized_file,
        cause="the checkpoint has quantised weights (`{key}`), the model is a float one",
        certainty=Certainty.PROBABLE,
        advice=(
            Advice("to see which scheme it is", command="ckptool inspect {file:path}"),
            Advice("build the model with the library that quantised it, or load the float weights"),
        ),
    ),
    KeyPattern(
        name="gamma-beta",
        find=find_gamma_beta,
        cause="the checkpoint has the old names `gamma` and `beta` of weight and bias of LayerNorm",
        certainty=Certainty.CERTAIN,
        advice=(
            Advice(
                "rename them",
                code=(
                    'model.load_state_dict({{key.replace(".gamma", ".weight").replace(".beta", '
                    '".bias"): value for key, value in state_dict.items()}})'
                ),
            ),
            MIGRATE,
        ),
    ),
    KeyPattern(
        name="running-statistics",
        find=find_running_statistics,
        cause=(
            "the {side} has no running statistics (`{key}`): BatchNorm or InstanceNorm with "
            "another track_running_stats, another norm layer, or a converter that keeps parameters "
            "only"
        ),
        certainty=Certainty.PROBABLE,
        advice=(
            DIFF,
            Advice(
                "do not use strict=False: missing statistics stay at 0 and 1, and eval() is wrong"
            ),
        ),
    ),
    KeyPattern(
        name="batch-counters",
        find=find_batch_counters,
        cause=(
            "{count} `num_batches_tracked` of BatchNorm are not in the checkpoint: it was saved "
            "before torch 0.4.1, or without `_metadata`"
        ),
        certainty=Certainty.PROBABLE,
        advice=(
            Advice(
                "they count batches and do not change outputs in eval()",
                code="model.load_state_dict(state_dict, strict=False)",
            ),
            MIGRATE,
        ),
    ),
    KeyPattern(
        name="old-buffers",
        find=find_old_buffers,
        cause=(
            "the checkpoint has {count} of buffers (`{key}`) that the module computes by itself "
            "and "
            "no longer saves"
        ),
        certainty=Certainty.PROBABLE,
        advice=(
            Advice(
                "leave them out",
                code=(
                    "model.load_state_dict({{key: value for key, value in state_dict.items() if "
                    "not "
                    "key.endswith({code})}})"
                ),
            ),
            MIGRATE,
        ),
    ),
    KeyPattern(
        name="renamed-subtrees",
        find=find_renamed_subtrees,
        cause="modules were renamed: {renames}",
        certainty=Certainty.PROBABLE,
        advice=(
            Advice(
                "write a checkpoint with the new names",
                command="ckptool migrate {file:path} -o {result:sh} {module_options} {options}",
            ),
            Advice(
                "or rename them while loading",
                code=(
                    "names = {mapping}; model.load_state_dict({{next((new + key[len(old):] for "
                    "old, "
                    "new in names.items() if key.startswith(old)), key): value for key, value in "
                    "state_dict.items()}})"
                ),
            ),
            DIFF,
        ),
    ),
    KeyPattern(
        name="new-buffers",
        find=find_new_buffers,
        cause=(
            "the module registers a buffer (`{key}`) that the checkpoint does not have: it was "
            "saved before the buffer was added"
        ),
        certainty=Certainty.PROBABLE,
        advice=(
            Advice(
                "if the constructor's value is right, write a checkpoint with it",
                command="ckptool migrate {file:path} -o {result:sh} {module_options}",
            ),
            Advice("or register it with persistent=False, so that it is not saved"),
        ),
    ),
    KeyPattern(
        name="tied-head",
        find=find_tied_head,
        cause=(
            "`{key}` is tied to the embedding, and the checkpoint has one name of tied weights "
            "only, "
            "as safetensors stores them"
        ),
        certainty=Certainty.PROBABLE,
        advice=(
            Advice(
                "load it so that the tie is kept",
                code="safetensors.torch.load_model(model, {file:py})",
            ),
            MIGRATE,
        ),
    ),
    KeyPattern(
        name="extra-layers",
        find=find_extra_layers,
        cause=(
            "only the {side} has the layers {layers}: the model was built with another number of "
            "layers"
        ),
        certainty=Certainty.PROBABLE,
        advice=(
            DIFF,
            Advice("build the model with the number of layers of the checkpoint"),
        ),
    ),
    KeyPattern(
        name="other-head",
        find=find_head,
        cause="only the {side} has the head (`{key}`); the rest of the model matches",
        certainty=Certainty.PROBABLE,
        advice=(
            Advice(
                "to train a new head, load the rest and look at what was left out",
                code="print(model.load_state_dict(state_dict, strict=False))",
            ),
            DIFF,
        ),
    ),
    KeyPattern(
        name="only-unexpected",
        find=find_only_unexpected,
        cause=(
            "the checkpoint has keys that the module does not have ({keys}): it is of a larger "
            "model, or modules were removed from the code"
        ),
        certainty=Certainty.POSSIBLE,
        advice=(DIFF,),
    ),
    KeyPattern(
        name="only-missing",
        find=find_only_missing,
        cause=(
            "the module has keys that the checkpoint does not have ({keys}): modules were added "
            "to the code, or the checkpoint is of a smaller model"
        ),
        certainty=Certainty.POSSIBLE,
        advice=(DIFF,),
    ),
    KeyPattern(
        name="other-names",
        find=find_other,
        cause=(
            "the names differ (the module has {missing}, the checkpoint {unexpected}): another "
            "architecture, or another version of the code"
        ),
        certainty=Certainty.POSSIBLE,
        advice=(DIFF, INSPECT),
    ),
)
