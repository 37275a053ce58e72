"""A script, run as it is and under `ckptool run`, and what both leave behind."""

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from paths import ROOT

SCRIPTS = Path(__file__).parent / "scripts"
_TIMES = re.compile(r"'train_\w*(runtime|per_second)': '[\d.]+'|W\d{4} [\d:.]+ \d+ ")
"""Times that a framework prints: they differ between any two runs."""


@dataclass(frozen=True)
class ScriptRun:
    code: int
    out: str
    err: str
    files: dict[str, bytes]
    report: dict | None = None

    def findings(self, code: str) -> list[dict]:
        return [finding for finding in self.report["findings"] if finding["code"] == code]

    @property
    def codes(self) -> list[str]:
        return sorted(f"{finding['code']} {finding['key']}" for finding in self.report["findings"])


def run_words(words, folder: Path, **environment) -> ScriptRun:
    folder.mkdir(exist_ok=True)
    done = subprocess.run(
        [str(word) for word in words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "0", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    files = {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }
    out, err = (_TIMES.sub("", text) for text in (done.stdout, done.stderr))
    return ScriptRun(done.returncode, out, err, files)


def run_traced(words, folder: Path, *options, **environment) -> ScriptRun:
    """Run a command under `ckptool run`; the report is in a file outside of its folder."""
    report = folder.parent / f"{folder.name}.json"
    command = [sys.executable, "-P", "-m", "ckptool", "run", "-o", report, *options, "--", *words]
    run = run_words(command, folder, **environment)
    content = json.loads(report.read_text()) if report.exists() else None
    return ScriptRun(run.code, run.out, run.err, run.files, content)


@pytest.fixture
def project(tmp_path):
    """A function that runs words both ways and returns both runs."""

    def run_both(*words, **environment):
        plain = run_words(words, tmp_path / "plain", **environment)
        traced = run_traced(words, tmp_path / "traced", **environment)
        return plain, traced

    return run_both
