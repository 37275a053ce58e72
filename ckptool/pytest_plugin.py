"""pytest fixtures for projects that save modules; torch is imported when one is called."""

import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from torch import nn

    from ckptool.policy import Policy
    from ckptool.reports.any_report import AnyReport
    from ckptool.reports.audit import AuditReport
    from ckptool.reports.diff import DiffModuleReport
    from ckptool.reports.run import RunReport

_COLUMNS = 100
_FOLDER_VARIABLE = "CKPTOOL_PYTEST_TRACE"
"""Environment variable that tells xdist's workers where records go."""


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("ckptool", "loads and saves of PyTorch modules")
    group.addoption(
        "--ckptool",
        action="store_true",
        help="Judge every load and save of the session, and report what was lost.",
    )
    group.addoption(
        "--ckptool-fail",
        choices=("error", "warning", "note"),
        help="With --ckptool: fail the session if a finding has at least this level.",
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--ckptool") or config.getoption("--ckptool-fail"):
        config.pluginmanager.register(_SessionTrace(config), "ckptool-session-trace")


class _SessionTrace:
    """Traces a session with its xdist workers, and prints the report."""

    def __init__(self, config: pytest.Config) -> None:
        self._fail_on: str | None = config.getoption("--ckptool-fail")
        self._is_worker = hasattr(config, "workerinput")
        self._report: RunReport | None = None
        self._stack = ExitStack()
        from ckptool.tracing.process_trace import trace_process
        from ckptool.tracing.record_files import RecordWriter

        if not self._is_worker:
            os.environ[_FOLDER_VARIABLE] = self._stack.enter_context(
                TemporaryDirectory(prefix="ckptool-pytest-")
            )
        self._folder = os.environ[_FOLDER_VARIABLE]
        self._stack.enter_context(trace_process(RecordWriter(self._folder)))

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self._is_worker:
            return
        from ckptool.commands.run import judge_records
        from ckptool.tracing.record_files import read_records

        records = tuple(read_records(Path(self._folder)))
        policy = _build_policy((), self._fail_on or "error")
        self._report = judge_records(records, policy, fails_on_findings=self._fail_on is not None)
        if self._report.exit_code and not session.exitstatus:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self._report is None:
            return
        from ckptool.render import RenderOptions, render

        terminalreporter.section("ckptool: loads and saves")
        text = render("table", self._report, RenderOptions(width=_COLUMNS))
        terminalreporter.write_line(text)

    def pytest_unconfigure(self) -> None:
        self._stack.close()


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
