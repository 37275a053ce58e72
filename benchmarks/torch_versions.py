"""Which versions of torch pass the quick tests: one environment and one row of a table for each.

    python benchmarks/torch_versions.py 2.6.0 2.14.1
    python benchmarks/torch_versions.py --lowest 2.14.1    # all else at its lowest declared version

Needs uv and a network; a build of torch for CUDA takes several GB, which are removed with the
environment (`--folder` keeps it). Exits 1 where a test failed. `docs/versions.md` has the table.
"""

import argparse
import datetime as dt
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
QUICK = "not process and not browser and not matrix"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("versions", nargs="+", help="versions of torch, as 2.6.0")
    parser.add_argument("--lowest", action="store_true", help="the rest at its lowest")
    parser.add_argument("--folder", type=Path, help="keep environments and output here")
    parser.add_argument("--uv", default="uv", help="the uv to use")
    options = parser.parse_args()
    rows = ["| date | torch | Python | other packages | quick tests |", "|---|---|---|---|---|"]
    print(*rows, sep="\n", flush=True)
    results = []
    for version in options.versions:
        with tempfile.TemporaryDirectory() as removed:
            folder = options.folder or Path(removed)
            python = make_environment(folder / f"torch-{version}", version, options)
            results.append(run_quick_tests(python, folder / f"torch-{version}.txt"))
        date, rest = dt.date.today(), "lowest declared" if options.lowest else "newest"  # noqa: DTZ011
        cells = (date, version, platform.python_version(), rest, results[-1])
        print("|", " | ".join(map(str, cells)), "|", flush=True)
    sys.exit(any("failed" in result or "error" in result for result in results))


def make_environment(folder: Path, torch_version: str, options: argparse.Namespace) -> Path:
    """Install ckptool, its development requirements and this torch; return the interpreter."""
    python = folder / "bin" / "python"
    resolution = "lowest-direct" if options.lowest else "highest"
    wanted = [f"torch=={torch_version}", "--editable", ".[dev]"]
    for step in (
        ["venv", "--quiet", "--python", sys.executable, folder],
        ["pip", "install", "--quiet", "--python", python, "--resolution", resolution, *wanted],
    ):
        subprocess.run([options.uv, *step], cwd=ROOT, check=True)
    return python


def run_quick_tests(python: Path, output: Path) -> str:
    """Return pytest's own count, as "3120 passed, 14 skipped"; `output` has all it printed."""
    words = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", QUICK]
    path = {"PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    with output.open("w") as written:
        environment = os.environ | path
        subprocess.run([python, *words], cwd=ROOT, env=environment, stdout=written, check=False)
    return output.read_text().splitlines()[-1].strip("= ").partition(" in ")[0]


if __name__ == "__main__":
    main()
