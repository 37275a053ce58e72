"""Findings -> Attributions: which findings have one cause, and which of them says what to change.

One unregistered attribute is not saved, does not move, is not cast and fails the policy: that is
one problem with four findings. Findings that share an anchor (an entry of the state, the source
line that assigns it, a sub-tree of keys on one side only) have one cause; findings on the run as a
whole follow from the causes that can bring them about.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate, chain, count, islice
from typing import Final

from msgspec import Struct

from ckptool.folding import fold_by_pattern, fold_by_subtree, replace_layer_numbers
from ckptool.model import Constancy, natural_sort_key
from ckptool.rules.module_state import LOST_STATE
from ckptool.rules.registry import RULES, Finding, RuleFamily

_Anchor = tuple[str, ...]

MAX_CAUSES_OF_RULE: Final = 6
"""Maximum causes of one rule in one checkpoint; more are joined by sub-tree."""
_STATE_CODES: Final = (
    LOST_STATE
    | {"CK106", "CK109", "CK110", "CK111", "CK112", "CK701"}
    | {"CK206", "CK803"}  # what was a buffer, in the file or in the lock
)
"""Rules on one entry of a module's state; the attribute of the key is what is wrong."""
_WHOLE_FILE_CODES: Final = frozenset({"CK207", "CK216", "CK605"})
"""Rules whose findings on one file have one cause: other arguments, lost metadata, a converter."""
_CONTRACT_CODES: Final = frozenset({"CK801", "CK802", "CK804"})
"""Rules on keys that another release has not, or not so: a module changed, with all its keys."""
_GLOBAL_CODES: Final = frozenset({"CK301", "CK303", "CK855"})
"""Rules on one name in a pickle."""
_MISSING_CODES: Final = frozenset({"CK201", "CK202", "CK203"})
_LOAD_CODES: Final = (
    frozenset(code for code, rule in RULES.items() if rule.family is RuleFamily.LOADING)
    | {"CK112", "CK320", "CK501", "CK605"}
) - {"CK210"}
"""Rules that say why a load is not strict, or not of everything."""
_UNEXPECTED_CODES: Final = frozenset({"CK204", "CK205", "CK206", "CK214", "CK220"})
"""Rules on what the file has and the module has not: the parameters load all the same."""
_CAUSES_OF_LEVEL: Final[Mapping[str, frozenset[str]]] = {
    "load": _LOAD_CODES,
    "device": frozenset({"CK110"}),
    "forward": frozenset({"CK110"}),
    "round trip": LOST_STATE,
    "persistence": LOST_STATE,
}
"""Level of a verification that the policy requires -> rules that say why it fails."""
_RANKS: Final = {
    code: rank
    for rank, codes in enumerate(
        (
            ("CK803",),
            ("CK206", "CK605"),
            ("CK211",),
            ("CK103",),
            ("CK104", "CK102", "CK101", "CK108"),
            ("CK105", "CK112", "CK107"),
            ("CK109",),
            ("CK110",),
            ("CK111",),
            ("CK701",),
            ("CK106",),
            ("CK201", "CK302"),
            ("CK301", "CK303"),
            ("CK202", "CK203"),
            ("CK216", "CK855"),
            ("CK113",),
            ("CK210", "CK851", "CK856"),
        )
    )
    for code in codes
}
"""Code -> rank among the findings of one cause; the lowest says what is wrong."""
_MIDDLE_RANK: Final = 12
_MAX_DEPTH: Final = 32
"""Maximum ancestors of a key that are looked at."""


class Attribution(Struct, frozen=True):
    """The cause of one finding."""

    cause: str
    """Name of the cause: a rule, a key or sub-tree ("*" for layer numbers), a source line."""
    is_consequence: bool
    """Whether another finding of the same cause says what is wrong and what to change."""
    cause_count: int = 1
    """Number of causes that bring it about together; `cause` is the first of them."""


def attribute_findings(findings: Sequence[Finding]) -> tuple[Attribution, ...]:
    """Return the attribution of each finding; the names of two causes differ."""
    groups = _join_many_causes(findings, _group_by_anchor(findings))
    groups, cause_counts = _attach_consequences(findings, groups)
    attributions: dict[int, Attribution] = {}
    names: set[str] = set()
    for group in groups:
        main = min(group, key=lambda index: _rank_finding(findings[index]))
        main_code = findings[main].rule.code
        name = _name_cause([findings[i] for i in group if findings[i].rule.code == main_code])
        name = _make_unique(name, findings[main].path, names)
        names.add(name)
        for index in group:
            is_consequence = findings[index].rule.code != main_code
            count = cause_counts.get(index, 1)
            attributions[index] = Attribution(name, is_consequence, count)
    return tuple(attributions[index] for index in range(len(findings)))


