"""FindingReports -> ProblemsBlocks: a card for each cause."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import PurePath
from typing import Final

from msgspec.structs import replace

from ckptool.folding import FoldedItems, fold_by_pattern, fold_by_subtree, replace_layer_numbers
from ckptool.model import natural_sort_key
from ckptool.phrases import join_limited
from ckptool.render import RenderOptions
from ckptool.render.blocks import ProblemCard, ProblemLine, ProblemsBlock, format_times
from ckptool.reports.common import FindingReport
from ckptool.reports.problems import LEVELS, Problem, count_problems, group_by_cause

MAX_CARD_LINES: Final = 6
"""Maximum lines on what is wrong in a card; more are counted by sub-tree. -v shows all."""
MAX_LISTED: Final = 20
"""Maximum cards of one rule, and lines of a card whose keys are in no common sub-tree; the rest is
only counted. -v shows all."""
MAX_CONSEQUENCES: Final = 8
"""Maximum lines on what follows in a card; the rest is only counted. -v shows all."""
_LEVEL_NOUNS: Final = {"note": "a note", "warning": "a warning", "error": "an error"}
_NAME: Final = "\0"
"""Stands for a name while the rest of a sentence is changed; no printed text has it."""
_CODE_SPAN: Final = re.compile("`[^`]+`")


def build_problems_blocks(
    findings: Sequence[FindingReport], options: RenderOptions, *, multiple_checkpoints: bool
) -> Iterator[ProblemsBlock]:
    """Yield the problems that several checkpoints have, then those of each; the worst first."""
    groups: dict[str, list[tuple[Problem, ...]]] = {}
    paths = {finding.path for finding in findings}
    is_labelled = multiple_checkpoints or len(paths) > 1
    for equal_problems in _group_equal(group_by_cause(findings)):
        named = tuple(dict.fromkeys(path for p in equal_problems for path in p.paths))
        label = _label_paths(named, len(paths)) if is_labelled else ""
        groups.setdefault(label, []).append(equal_problems)
    shared = {
        label
        for label, (equal_problems, *_) in groups.items()
        if len({path for problem in equal_problems for path in problem.paths}) > 1
    }
    ranks = {label: min(_rank_level(p[0]) for p in equal) for label, equal in groups.items()}
    for label in sorted(groups, key=lambda t: (t not in shared, ranks[t], natural_sort_key(t))):
        cards = tuple(_iter_cards([_join_equal(problems) for problems in groups[label]], options))
        yield ProblemsBlock(label, count_problems([*chain(*groups[label])]), cards)


def _group_equal(problems: Iterable[Problem]) -> Iterable[tuple[Problem, ...]]:
    """Return the problems in groups that are told in the same words, of several checkpoints.

    A fix may name its own file. Of one checkpoint, each stays as it is: two findings may be about
    one key.
    """
    groups: dict[object, dict[tuple[str, ...], Problem]] = {}
    for number, problem in enumerate(problems):
        words = tuple(
            (f.code, f.level, f.key, f.message, _drop_file_name(f)) for f in problem.findings
        )
        is_repeated = problem.paths in groups.setdefault(words, {})
        groups.setdefault(number if is_repeated else words, {})[problem.paths] = problem
    return [tuple(problem_by_paths.values()) for problem_by_paths in groups.values()]


def _drop_file_name(finding: FindingReport) -> str:
    """Return the fix without the names of the file and of outputs that are named after it."""
    stem = PurePath(finding.path).stem
    fix = finding.fix.replace(finding.path, _NAME)
    return re.sub(rf"\b{re.escape(stem)}\b", _NAME, fix)


def _join_equal(problems: Sequence[Problem]) -> Problem:
    """Return the first of equal problems; a fix that names its own file says so."""
    first = problems[0]
    fixes = [tuple(finding.fix for finding in problem.main_findings) for problem in problems]
    if len(set(fixes)) == 1:
        return first
    findings = tuple(
        replace(f, fix=f"for {f.path}, and likewise for each: {f.fix}") for f in first.main_findings
    )
    return replace(first, main_findings=findings)


def _rank_level(problem: Problem) -> int:
    return LEVELS.index(problem.level)


def _iter_cards(problems: Sequence[Problem], options: RenderOptions) -> Iterator[ProblemCard]:
    """Yield a card for each problem; of those of one rule, the first, and one that counts more."""
    counts = Counter[tuple[str, str]]()
    names = {problem.main.code: problem.main.name for problem in problems}
    for problem in problems:
        rule = problem.level, problem.main.code
        counts[rule] += 1
        if options.verbosity > 0 or counts[rule] <= MAX_LISTED:
            yield build_card(problem, options)
    for (level, code), count in counts.items():
        if options.verbosity < 1 and count > MAX_LISTED:
            line = ProblemLine(_format_more(count - MAX_LISTED))
            yield ProblemCard(level, code, names[code], (line,), (), "")


def _format_more(count: int) -> str:
    return f"... and {count:,} more (-v shows all)"


def _label_paths(paths: Sequence[str], path_count: int) -> str:
    if len(paths) < 2:
        return paths[0]
    all_word = "all " if len(paths) == path_count else ""
    names = "" if all_word else f" ({paths[0]} and {len(paths) - 1} more)"
    return f"{all_word}{len(paths)} checkpoints{names}"


def build_card(problem: Problem, options: RenderOptions) -> ProblemCard:
    """Return the card of a problem; of many keys, only what holds for all of a line."""
    main_findings = problem.main_findings
    fixes = {finding.fix for finding in main_findings}
    has_same_fix = len(fixes) == 1
    lines = (
        [ProblemLine(f.message, "" if has_same_fix else f.fix) for f in main_findings]
        if options.verbosity > 0
        else [*_fold_lines(main_findings)]
    )
    is_each_fixed = not has_same_fix and all(line.fix for line in lines)
    return ProblemCard(
        level=problem.level,
        code=problem.main.code,
        name=problem.main.name,
        lines=tuple(lines),
        consequences=tuple(_iter_consequences(problem.consequences, options)),
        # Of several keys, that of the first: it is code or a command to be pasted, and a key
        # with "*" is none.
        fix="" if is_each_fixed else problem.main_findings[0].fix,
        escalation=_explain_escalation(problem),
        fixed_key="" if has_same_fix or is_each_fixed else problem.main_findings[0].key,
    )


def _explain_escalation(problem: Problem) -> str:
    """Return "a warning on its own, an error because of CK110"; "" if no consequence is worse."""
    own_level = min((finding.level for finding in problem.main_findings), key=LEVELS.index)
    if own_level == problem.level:
        return ""
    codes = [finding.code for finding in problem.consequences if finding.level == problem.level]
    nouns = f"{_LEVEL_NOUNS[own_level]} on its own, {_LEVEL_NOUNS[problem.level]}"
    return f"{nouns} because of {join_limited([*dict.fromkeys(codes)], 3)}"


def _fold_lines(findings: Sequence[FindingReport]) -> Iterator[ProblemLine]:
    groups = fold_by_pattern((f.key, _generalize(f.message, f), f) for f in findings)
    folded_groups = fold_by_subtree(groups, MAX_CARD_LINES)
    for group, is_subtree in folded_groups[:MAX_LISTED]:
        if is_subtree:
            first = group.items[0]
            texts = {finding.message.replace(f"`{finding.key}`", _NAME) for finding in group.items}
            text = texts.pop() if len(texts) == 1 else f"{first.name.replace('-', ' ')}: {_NAME}"
            times = format_times(group.items)
            yield ProblemLine(f"{text}{times}".replace(_NAME, f"`{group.key}`"))
        else:
            yield ProblemLine(_format_folded(group, group.items[0].message))
    if omitted_count := sum(len(group.items) for group, _ in folded_groups[MAX_LISTED:]):
        yield ProblemLine(_format_more(omitted_count))


def _format_folded(group: FoldedItems[FindingReport], text: str) -> str:
    """Return the text of a group's first finding, with the group's name for its key."""
    if len(group.items) == 1:
        return text
    key = group.items[0].key
    named = text.replace(key, _NAME) if key else text
    return f"{_generalize_spans(named)}{format_times(group.items)}".replace(_NAME, group.key)


def _generalize(text: str, finding: FindingReport) -> str:
    """Return `text` with the layer numbers of all keys in it replaced by "*"."""
    if "." in finding.key:
        text = text.replace(finding.key, replace_layer_numbers(finding.key))
    return _generalize_spans(text)


def _generalize_spans(text: str) -> str:
    return _CODE_SPAN.sub(lambda span: replace_layer_numbers(span[0]), text)


def _iter_consequences(
    consequences: Iterable[FindingReport], options: RenderOptions
) -> Iterator[str]:
    if options.verbosity > 0:
        yield from (
            f"{f.code} ({f.level}): {f.message}{_format_other_causes(f)}" for f in consequences
        )
        return
    by_rule: dict[tuple[str, str], list[FindingReport]] = {}
    for finding in consequences:
        by_rule.setdefault((finding.code, finding.level), []).append(finding)
    groups_by_rule = {
        rule: fold_by_pattern((f.key, _generalize(f.summary, f), f) for f in rule_findings)
        for rule, rule_findings in by_rule.items()
    }
    are_many = sum(map(len, groups_by_rule.values())) > MAX_CONSEQUENCES
    for (code, level), groups in groups_by_rule.items():
        others = _format_other_causes(groups[0].items[0])
        if are_many and len(groups) > 1:
            name = groups[0].items[0].name.replace("-", " ")
            yield f"{code} ({level}): {name}{format_times(by_rule[code, level])}{others}"
        else:
            for group in groups:
                yield f"{code} ({level}): {_format_folded(group, group.items[0].summary)}{others}"


def _format_other_causes(finding: FindingReport) -> str:
    others = finding.cause_count - 1
    if others < 1:
        return ""
    return f" (together with {'another problem' if others == 1 else f'{others:,} other problems'})"
