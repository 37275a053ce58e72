"""PrefixRewrite -> the Python code that rewrites the keys of a state_dict."""

from collections.abc import Collection, Mapping

from ckptool.compare.renames import PrefixRewrite
from ckptool.phrases import quote_code, quote_python


def list_rewrite_steps(rewrite: PrefixRewrite) -> list[str]:
    """Return clauses on what is done to the file's keys: "`module.` is removed"."""
    removed = [quote_code(f"{segment.rstrip('.')}.") for segment in rewrite.removed_segments]
    steps = []
    if removed:
        steps.append(f"{' and '.join(removed)} {'is' if len(removed) == 1 else 'are'} removed")
    if rewrite.added_prefix:
        steps.append(f"{quote_code(rewrite.added_prefix)} is added in front")
    return steps


def format_rewrite_code(
    rewrite: PrefixRewrite, reshaped_keys: Mapping[str, str], dropped: Collection[str]
) -> str:
    """Return a dict comprehension, as source text, that rewrites the prefixes of a state_dict.

    A wrapper's segment is removed wherever it occurs, another prefix at the beginning only.
    """
    wrappers = [segment for segment in rewrite.removed_segments if not segment.endswith(".")]
    prefixes = [segment for segment in rewrite.removed_segments if segment.endswith(".")]
    key_code = "k"
    pairs = {**rewrite.key_map, **reshaped_keys}
    if len(wrappers) == 1 and all(
        old.removeprefix(f"{wrappers[0]}.") == rewrite.rewrite_key(old) for old in pairs
    ):
        wrappers, prefixes = [], [f"{wrappers[0]}."]
    if wrappers:
        removed_set = "{" + ", ".join(map(quote_python, wrappers)) + "}"
        key_code = f'".".join(s for s in k.split(".") if s not in {removed_set})'
    key_code += "".join(f".removeprefix({quote_python(prefix)})" for prefix in prefixes)
    if rewrite.added_prefix:
        key_code = f"{quote_python(rewrite.added_prefix)} + {key_code}"
    condition = " and ".join(f"k != {quote_python(key)}" for key in dropped)
    suffix = f" if {condition}" if condition else ""
    return f"{{{key_code}: v for k, v in state_dict.items(){suffix}}}"
