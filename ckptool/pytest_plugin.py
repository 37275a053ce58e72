"""pytest fixtures for projects that save modules; torch is imported when one is called."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from torch import nn

    from ckptool.policy import Policy
    from ckptool.reports.any_report import AnyReport
    from ckptool.reports.audit import AuditReport
    from ckptool.reports.diff import DiffModuleReport

_COLUMNS = 100


class AssertSaveable:
    """Callable that the fixture `assert_saveable` returns."""

    def __call__(
        self,
        module: "str | nn.Module | Callable[..., nn.Module]",
        *,
        inputs: object = None,
        kwargs: Mapping[str, object] | None = None,
        fresh: "Callable[[], nn.Module] | None" = None,
        ignore: tuple[str, ...] = (),
        fail_on: str = "error",
    ) -> "AuditReport":
        """Fail unless the state_dict holds all state that construction does not restore."""
        __tracebackhide__ = True
        from ckptool import api
        from ckptool.reports.audit import AuditReport

        policy = _build_policy(ignore, fail_on)
        report = api.audit(module, kwargs=kwargs, inputs=inputs, fresh=fresh, policy=policy)
        _require_passed(report)
        assert isinstance(report, AuditReport)
        return report


class AssertCheckpointCompatible:
    """Callable that the fixture `assert_checkpoint_compatible` returns."""

    def __call__(
        self,
        path: str | Path,
        module: "str | nn.Module | Callable[..., nn.Module]",
        *,
        kwargs: Mapping[str, object] | None = None,
        fresh: "Callable[[], nn.Module] | None" = None,
        at: str | None = None,
        inputs: object = None,
        ignore: tuple[str, ...] = (),
        fail_on: str = "error",
    ) -> "DiffModuleReport":
        """Fail unless the module loads the checkpoint strictly and, with `inputs`, forward runs."""
        __tracebackhide__ = True
        from ckptool import api
        from ckptool.reports.diff import DiffModuleReport

        policy = _build_policy(ignore, fail_on)
        diff_report = api.diff(
            path, module=module, kwargs=kwargs, fresh=fresh, at=at, policy=policy
        )
        assert isinstance(diff_report, DiffModuleReport)
        _require_passed(diff_report)
        if inputs is not None:
            verify_report = api.verify(path, module=module, kwargs=kwargs, at=at, inputs=inputs,
                              policy=policy)  # fmt: skip
            _require_passed(verify_report)
        return diff_report


@pytest.fixture(scope="session")
def assert_saveable() -> AssertSaveable:
    """Fail unless the state_dict holds all state that construction does not restore.

    `assert_saveable(model)` or `assert_saveable("package.module:Name", kwargs={...})`; with
    `inputs` the module is run, saved, loaded and run again as well.
    """
    return AssertSaveable()


@pytest.fixture(scope="session")
def assert_checkpoint_compatible() -> AssertCheckpointCompatible:
    """Fail unless the module loads the checkpoint strictly.

    `assert_checkpoint_compatible("old.pth", model)`; with `inputs` forward also runs with the
    loaded weights, on CUDA or a simulated device.
    """
    return AssertCheckpointCompatible()


def _build_policy(ignore: tuple[str, ...], fail_on: str) -> "Policy":
    from ckptool.errors import UsageError
    from ckptool.policy import LEVELS, Policy

    if fail_on not in LEVELS:
        raise UsageError(f"fail_on={fail_on!r}: expected {', '.join(LEVELS)}")
    return Policy(ignore=ignore, fail_on=LEVELS[fail_on])


def _require_passed(report: "AnyReport") -> None:
    """Raise AssertionError with the text of the report, unless it passed."""
    __tracebackhide__ = True
    if report.exit_code:
        from ckptool.render import RenderOptions, render

        raise AssertionError(render("table", report, RenderOptions(width=_COLUMNS)))
