"""A marker in a test's helper file -> "file:line", as a report shows it."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
ZOO = Path(__file__).with_name("zoo.py")


def marked(name: str, file: Path = ZOO) -> str:
    """Return the place of the only line that ends in `#: name`."""
    lines = file.read_text().splitlines()
    found = [n for n, line in enumerate(lines, 1) if line.endswith(f"#: {name}")]
    assert len(found) == 1, name
    return f"{file.relative_to(ROOT).as_posix()}:{found[0]}"
