"""Known errors of load_state_dict() and of loaders that report keys."""

import re
from collections.abc import Iterator
from typing import Final

from ckptool.rules.known_errors.key_lists import parse_key_difference
from ckptool.rules.known_errors.key_patterns import DIFF, INSPECT, explain_keys
from ckptool.rules.known_errors.known_error import (
    Advice,
    Certainty,
    ErrorFacts,
    Explanation,
    KnownError,
)
from ckptool.rules.known_errors.shape_patterns import explain_shapes


def _find_key_causes(match: re.Match[str], facts: ErrorFacts) -> Iterator[Explanation]:
    difference = parse_key_difference(match[0])
    yield from explain_keys(difference, facts)
    yield from explain_shapes(difference, facts)


_MAX_KEYS_CHARS: Final = 2_000_000
"""Characters of lists of keys."""
_LINES: Final = {
    "missing-keys": "Missing key(s) in state_dict:",
    "unexpected-keys": "Unexpected key(s) in state_dict:",
    "size-mismatch": "size mismatch for ",
}
"""Name -> beginning of a line in the message of load_state_dict, in the order of the lines."""


def _build_line_errors() -> Iterator[KnownError]:
    """Yield the errors of a text that begins with a line of the message, and not with its head."""
    names = ["load-state-dict", "incompatible-keys"]
    for name, beginning in _LINES.items():
        yield KnownError(
            name=name,
            marker=beginning,
            pattern=rf"{re.escape(beginning)}.{{0,{_MAX_KEYS_CHARS}}}",
            cause="",
            certainty=Certainty.PROBABLE,
            advice=(),
            find=_find_key_causes,
            max_chars=_MAX_KEYS_CHARS,
            part_of=tuple(names),
        )
        names.append(name)