def _rank_finding(finding: Finding) -> tuple[object, ...]:
    code = finding.rule.code
    return _RANKS.get(code, _MIDDLE_RANK), -finding.level, code, natural_sort_key(finding.key)


def _group_by_anchor(findings: Sequence[Finding]) -> list[list[int]]:
    """Return groups of indices of findings that share an anchor, directly or through others."""
    parents = [*range(len(findings))]

    def find_root(index: int) -> int:
        while parents[index] != index:
            parents[index] = parents[parents[index]]
            index = parents[index]
        return index

    owners: dict[_Anchor, int] = {}
    lost_subtrees = _collect_lost_subtrees(findings)
    pickled_modules = frozenset((f.path, f.key) for f in findings if f.rule.code == "CK302")
    rename_anchors = _collect_rename_anchors(findings)
    for index, finding in enumerate(findings):
        for anchor in (
            *_iter_anchors(finding),
            *_iter_version_anchors(finding, lost_subtrees),
            *_iter_pickle_anchors(finding, pickled_modules),
            *rename_anchors.get((finding.path, finding.key), ()),
        ):
            parents[find_root(index)] = find_root(owners.setdefault(anchor, index))
    groups: dict[int, list[int]] = {}
    for index in range(len(findings)):
        groups.setdefault(find_root(index), []).append(index)
    return list(groups.values())


def _iter_anchors(finding: Finding) -> Iterator[_Anchor]:
    code, path, pattern = finding.rule.code, finding.path, replace_layer_numbers(finding.key)
    if code in _STATE_CODES:
        yield "state", path, pattern.partition("[")[0] or code
        if location := finding.defined_at:
            yield "line", location
    elif code in _WHOLE_FILE_CODES:
        yield code, path
    elif code in _CONTRACT_CODES and "." in pattern:
        yield code, path, pattern.rpartition(".")[0]
    elif code in _GLOBAL_CODES:
        yield "global", path, finding.key
    else:
        yield code, path, pattern
    subtree = finding.facts.get("subtree")
    if isinstance(subtree, str):
        yield _anchor_subtree(finding, replace_layer_numbers(subtree))


def _anchor_subtree(finding: Finding, subtree: str) -> _Anchor:
    """Return the anchor of a key of `subtree`, of which the other side has nothing.

    Where it has siblings of the key, keys of one module are taken together; buffers, of which a
    converter drops all, in the whole file.
    """
    code, path = finding.rule.code, finding.path
    if subtree != replace_layer_numbers(finding.key):
        return "missing" if code in _MISSING_CODES else "unexpected", path, subtree
    if code == "CK202":
        return "CK605", path
    return (code, path) if code == "CK203" else (code, path, subtree.rpartition(".")[0])


def _collect_lost_subtrees(findings: Sequence[Finding]) -> frozenset[tuple[str, str]]:
    """Return (path, sub-tree) of all sub-trees that are missing as a whole."""
    return frozenset(
        (finding.path, replace_layer_numbers(str(finding.facts["subtree"])))
        for finding in findings
        if finding.rule.code in _MISSING_CODES and finding.facts["subtree"] != finding.key
    )


def _iter_version_anchors(
    finding: Finding, lost_subtrees: frozenset[tuple[str, str]]
) -> Iterator[_Anchor]:
    """Yield the anchor of the missing sub-tree that has the module without a version."""
    if finding.rule.code != "CK216":
        return
    for subtree in _iter_ancestors(replace_layer_numbers(finding.key)):
        if (finding.path, subtree) in lost_subtrees:
            yield "missing", finding.path, subtree
            return


def _collect_rename_anchors(
    findings: Sequence[Finding],
) -> dict[tuple[str, str], tuple[_Anchor, ...]]:
    """Return (path, key) -> the anchor of the rename that explains why the key is removed."""
    return {
        (finding.path, key): (("CK211", finding.path, replace_layer_numbers(finding.key)),)
        for finding in findings
        if finding.rule.code == "CK211"
        for key in finding.explained_keys
    }


def _iter_pickle_anchors(
    finding: Finding, pickled_modules: frozenset[tuple[str, str]]
) -> Iterator[_Anchor]:
    """Yield the anchor of the pickled module whose classes a finding on a pickle names.

    A dangerous name is a cause by itself, wherever it is.
    """
    if finding.rule.code == "CK302":
        yield "CK302", finding.path, finding.key
    if finding.rule.code not in _GLOBAL_CODES or _is_dangerous(finding):
        return
    for place in _iter_ancestors(str(finding.facts.get("at", ""))):
        if (finding.path, place) in pickled_modules:
            yield "CK302", finding.path, place
            return


