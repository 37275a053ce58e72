"""The command, run in a process of its own, or within this one."""

import contextlib
import importlib
import os
import signal
import subprocess
import sys
import sysconfig
import tempfile
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from paths import ROOT

_TERMINAL = {"NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES", "GITHUB_STEP_SUMMARY"}
"""What the place where the tests run would change in what the command prints."""


LINEAR = ("-m", "torch.nn:Linear", "-k", "in_features=2", "-k", "out_features=3")
WITH_BUFFER = (
    *("-m", "samples.attention:CausalAttentionWithBuffer"),
    *("-k", "d_in=3", "-k", "d_out=2", "-k", "context_length=6"),
)
_MODULE_COMMANDS = {"audit", "diff", "gate", "lock", "migrate", "verify"}
_HEAVY_IMPORTS = """
import sys
from click.testing import CliRunner
from ckptool.cli import main
result = CliRunner().invoke(main, sys.argv[1:])
heavy = {"torch", "numpy", "safetensors", "ckptool.modules.build"}
print(result.exit_code, sorted(heavy & set(sys.modules)))
"""


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str
    """Standard error, but for the notices."""
    notices: str = ""
    """The lines that say which code and which arguments of a file are about to be used."""


_NOTICE_ENDS = (
    "(--no-config ignores it)\n",
    "(--no-config refuses it)\n",
    "(--no-file-kwargs refuses them)\n",
    "--loader torch uses load_state_dict)\n",
)


def _describe_run(code: int, out: str, err: str) -> Ran:
    lines = err.splitlines(keepends=True)
    notices = "".join(line for line in lines if line.endswith(_NOTICE_ENDS))
    return Ran(code, out, "".join(li for li in lines if not li.endswith(_NOTICE_ENDS)), notices)


def _environment(changes: dict[str, str]) -> dict[str, str]:
    home = {k: v for k, v in os.environ.items() if k not in _TERMINAL}
    found = os.pathsep.join([str(ROOT), *filter(None, [home.get("PYTHONPATH")])])
    return {**home, "PYTHONPATH": found, **changes}


def run_process(*words: object, cwd: Path = ROOT, **environment: str) -> Ran:
    """Run the command in a process of its own, from the repository's root unless told otherwise."""
    done = subprocess.run(
        [sys.executable, "-m", "ckptool", *map(str, words)],
        cwd=cwd,
        env=_environment(environment),
        capture_output=True,
        text=True,
        check=False,
    )
    return _describe_run(done.returncode, done.stdout, done.stderr)


def run_in_process(*words: object, cwd: Path = ROOT, **environment: str) -> Ran:
    """Run the command in this process, as if it were one of its own, and clean up behind it.

    The module of a command is run here, too: a process for it would take seconds.
    """
    from ckptool.cli import main

    exit_code: object = 0
    if words and words[0] in _MODULE_COMMANDS:
        words = (words[0], "--in-process", *words[1:])
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8", newline="") as out,
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="backslashreplace") as err,
        _as_in_a_process(cwd, _environment(environment)),
        _streams(out, err),
    ):
        try:
            main([str(word) for word in words], prog_name="ckptool")
        except SystemExit as system_exit:
            exit_code = system_exit.code
        except BaseException:  # noqa: BLE001 (as Python does with what nobody catches)
            traceback.print_exc()
            exit_code = 1
        texts = []
        for stream in (out, err):
            stream.seek(0)
            texts.append(stream.read())
    return _describe_run(exit_code if isinstance(exit_code, int) else 0, *texts)


@contextlib.contextmanager
def _streams(out, err) -> Iterator[None]:
    stdin = sys.stdin
    with (
        Path(os.devnull).open() as nothing,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        sys.stdin = nothing
        try:
            yield
        finally:
            sys.stdin = stdin


@contextlib.contextmanager
def _as_in_a_process(cwd: Path, environment: dict[str, str]) -> Iterator[None]:
    """Give folder, environment, paths, modules and warnings of a new process; restore the old."""
    before = {**os.environ}
    paths, modules = [*sys.path], {*sys.modules}
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with contextlib.chdir(cwd), warnings.catch_warnings():
        _default_warnings()
        os.environ.clear()
        os.environ.update(environment)
        named = [path for path in environment["PYTHONPATH"].split(os.pathsep) if path]
        ours = {str(ROOT), str(ROOT / "tests"), ""}
        sys.path[:] = [str(Path.cwd()), *named, *(path for path in paths if path not in ours)]
        importlib.invalidate_caches()
        try:
            yield
        finally:
            os.environ.clear()
            os.environ.update(before)
            sys.path[:] = paths
            for name in {*sys.modules} - modules:
                if _is_of_a_test(sys.modules[name]):
                    del sys.modules[name]
            for number, handler in handlers.items():
                signal.signal(number, handler)


def _default_warnings() -> None:
    """Filter and show warnings as Python does without options: pytest makes them errors."""
    warnings.resetwarnings()
    for category in (
        DeprecationWarning,
        PendingDeprecationWarning,
        ImportWarning,
        ResourceWarning,
    ):
        warnings.simplefilter("ignore", category)
    warnings.filterwarnings("default", category=DeprecationWarning, module="__main__")

    def show(message, category, filename, lineno, file=None, line=None) -> None:
        text = warnings.formatwarning(message, category, filename, lineno, line)
        sys.stderr.write(text)

    warnings.showwarning = show


def _is_of_a_test(module: object) -> bool:
    """Whether a module is a user's: not Python's, not an installed one, not of ckptool."""
    home = getattr(module, "__file__", None) or next(iter(getattr(module, "__path__", [])), None)
    if not isinstance(home, str) or "site-packages" in Path(home).parts:
        return False
    return not home.startswith((sysconfig.get_path("stdlib"), f"{ROOT / 'ckptool'}/"))


def run_and_list_heavy_imports(*words: object, cwd: Path = ROOT) -> str:
    """Return the exit code of a process that runs the command, and its slow imports."""
    done = subprocess.run(
        [sys.executable, "-c", _HEAVY_IMPORTS, *map(str, words)],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip() + done.stderr
