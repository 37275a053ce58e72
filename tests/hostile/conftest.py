"""A gate over one file, what torch does with it, and a folder in which no payload may run."""

import json
import subprocess
import sys
from pathlib import Path

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


@pytest.fixture(scope="session")
def torch_server():
    command = [sys.executable, str(Path(__file__).with_name("torch_server.py"))]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield process
        process.stdin.close()


@pytest.fixture
def ask_torch(torch_server, tmp_path_factory):
    """Return what comes of a file: {"loads", "ran", "values"}; `reach` as in torch_server.py."""

    def ask(path: Path, reach: str) -> dict:
        scratch = tmp_path_factory.mktemp("scratch")
        question = {"path": str(path.absolute()), "reach": reach, "folder": str(scratch)}
        torch_server.stdin.write(json.dumps(question) + "\n")
        torch_server.stdin.flush()
        return json.loads(torch_server.stdout.readline())

    return ask
