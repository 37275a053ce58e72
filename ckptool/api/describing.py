"""Checkpoint files -> InspectReport: tensors, entries and issues, without executing anything."""

from collections.abc import Sequence

from ckptool import report
from ckptool.api.target import PathLike, opened
from ckptool.errors import ReadError
from ckptool.formats.limits import DEFAULT, Limits
from ckptool.model import Checkpoint
from ckptool.policy import Policy, judge
from ckptool.reporting.reading import inspected
from ckptool.rules import run
from ckptool.rules.registry import in_order
from ckptool.valued import Valued, valued


def inspect(
    paths: PathLike | Sequence[PathLike],
    *,
    values: bool = False,
    policy: Policy | None = None,
    limits: Limits = DEFAULT,
    pictures: bool = False,
) -> report.InspectReport:
    """Describe the contents of checkpoints without loading or executing anything.

    With `values`, also compute statistics and apply the rules CK4xx: this reads whole files and
    needs torch. A path that cannot be read is reported in `errors`; the others are still described.
    With `pictures`, read the values of small masks, for drawing.
    """
    looked: list[tuple[Checkpoint, tuple[Valued, ...]]] = []
    errors: list[str] = []
    for path in [paths] if isinstance(paths, PathLike) else paths:
        try:
            checkpoint = opened(path, limits)
            looked.append((checkpoint, (valued(checkpoint),) if values else ()))
        except ReadError as error:
            errors.append(str(error))
    found = in_order(f for one, numbers in looked for f in run([one, *numbers], one.path))
    unseen = tuple(s for _, numbers in looked for one in numbers for s in one.skipped)
    checkpoints = tuple(one for one, _ in looked)
    said = inspected(checkpoints, judge(found, policy or Policy()), tuple(errors), unseen)
    if not pictures:
        return said
    from ckptool.api.drawing import draw_checkpoints

    return draw_checkpoints(said, checkpoints)
