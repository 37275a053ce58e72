"""The fixtures, in pytest processes of their own, as a project would use them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT

pytestmark = pytest.mark.process


HEAD = """
from samples.attention import CausalAttentionWithBuffer as With
from samples.attention import CausalAttentionWithoutBuffers as Without
SIZES = dict(d_in=3, d_out=2, context_length=6)
"""


@pytest.fixture
def tests(tmp_path):
    """Run a file of tests with the plugin; return the exit code and what was printed."""

    def run(text: str, head: str = HEAD, *options: str) -> tuple[int, str]:
        (tmp_path / "test_it.py").write_text(head + text)
        # The plugin by its name: whether the entry point is installed is not what is tested.
        words = (sys.executable, "-m", "pytest", "-q", "-p", "ckptool.pytest_plugin")
        environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        done = subprocess.run(
            [*words, *options, "test_it.py"],
            cwd=tmp_path,
            env={**environment, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout + done.stderr

    return run


def test_the_reference_case(tests):
    code, out = tests(
        """
def test_buffered(assert_saveable):
    report = assert_saveable(With(**SIZES))
    assert report.unsaved == ()

def test_unbuffered(assert_saveable):
    assert_saveable(Without(**SIZES), kwargs=SIZES)

def test_by_name(assert_saveable):
    assert_saveable("samples.attention:CausalAttentionWithoutBuffers", kwargs=SIZES)
"""
    )
    assert code == 1, out
    assert "2 failed, 1 passed" in out
    assert "AssertionError: 1 tensor not in the state_dict" in out
    assert "CK110" in out
    assert "pytest_plugin.py" not in out


def test_inputs_levels_and_what_is_ignored(tests):
    code, out = tests(
        """
from samples.attention import example_inputs

def test_runs(assert_saveable):
    assert_saveable(With(**SIZES), inputs=example_inputs())

def test_ignored(assert_saveable):
    assert_saveable(Without(**SIZES), ignore=("CK110",))

def test_stricter(assert_saveable):
    assert_saveable(Without(**SIZES), ignore=("CK110",), fail_on="warning")

def test_no_such_level(assert_saveable):
    assert_saveable(With(**SIZES), fail_on="fatal")
"""
    )
    assert code == 1, out
    assert "2 failed, 2 passed" in out
    assert "warning CK101  `mask`" in out
    assert "fail_on='fatal': expected note, warning, error" in out


def test_a_checkpoint_before_and_after_its_migration(tests):
    code, out = tests(
        f"""
import ckptool

OLD = {str(ROOT / "samples" / "model.pth")!r}

def test_before(assert_checkpoint_compatible):
    assert_checkpoint_compatible(OLD, With(**SIZES))

def test_after(assert_checkpoint_compatible, tmp_path):
    from samples.attention import example_inputs

    new = tmp_path / "new.pth"
    ckptool.migrate(OLD, new, module="samples.attention:CausalAttentionWithBuffer", kwargs=SIZES)
    report = assert_checkpoint_compatible(new, With(**SIZES), inputs=example_inputs())
    assert report.verdict == "loads strictly"

def test_that_it_does_not_run(assert_checkpoint_compatible):
    from samples.attention import example_inputs

    assert_checkpoint_compatible(
        OLD, Without(**SIZES), inputs=example_inputs(), ignore=("CK110",)
    )
"""
    )
    assert code == 1, out
    assert "2 failed, 1 passed" in out
    assert "AssertionError: does not load: 1 missing" in out
    assert "AssertionError: failed at device, forward" in out


def test_torch_is_not_imported_where_no_fixture_is_called(tests):
    code, out = tests(
        """
import sys

def test_nothing(assert_saveable, assert_checkpoint_compatible):
    assert callable(assert_saveable)
    loaded = {"torch", "numpy", "ckptool.api", "msgspec"} & sys.modules.keys()
    assert loaded == set()
""",
        head="",
    )
    assert code == 0, out


def test_the_entry_point_leads_to_it():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["pytest11"] == {"ckptool": "ckptool.pytest_plugin"}
    assert Path(ROOT / "ckptool" / "pytest_plugin.py").is_file()


LOADS_AND_SAVES = """
import torch
from torch import load, save

def test_it(tmp_path):
    model = Without(**SIZES)
    model.mask *= 2
    save(model.state_dict(), tmp_path / "model.pth")
    Without(**SIZES).load_state_dict(load(tmp_path / "model.pth"))
"""


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ((), 0),
        (("--ckptool",), 0),
        (("--ckptool", "--ckptool-fail", "error"), 1),
        (("--ckptool-fail", "error", "-p", "xdist", "-n", "2"), 1),
    ],
)
def test_loads_and_saves_of_a_session_are_judged(tests, options, expected):
    code, out = tests(LOADS_AND_SAVES, HEAD, *options)
    assert code == expected, out
    assert "1 passed" in out
    is_traced = bool(options)
    assert ("ckptool: loads and saves" in out) is is_traced
    assert ("CK330" in out) is is_traced
    assert ("CK233" in out) is is_traced
