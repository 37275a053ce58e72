"""A marker in a test's helper file -> "file:line", as a report shows it."""

from pathlib import Path

from paths import ROOT

MODULES = Path(__file__).with_name("modules_for_tests.py")


def marked(name: str, file: Path = MODULES) -> str:
    """Return the place of the only line that ends in `#: name`."""
    lines = file.read_text().splitlines()
    found = [n for n, line in enumerate(lines, 1) if line.endswith(f"#: {name}")]
    assert len(found) == 1, name
    return f"{file.relative_to(ROOT).as_posix()}:{found[0]}"
