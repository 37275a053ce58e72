"""Migration errors -> hits: operations that a plan may not do (CK221, CK311).

`ckptool migrate` stops with these. `inspect` and `diff` do not report them: a value that
safetensors cannot hold is a problem only when the file is converted.
"""

from collections.abc import Iterator, Mapping
from typing import Final

from ckptool.errors import RenameRefusedError, UnsupportedValueError
from ckptool.phrases import pluralize, quote_python
from ckptool.rules.registry import Level, Rule, RuleHit, check, hit

_MAX_RENAMES: Final = 8
"""Renames that the step in a fix lists; of more, they are described."""


@check(
    RenameRefusedError,
    Rule(
        code="CK221",
        name="ambiguous-rename-refused",
        level=Level.ERROR,
        summary="`{key}` is not renamed to `{to}`",
        detail="{reason}",
        why=(
            "A rename of a whole family of keys (gamma to weight, beta to bias) also matches "
            "names that must stay. A key is renamed only if the module does not have it, and has "
            "the new key with the same shape."
        ),
        fix="{remedy}",
        general_advice=(
            "List the intended keys in the plan, one by one, or give a prefix that only they have."
        ),
        example=(
            "def renamed(key):\n"
            '    return key.replace("gamma", "weight")  # LayerScale.gamma as well'
        ),
    ),
)
def find_refused_renames(error: RenameRefusedError) -> Iterator[RuleHit]:
    yield hit(error.key, to=error.to, reason=error.reason, remedy=_advise_renames(error.fitting))


def _advise_renames(fitting: Mapping[str, str]) -> str:
    """Return the step of the plan that renames only the keys that fit."""
    if not fitting:
        return "Remove the step from the plan: none of the keys that it matches fits."
    if len(fitting) > _MAX_RENAMES:
        return "List the intended keys in the plan, or give a prefix that only they have."
    pairs = ", ".join(f"{quote_python(old)} = {quote_python(new)}" for old, new in fitting.items())
    count = pluralize(len(fitting), "key")
    step = f'{{ op = "rename", keys = {{ {pairs} }} }}'
    return f"To rename only the {count} that fit{'s' if len(fitting) == 1 else ''}: ops = [{step}]"


_CONVERSIONS: Final = {
    "sparse": "{}.to_dense()",
    "complex": "torch.view_as_real({})",
    "q": "{}.dequantize()",
}
"""How the reason of a refusal begins -> expression that safetensors stores."""


@check(
    UnsupportedValueError,
    Rule(
        code="CK311",
        name="safetensors-unsupported-value",
        level=Level.ERROR,
        summary="`{key}` cannot be written as {to}",
        detail="{reason}",
        why=(
            "safetensors stores plain tensors of a fixed list of dtypes: no sparse or quantised "
            "tensors, no complex128, no Python values. Dropping what it cannot store would "
            "change the model."
        ),
        fix=("Write a .pth (--to pth), or convert the tensor first: {code}"),
        general_advice=(
            "Write a .pth (--to pth), or convert the tensor first: to_dense(), dequantize(), "
            "torch.view_as_real(), or `cast` in a plan."
        ),
        example='save_file({"w": torch.eye(2).to_sparse()}, path)',
    ),
)
def find_unsupported_values(error: UnsupportedValueError) -> Iterator[RuleHit]:
    for key, reason in error.reasons.items():
        name = quote_python(key)
        method = next((m for words, m in _CONVERSIONS.items() if reason.startswith(words)), "")
        code = (
            f"state_dict[{name}] = {method.format(f'state_dict[{name}]')}"
            if method
            else f"state_dict[{name}] = ... of a dtype that safetensors has"
        )
        yield hit(key, to=error.to, reason=reason, code=code)
