"""Ratios of two runs of benchmarks/run.py -> those that got worse by more than a fifth.

    python benchmarks/run.py --json new.json && python benchmarks/compare.py new.json

The older ratios are those of benchmarks/ratios.json, or of a second file. A ratio counts if it got
worse by the clock and of the processor: one of the two alone is what another program on the machine
does. Exit code 1 if any got worse.
"""

import argparse
import json
import sys
from pathlib import Path

LIMIT = 1.2
"""Times of the older ratio from which a ratio is worse."""
RATIOS = Path(__file__).with_name("ratios.json")
Ratios = dict[str, dict[str, float]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("new", type=Path)
    parser.add_argument("old", type=Path, nargs="?", default=RATIOS)
    options = parser.parse_args()
    old, new = (json.loads(path.read_text(encoding="utf-8")) for path in (options.old, options.new))
    lines = list_worse(old, new)
    print("\n".join(lines) or "no ratio got worse by more than a fifth")
    return min(len(lines), 1)


def list_worse(old: Ratios, new: Ratios) -> list[str]:
    """Return a line for each ratio that got worse, and for each that was not measured again."""
    missing = [f"{name}: not measured" for name in old if name not in new]
    return missing + [
        f"{name}: {ratios['clock']:.2f} -> {new[name]['clock']:.2f} by the clock, "
        f"{ratios['processor']:.2f} -> {new[name]['processor']:.2f} of the processor"
        for name, ratios in old.items()
        if name in new and all(new[name][by] > LIMIT * ratios[by] for by in ratios)
    ]


if __name__ == "__main__":
    sys.exit(main())