STATE_DICT_ERRORS: Final = (
    KnownError(
        name="load-state-dict",
        marker="Error(s) in loading state_dict for",
        pattern=(
            r"Error\(s\) in loading state_dict for [\w.\[\]]{1,200}:.{0,400}?"
            r"(?:Missing key\(s\) in state_dict: ?[\"']|Unexpected key\(s\) in state_dict: ?[\"']"
            r"|size mismatch for ).{0,2000000}"
        ),
        cause="",
        certainty=Certainty.PROBABLE,
        advice=(),
        find=_find_key_causes,
        max_chars=_MAX_KEYS_CHARS,
    ),
    KnownError(
        name="incompatible-keys",
        marker="IncompatibleKeys(missing_keys=[",
        pattern=(
            r"IncompatibleKeys\(missing_keys=\[(?=[^\]]{0,1000000}\], unexpected_keys=\[)"
            r"(?!\], unexpected_keys=\[\]).{0,2000000}"
        ),
        cause="",
        certainty=Certainty.PROBABLE,
        advice=(),
        find=_find_key_causes,
        max_chars=_MAX_KEYS_CHARS,
    ),
    *_build_line_errors(),
    KnownError(
        name="not-a-mapping",
        marker="Expected state_dict to be dict-like, got",
        pattern=r"dict-like, got <class '(?P<type>[\w.]{1,200})'>",
        cause="load_state_dict() was given a {type} instead of a state_dict",
        certainty=Certainty.CERTAIN,
        advice=(
            Advice(
                "pass the state_dict: a pickled module has it as a method, with parentheses",
                code="model.load_state_dict(loaded.state_dict())",
            ),
            INSPECT,
        ),
    ),
    KnownError(
        name="not-a-tensor",
        marker="expected torch.Tensor or Tensor-like object from checkpoint but received",
        pattern=(
            r"parameter named \"(?P<key>[^\"]{1,400})\", expected torch.Tensor or Tensor-like "
            r"object"
            r" from checkpoint but received <?(?:class )?'?(?P<type>[\w.]{1,200})"
        ),
        cause="`{key}` of the checkpoint is a {type}, not a tensor",
        certainty=Certainty.CERTAIN,
        advice=(
            Advice(
                "write the arrays as tensors",
                command="ckptool convert {file:path} -o {safetensors:sh}",
            ),
            INSPECT,
        ),
    ),
    KnownError(
        name="meta-parameter-not-loaded",
        marker="copying from a non-meta parameter in the checkpoint to a meta parameter",
        cause=(
            "the model is on the meta device, so that load_state_dict() copies nothing: its "
            "parameters have no memory"
        ),
        certainty=Certainty.CERTAIN,
        advice=(
            Advice(
                "use the tensors of the checkpoint as the parameters",
                code="model.load_state_dict(state_dict, assign=True)",
            ),
        ),
    ),
    KnownError(
        name="transformers-newly-initialized",
        marker="were not initialized from the model checkpoint at",
        pattern=(
            r"Some weights of (?P<model>\w{1,200}) were not initialized from the model checkpoint "
            r"at"
            r" (?P<name>\S{1,300}) and are newly initialized(?: because the shapes did not match)?:"
            r" ?(?P<keys>.{1,300})"
        ),
        cause=(
            "{model} has weights that `{name}` does not have: they are randomly initialised "
            "({keys})"
        ),
        certainty=Certainty.CERTAIN,
        advice=(
            Advice("a new head is expected to be trained; any other key is a different class"),
            Advice("to see all keys", command="ckptool diff MODEL_FOLDER"),
        ),
    ),
    KnownError(
        name="transformers-not-used",
        marker="were not used when initializing",
        pattern=(
            r"Some weights of the model checkpoint at (?P<name>\S{1,300}) were not used when"
            r" initializing (?P<model>\w{1,200}):? ?(?P<keys>.{1,300})"
        ),
        cause="`{name}` has weights that {model} does not have: they are ignored ({keys})",
        certainty=Certainty.CERTAIN,
        advice=(
            Advice("a head of another task is expected; any other key is a different class"),
            Advice("to see all keys", command="ckptool diff MODEL_FOLDER"),
        ),
    ),
    KnownError(
        name="transformers-load-report",
        marker="LOAD REPORT",
        pattern=(
            r"(?P<model>\w{1,200}) LOAD REPORT from: (?P<name>\S{1,300})(?P<rest>.{0,4000}?"
            r"(?P<status>MISSING|MISMATCH|UNEXPECTED|CONVERSION).{0,200})"
        ),
        cause=(
            "not all of `{name}` fits {model}: the report has a key that is {status}; missing and "
            "mismatched ones are randomly initialised, unexpected ones are ignored"
        ),
        certainty=Certainty.CERTAIN,
        advice=(Advice("to see why", command="ckptool diff MODEL_FOLDER"),),
    ),
    KnownError(
        name="transformers-ignored-mismatch",
        marker="You should probably TRAIN this model on a down-stream task",
        other_contexts=("were not initialized from the model checkpoint at", "LOAD REPORT"),
        cause="weights of the model are not in the checkpoint and are randomly initialised",
        certainty=Certainty.CERTAIN,
        advice=(Advice("to see which", command="ckptool diff MODEL_FOLDER"),),
    ),
    KnownError(
        name="tensor-shapes-in-place",
        marker="While copying the parameter named",
        pattern=(
            r"While copying the parameter named \"(?P<key>[^\"]{1,400})\", whose dimensions in the"
            r" model are (?P<new>torch\.Size\(\[[\d, ]{0,80}\]\)) and whose dimensions in the"
            r" checkpoint are (?P<old>torch\.Size\(\[[\d, ]{0,80}\]\)), an exception occurred"
            r"(?!.{0,8}Cannot copy out of meta) ?:? ?\(?['\"]?"
            r"(?P<reason>.{0,300}?)(?:['\"]?,?\)\.|$)"
        ),
        cause="copying `{key}` failed: {reason}",
        certainty=Certainty.CERTAIN,
        advice=(DIFF,),
    ),
)
