"""A gate over one file, and a folder in which no payload may leave its marker."""

import pytest
from click.testing import CliRunner
from hostile.pickles import MARKER

from ckptool.cli import main


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    assert not list(tmp_path.rglob(f"*{MARKER}*")), "a payload ran"


@pytest.fixture
def run_gate(folder):
    """Return (exit code, output) of `ckptool gate --no-values` with these words."""

    def run(*words: object) -> tuple[int, str]:
        result = CliRunner().invoke(main, ["gate", "--in-process", "--no-values", *map(str, words)])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, result.output

    return run
