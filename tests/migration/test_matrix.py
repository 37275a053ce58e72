"""Every source into every container, asked for in every way: plain torch says what came of it."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from migration.matrix_modules import NEW_CLASSES, OLD_CLASSES, make_trained_module
from migration.matrix_sources import SOURCES, Source, write_source
from migration.matrix_truth import check_result, check_same_value, load_object, read_tensors
from migration.states import SHM
from torch import nn

import ckptool
from ckptool.config import ProjectConfig
from ckptool.errors import PlanError
from ckptool.reports.migrate import MigrateReport

pytestmark = pytest.mark.matrix

MODULES = "migration.matrix_modules"
INPUTS = (f"{MODULES}:example_inputs",)
TARGETS = {".pth": {}, ".safetensors": {}, "folder": {"max_shard_size": 200}}
ASKED = {
    "bare": {},
    "old module": {"inputs": INPUTS, "old_module": OLD_CLASSES},
    "old module, cpu": {"inputs": INPUTS, "old_module": OLD_CLASSES, "device": "cpu"},
    "old module, simulated": {"inputs": INPUTS, "old_module": OLD_CLASSES, "device": "simulated"},
}


@dataclass(frozen=True)
class Case:
    """One file on disk, the module that it is of, and where results go."""

    source: Source
    path: Path
    old: nn.Module
    tied: bool
    folder: Path

    def migrate(self, suffix: str, name: str = "new", **options):
        """Migrate the file for the new module, and return the result's path and the report."""
        target = self.folder / (name if suffix == "folder" else f"{name}{suffix}")
        if old_classes := options.pop("old_module", None):
            options["old_module"] = f"{MODULES}:{old_classes[self.tied].__name__}"
        report = ckptool.migrate(
            self.path,
            target,
            module=f"{MODULES}:{NEW_CLASSES[self.tied].__name__}",
            config=ProjectConfig(),
            at=".".join(self.source.at) or None,
            **TARGETS[suffix],
            **options,
        )
        return target, report

    def reverse(self, target: Path, plan: Path) -> Path:
        """Undo the plan on a result, and return what comes of it, in the same container."""
        back = target.with_stem("back")
        ckptool.migrate(
            target,
            back,
            at=".".join(self.get_place(target)) or None,
            plan=plan,
            reverse=True,
            config=ProjectConfig(),
        )
        return back

    def needs_drop_extra(self, suffix: str) -> bool:
        """Whether the target cannot store what lies around the state."""
        return bool(self.source.others) and suffix != ".pth"

    def get_place(self, target: Path) -> tuple[str, ...]:
        """Return where the state_dict is in a result: a .pth keeps what lies around it."""
        return self.source.at if target.suffix == ".pth" else ()


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Small tensors: threads of torch only wait for each other, as tests run side by side."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=SOURCES)
def source_name(request) -> str:
    return request.param


@pytest.fixture(params=[False, True], ids=["", "tied"])
def case(request, source_name) -> Iterator[Case]:
    tied = request.param
    path, old = write_source(source_name, tied), make_trained_module(tied)
    with TemporaryDirectory(dir=SHM) as folder:
        yield Case(SOURCES[source_name], path, old, tied, Path(folder))


@pytest.mark.parametrize("suffix", TARGETS)
@pytest.mark.parametrize("asked", ASKED)
def test_the_result_is_the_old_state_with_the_mask(case, suffix, asked):
    drop_extra = case.needs_drop_extra(suffix)
    target, report = case.migrate(suffix, drop_extra=drop_extra, **ASKED[asked])
    assert (report.exit_code, report.verdict) == (0, "migrated: loads strictly")
    check_result(target, case.get_place(target), case.old, case.tied)
    check_surroundings(case, target, report)
    checks = {check.name: check for check in report.checks}
    assert checks["strict load"].result == "passed"
    if asked != "bare":
        device = "cpu" if asked.endswith("cpu") else "simulated cuda:0"
        levels = "load, forward" if device == "cpu" else "load, device, forward"
        levels += ", equality" if "old" in asked else ""
        assert checks["forward"].result == "passed"
        assert f"{levels} on {device}" in checks["forward"].reason
        assert ("bit for bit" in checks["forward"].reason) == ("old" in asked)


def check_surroundings(case: Case, target: Path, report: MigrateReport) -> None:
    """Assert that what lies around the state is in a .pth as it was, and is named elsewhere."""
    if target.suffix != ".pth":
        assert all(f"`{name}" in " ".join(report.notes) for name in case.source.others)
    elif case.source.others:
        before, after = load_object(case.path), torch.load(target, weights_only=True)
        assert [*after] == [*before]
        for name in case.source.others:
            check_same_value(after[name], before[name])


@pytest.mark.parametrize("suffix", [".safetensors", "folder"])
def test_what_a_container_cannot_hold_is_refused_by_name(case, suffix):
    if not case.source.others:
        pytest.skip("nothing lies around the state")
    with pytest.raises(PlanError, match="--drop-extra") as error:
        case.migrate(suffix)
    assert "\n" not in str(error.value)
    assert all(f"`{name}" in str(error.value) for name in case.source.others)
    assert list(case.folder.iterdir()) == []


def test_drop_extra_writes_the_state_dict_alone(case):
    target, _ = case.migrate(".pth", drop_extra=True)
    check_result(target, (), case.old, case.tied)


@pytest.mark.parametrize("suffix", TARGETS)
def test_dry_run_then_plan_then_reverse(case, suffix):
    plan, drop_extra = case.folder / "plan.toml", case.needs_drop_extra(suffix)
    _, planned = case.migrate(suffix, dry_run=True, save_plan=plan, drop_extra=drop_extra)
    assert [path.name for path in case.folder.iterdir()] == ["plan.toml"]
    target, report = case.migrate(suffix, plan=plan, drop_extra=drop_extra)
    assert report.steps == planned.steps
    check_result(target, case.get_place(target), case.old, case.tied)
    back = case.reverse(target, plan)
    before = {f"{case.source.prefix}{k}": t for k, t in case.old.state_dict().items()}
    after = read_tensors(back, case.get_place(back))
    left_out = before.keys() - after.keys()
    assert len(left_out) <= (case.tied and suffix != ".pth")
    check_same_value({k: after[k] for k in sorted(after)}, {k: before[k] for k in sorted(after)})


@pytest.mark.parametrize("suffix", TARGETS)
@pytest.mark.parametrize("source_name", ["plain", "nested", "DCP nested"], indirect=True)
def test_a_lossy_step_has_no_reverse(case, suffix):
    plan, drop_extra = case.folder / "plan.toml", case.needs_drop_extra(suffix)
    key = "norm.num_batches_tracked"
    target, _ = case.migrate(suffix, drop=[key], save_plan=plan, drop_extra=drop_extra)
    there = {*case.folder.iterdir()}
    with pytest.raises(PlanError) as error:
        case.reverse(target, plan)
    reason = f"drop `{key}`: its value is not in the output"
    assert str(error.value) == f"the plan has no reverse: {reason}"
    assert {*case.folder.iterdir()} == there
