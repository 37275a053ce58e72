"""KeyDifference -> PatternMatch: wrappers, prefixes and subtrees that the keys of one side have.

Each function looks for one cause, and says which keys it explains.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from itertools import takewhile
from typing import Final

from ckptool.compare.renames import WRAPPERS, PrefixRewrite, find_prefix_rewrite
from ckptool.model import TensorInfo
from ckptool.phrases import quote_python, quote_shell
from ckptool.rules.known_errors.key_lists import KeyDifference
from ckptool.rules.known_errors.known_error import Certainty
from ckptool.rules.known_errors.pattern_match import PatternMatch

_MAX_RENAMES: Final = 4
_MAX_DEPTH: Final = 5
"""Maximum segments of a prefix that is looked for."""
_WRAPPER_NAMES: Final = {
    "module": "DataParallel or DistributedDataParallel",
    "_orig_mod": "torch.compile",
    "_fsdp_wrapped_module": "FullyShardedDataParallel",
    "_checkpoint_wrapped_module": "activation checkpointing",
    "_forward_module": "a Lightning strategy",
}


def _find_rewrite(difference: KeyDifference) -> PrefixRewrite | None:
    """Return the prefix that differs; shapes are not known, so names alone decide."""
    missing, unexpected = map(_describe_keys, (difference.missing, difference.unexpected))
    return find_prefix_rewrite([*missing.values()], [*unexpected.values()], missing, unexpected)


def _describe_keys(keys: Collection[str]) -> dict[str, TensorInfo]:
    return {key: TensorInfo(key, (), "float32", (), 0, None) for key in keys}


def _match_rewrite(
    difference: KeyDifference, rewrite: PrefixRewrite, facts: Mapping[str, str]
) -> PatternMatch:
    # torch does not report a missing counter of BatchNorm where the versions are not known.
    counters = {
        key
        for key in difference.unexpected
        if key.endswith(".num_batches_tracked") and rewrite.rewrite_key(key) != key
    }
    keys = {*rewrite.key_map, *rewrite.key_map.values(), *counters}
    is_whole = len(keys) == len(difference.missing) + len(difference.unexpected)
    return PatternMatch(keys, facts, Certainty.CERTAIN if is_whole else None)


def find_wrapped_file(difference: KeyDifference) -> PatternMatch | None:
    if not difference.missing:
        return _match_wrapped_keys(difference.unexpected)
    rewrite = _find_rewrite(difference)
    if rewrite is None or not rewrite.removed_segments or rewrite.added_prefix:
        return None
    if not {*rewrite.removed_segments} <= {*WRAPPERS}:
        return None
    prefix = "".join(f"{segment}." for segment in rewrite.removed_segments)
    is_in_front = all(old == prefix + new for old, new in rewrite.key_map.items())
    facts = _describe_wrappers(rewrite.removed_segments, is_in_front=is_in_front)
    return _match_rewrite(difference, rewrite, facts)


def _match_wrapped_keys(keys: Sequence[str]) -> PatternMatch | None:
    """Match keys that all begin with wrappers, where the other side's keys are not given."""
    if not keys:
        return None
    segments = [*takewhile(WRAPPERS.__contains__, keys[0].split(".")[:-1])]
    while segments and not all(key.startswith(".".join(segments) + ".") for key in keys):
        segments.pop()
    if not segments:
        return None
    facts = _describe_wrappers(segments, is_in_front=True)
    return PatternMatch(frozenset(keys), facts, Certainty.CERTAIN)


def _describe_wrappers(segments: Sequence[str], *, is_in_front: bool) -> dict[str, str]:
    """Return the wrappers' names, and the code for a key without the segments that they add."""
    prefixes = [f"{segment}." for segment in segments]
    removals = "".join(f".removeprefix({quote_python(prefix)})" for prefix in prefixes)
    names = ", ".join(map(quote_python, segments))
    joined = f'".".join(s for s in key.split(".") if s not in {{{names}}})'
    return {
        "prefix": "` and `".join(prefixes),
        "wrapper": " and ".join(_WRAPPER_NAMES[segment] for segment in segments),
        "code": f"key{removals}" if is_in_front else joined,
    }


def find_wrapped_module(difference: KeyDifference) -> PatternMatch | None:
    rewrite = _find_rewrite(difference)
    wrapper = rewrite.added_prefix.rstrip(".") if rewrite is not None else ""
    if rewrite is None or rewrite.removed_segments or wrapper not in WRAPPERS:
        return None
    facts = {"prefix": f"{wrapper}.", "wrapper": _WRAPPER_NAMES[wrapper], "attribute": wrapper}
    return _match_rewrite(difference, rewrite, facts)


