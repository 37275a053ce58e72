"""FindingReports -> ProblemsBlocks: a card for each cause."""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from ckptool.folding import FoldedItems, fold_by_pattern, fold_by_subtree, replace_layer_numbers
from ckptool.model import natural_sort_key
from ckptool.render import RenderOptions
from ckptool.render.blocks import ProblemCard, ProblemLine, ProblemsBlock, format_times
from ckptool.reports.common import FindingReport
from ckptool.reports.problems import Problem, count_problems, group_by_cause

MAX_CARD_LINES: Final = 6
"""Maximum lines on what is wrong in a card; more are counted by sub-tree. -v shows all."""
MAX_CONSEQUENCES: Final = 8
"""Maximum lines on what follows in a card; the rest is only counted. -v shows all."""
_CODE_SPAN: Final = re.compile("`[^`]+`")


def build_problems_blocks(
    findings: Sequence[FindingReport], options: RenderOptions, *, multiple_checkpoints: bool
) -> Iterator[ProblemsBlock]:
    """Yield the problems that several checkpoints have, then those of each checkpoint."""
    groups: dict[str, list[Problem]] = {}
    paths = {finding.path for finding in findings}
    is_labelled = multiple_checkpoints or len(paths) > 1
    for problem in group_by_cause(findings):
        label = _label_paths(problem.paths, len(paths)) if is_labelled else ""
        groups.setdefault(label, []).append(problem)
    shared = {label for label, problems in groups.items() if len(problems[0].paths) > 1}
    for label in sorted(groups, key=lambda text: (text not in shared, natural_sort_key(text))):
        cards = tuple(build_card(problem, options) for problem in groups[label])
        yield ProblemsBlock(label, count_problems(groups[label]), cards)


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
        fix="" if is_each_fixed else _format_shared_fix(main_findings),
    )


def _fold_lines(findings: Sequence[FindingReport]) -> Iterator[ProblemLine]:
    groups = fold_by_pattern((f.key, _generalize(f.message, f), f) for f in findings)
    for group, is_subtree in fold_by_subtree(groups, MAX_CARD_LINES):
        if is_subtree:
            rule_name = group.items[0].name.replace("-", " ")
            yield ProblemLine(f"{rule_name}: `{group.key}`{format_times(group.items)}")
        else:
            yield ProblemLine(_format_folded(group, group.items[0].message))


def _format_folded(group: FoldedItems[FindingReport], text: str) -> str:
    """Return the message of a group, with the name of the group for its keys."""
    if len(group.items) == 1:
        return text
    return f"{_generalize(text, group.items[0])}{format_times(group.items)}"


def _generalize(text: str, finding: FindingReport) -> str:
    """Return `text` with the layer numbers of all keys in it replaced by "*"."""
    if "." in finding.key:
        text = text.replace(finding.key, replace_layer_numbers(finding.key))
    return _CODE_SPAN.sub(lambda span: replace_layer_numbers(span[0]), text)


def _format_shared_fix(findings: Sequence[FindingReport]) -> str:
    """Return the fix of all findings, or that of the first, named as one.

    A fix that names its key is code or a command to be pasted: a key with "*" is none.
    """
    first = findings[0]
    if all(finding.fix == first.fix for finding in findings):
        return first.fix
    return f"of `{first.key}`, for example: {first.fix} (-v shows all)"


def _iter_consequences(
    consequences: Iterable[FindingReport], options: RenderOptions
) -> Iterator[str]:
    if options.verbosity > 0:
        yield from (
            f"{f.code} ({f.level}): {f.message}{_format_other_causes(f)}" for f in consequences
        )
        return
    groups: dict[tuple[str, str, str], list[FindingReport]] = {}
    for finding in consequences:
        text = _generalize(finding.summary, finding)
        groups.setdefault((finding.code, finding.level, text), []).append(finding)
    folded = _fold_many_consequences(groups) if len(groups) > MAX_CONSEQUENCES else groups
    for (code, level, text), findings in folded.items():
        message = findings[0].summary if len(findings) == 1 else f"{text}{format_times(findings)}"
        yield f"{code} ({level}): {message}{_format_other_causes(findings[0])}"


def _fold_many_consequences(
    groups: dict[tuple[str, str, str], list[FindingReport]],
) -> dict[tuple[str, str, str], list[FindingReport]]:
    """Return the groups by rule and level, each by its rule's name."""
    folded: dict[tuple[str, str, str], list[FindingReport]] = {}
    for (code, level, text), findings in groups.items():
        is_single = sum(key[:2] == (code, level) for key in groups) == 1
        name = text if is_single else findings[0].name.replace("-", " ")
        folded.setdefault((code, level, name), []).extend(findings)
    return folded


def _format_other_causes(finding: FindingReport) -> str:
    others = finding.cause_count - 1
    if others < 1:
        return ""
    return f" (together with {'another problem' if others == 1 else f'{others:,} other problems'})"
