"""FixReport -> the edit that repairs a finding, for formats that can carry one."""

from collections import defaultdict
from collections.abc import Mapping
from typing import TYPE_CHECKING

from msgspec import Struct

from ckptool.reports.common import FindingReport
from ckptool.reports.fix import FixReport, SourceEditReport

if TYPE_CHECKING:
    from ckptool.reports.any_report import AnyReport


class SourceFixes(Struct, frozen=True):
    """Edits by the rule, the key and the file of the findings that they repair."""

    edits: Mapping[tuple[str, str, str], list[SourceEditReport]]

    def find_edit(self, finding: FindingReport) -> SourceEditReport | None:
        """Return the edit of a finding; None without one, or where several classes may be meant."""
        candidates = self.edits.get((finding.code, finding.key, _get_file(finding.where)), [])
        exact = [edit for edit in candidates if edit.where == finding.where]
        matches = exact or candidates
        return matches[0] if len(matches) == 1 else None


def index_fixes(report: "AnyReport") -> SourceFixes:
    """Return the edits of a report of `fix` that are not written; none of any other report."""
    edits: dict[tuple[str, str, str], list[SourceEditReport]] = defaultdict(list)
    if isinstance(report, FixReport) and not report.is_written:
        for edit in report.edits:
            for key in edit.keys:
                for code in edit.codes:
                    edits[code, key, _get_file(edit.where)].append(edit)
    return SourceFixes(edits)


def _get_file(where: str) -> str:
    return where.rpartition(":")[0]