def _is_dangerous(finding: Finding) -> bool:
    return str(finding.facts.get("safety", "")).startswith("dangerous")


def _iter_ancestors(key: str) -> Iterator[str]:
    """Yield "", "a", "a.b" and "a.b.c" for "a.b.c"."""
    yield ""
    yield from islice(accumulate(key.split("."), "{}.{}".format), _MAX_DEPTH)


def _join_many_causes(findings: Sequence[Finding], groups: list[list[int]]) -> list[list[int]]:
    """Join causes of one rule in one checkpoint by sub-tree, if they are many."""
    groups_by_rule: dict[tuple[str, str], list[tuple[str, list[int]]]] = {}
    for group in groups:
        main = min((findings[index] for index in group), key=_rank_finding)
        groups_by_rule.setdefault((main.rule.code, main.path), []).append((main.key, group))
    joined_groups: list[list[int]] = []
    for rule_groups in groups_by_rule.values():
        folded_groups = fold_by_pattern(
            (key, index, group) for index, (key, group) in enumerate(rule_groups)
        )
        for folded_group, _ in fold_by_subtree(folded_groups, MAX_CAUSES_OF_RULE):
            joined_groups.append([index for group in folded_group.items for index in group])
    return joined_groups


def _attach_consequences(
    findings: Sequence[Finding], groups: list[list[int]]
) -> tuple[list[list[int]], dict[int, int]]:
    """Move findings on a whole run to the worst cause that can bring them about.

    Returns:
        the groups, worst first; finding -> number of such causes, where there are several.
    """
    ordered_groups = sorted(
        groups, key=lambda group: min(_sort_by_level(findings[index]) for index in group)
    )
    kept_groups = [
        [index for index in group if _list_cause_codes(findings[index]) is None]
        for group in ordered_groups
    ]
    effects = [{_describe_effect(findings[index]) for index in group} for group in kept_groups]
    cause_counts: dict[int, int] = {}
    unexplained: dict[tuple[str, str], list[int]] = {}
    for index in (index for group in ordered_groups for index in group):
        finding = findings[index]
        codes = _list_cause_codes(finding)
        if codes is None:
            continue
        causes = [
            number
            for number, group_effects in enumerate(effects)
            if any(
                path == finding.path and code in codes and not (is_constant and _is_rerun(finding))
                for path, code, is_constant in group_effects
            )
        ]
        if causes:
            kept_groups[causes[0]].append(index)
            cause_counts[index] = len(causes)
        else:
            unexplained.setdefault((finding.path, finding.rule.code), []).append(index)
    return [*filter(None, kept_groups), *unexplained.values()], cause_counts


def _describe_effect(finding: Finding) -> tuple[str, str, bool]:
    """Return path, code, and whether it is on a value that the constructor makes again."""
    is_constant = finding.facts.get("constancy") == Constancy.CONSTANT
    return finding.path, finding.rule.code, is_constant


def _is_rerun(finding: Finding) -> bool:
    """Whether it is on a save and a load without a change, which a constant value survives."""
    return finding.rule.code == "CK113" or finding.key == "round trip"


def _sort_by_level(finding: Finding) -> tuple[object, ...]:
    return -finding.level, finding.rule.code, natural_sort_key(finding.key)


def _list_cause_codes(finding: Finding) -> frozenset[str] | None:
    """Return the rules that say why a finding on a whole run is there; None for another one."""
    code = finding.rule.code
    if code == "CK856":
        return _CAUSES_OF_LEVEL.get(finding.key, frozenset())
    if code == "CK113":
        return LOST_STATE
    if code == "CK210":
        return _LOAD_CODES - _UNEXPECTED_CODES
    return _LOAD_CODES if code == "CK851" else None


def _name_cause(findings: Sequence[Finding]) -> str:
    """Return the name of the cause by the findings that say what is wrong."""
    first = findings[0]
    groups = fold_by_pattern((finding.key, "", finding) for finding in findings)
    ((group, is_subtree), *others) = fold_by_subtree(groups, 1)
    key = "" if others else group.key
    location = first.defined_at
    if len(groups) > 1 and not is_subtree:
        key = ""
    return " ".join(filter(None, (first.rule.code, key, location and f"({location})")))


def _make_unique(name: str, path: str, names: set[str]) -> str:
    candidates = chain((name, f"{name} in {path}"), (f"{name} #{n}" for n in count(2)))
    return next(candidate for candidate in candidates if candidate not in names)