_PREFIX_ORIGINS: Final = {
    "model": "as a LightningModule or a larger model saves its part `model`",
    "base_model.model": "as a PEFT model saves it",
    "transformer": "as a model with a head saves its base model",
    "bert": "as a model with a head saves its base model",
    "roberta": "as a model with a head saves its base model",
    "backbone": "as a larger model saves its part `backbone`",
    "encoder": "as a larger model saves its part `encoder`",
}


def _describe_prefix(prefix: str) -> str:
    return _PREFIX_ORIGINS.get(prefix.rstrip("."), "as a larger module saves this part")


def find_prefix_in_file(difference: KeyDifference) -> PatternMatch | None:
    rewrite = _find_rewrite(difference)
    if rewrite is None or rewrite.added_prefix or len(rewrite.key_map) < _count_enough(difference):
        return None
    prefix = "".join(s for s in rewrite.removed_segments if s.endswith("."))
    if not prefix or len(rewrite.removed_segments) > 1:
        return None
    facts = {"prefix": prefix, "origin": _describe_prefix(prefix)}
    return _match_rewrite(difference, rewrite, facts)


def find_prefix_in_module(difference: KeyDifference) -> PatternMatch | None:
    rewrite = _find_rewrite(difference)
    if rewrite is None or rewrite.removed_segments or not rewrite.added_prefix:
        return None
    if len(rewrite.key_map) < _count_enough(difference):
        return None
    prefix = rewrite.added_prefix
    attribute = prefix.rstrip(".")
    is_path = all(segment.isidentifier() for segment in attribute.split("."))
    target = f"model.{attribute}" if is_path else f"model.get_submodule({quote_python(attribute)})"
    return _match_rewrite(difference, rewrite, {"prefix": prefix, "target": target})


def _count_enough(difference: KeyDifference) -> int:
    """Return how many keys have to agree: one pair of names of many may agree by chance."""
    smaller = min(len(difference.missing), len(difference.unexpected))
    return max(1, smaller // 2)


def find_renamed_subtrees(difference: KeyDifference) -> PatternMatch | None:
    """Find prefixes under which both sides have the same names, and nothing else has; else None."""
    missing, unexpected = map(_group_suffixes, (difference.missing, difference.unexpected))
    new_prefixes: dict[frozenset[str], list[str]] = {}
    for prefix, suffixes in missing.items():
        new_prefixes.setdefault(suffixes, []).append(prefix)
    old_counts = Counter(unexpected.values())
    renames: dict[str, str] = {}
    keys: set[str] = set()
    for old, suffixes in sorted(unexpected.items(), key=lambda entry: entry[0].count(".")):
        candidates = new_prefixes.get(suffixes, [])
        if len(candidates) != 1 or old_counts[suffixes] != 1 or f"{old}.{min(suffixes)}" in keys:
            continue
        renames[old] = candidates[0]
        keys |= {f"{p}.{suffix}" for p in (old, candidates[0]) for suffix in suffixes}
    if not renames:
        return None
    shown = dict([*renames.items()][:_MAX_RENAMES])
    names = ", ".join(f"`{old}.*` -> `{new}.*`" for old, new in shown.items())
    words = (quote_shell(f"{old}.*={new}.*") for old, new in shown.items())
    items = ", ".join(
        f"{quote_python(f'{o}.')}: {quote_python(f'{n}.')}" for o, n in renames.items()
    )
    return PatternMatch(
        keys,
        {
            "renames": names + (" and others" if len(renames) > len(shown) else ""),
            "options": " ".join(f"--rename {word}" for word in words),
            "mapping": "{" + items + "}",
        },
        Certainty.POSSIBLE if all(len(unexpected[old]) < 2 for old in renames) else None,
    )


def _group_suffixes(keys: Collection[str]) -> dict[str, frozenset[str]]:
    """Return prefix -> the rest of all keys that begin with it."""
    groups: dict[str, set[str]] = {}
    for key in keys:
        segments = key.split(".")
        for depth in range(1, min(len(segments), _MAX_DEPTH + 1)):
            groups.setdefault(".".join(segments[:depth]), set()).add(".".join(segments[depth:]))
    return {prefix: frozenset(suffixes) for prefix, suffixes in groups.items()}
