"""Migration errors -> hits: operations that a plan may not do (CK221, CK311).

`ckptool migrate` stops with these. `inspect` and `diff` do not report them: a value that
safetensors cannot hold is a problem only when the file is converted.
"""

from collections.abc import Iterator

from ckptool.errors import RenameRefusedError, UnsupportedValueError
from ckptool.rules.registry import Level, Rule, RuleHit, check, hit


@check(
    RenameRefusedError,
    Rule(
        code="CK221",
        name="ambiguous-rename-refused",
        level=Level.ERROR,
        summary="`{key}` is not renamed to `{to}`",
        detail="{reason}",
        why=(
            "A rename for a whole family of keys (gamma to weight, beta to bias) hits names that "
            "are meant as they are. A key is renamed only if the module does not have it, has the "
            "new one, and has the same shape there."
        ),
        fix=(
            "Name in the plan the keys that are meant, one by one, or a prefix that only they have."
        ),
        example=(
            "def renamed(key):\n"
            '    return key.replace("gamma", "weight")  # LayerScale.gamma as well'
        ),
    ),
)
def find_refused_renames(error: RenameRefusedError) -> Iterator[RuleHit]:
    yield hit(error.key, to=error.to, reason=error.reason)


@check(
    UnsupportedValueError,
    Rule(
        code="CK311",
        name="safetensors-unsupported-value",
        level=Level.ERROR,
        summary="`{key}` cannot be written as {to}",
        detail="{reason}",
        why=(
            "safetensors holds plain tensors of its own list of dtypes: nothing sparse, nothing"
            " quantised, no complex128, no Python values. Dropping what does not fit would change"
            " the model."
        ),
        fix=(
            "Write a .pth (--to pth), or convert the tensor first: to_dense(), dequantize(), "
            "torch.view_as_real(), or `cast` in a plan."
        ),
        example='save_file({"w": torch.eye(2).to_sparse()}, path)',
    ),
)
def find_unsupported_values(error: UnsupportedValueError) -> Iterator[RuleHit]:
    for key, reason in error.reasons.items():
        yield hit(key, to=error.to, reason=reason)
