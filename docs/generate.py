"""The code -> the pages that are made from it: `python docs/generate.py [PAGE...] [--check]`.

Rules, commands, configuration, plans, reports, the Python API and the report's JSON Schema are
written whole; of all other pages the output of every example is what the command really prints
(see `generator/examples.py`). CI runs it with `--check`, which writes nothing and names what is
stale.
"""

import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from generator import commands, configuration, examples, library, plans, reports, rules

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
WHOLE: dict[str, Callable[[], str]] = {
    "docs/rules.md": rules.page,
    "docs/commands.md": commands.page,
    "docs/configuration.md": configuration.page,
    "docs/plan.md": plans.page,
    "docs/report.md": reports.page,
    "docs/report.schema.json": reports.schema,
    "docs/api.md": library.page,
}
"""Pages that are made from the code and nothing else."""


def pages() -> Iterator[tuple[str, Callable[[], str]]]:
    """Yield every generated file with what makes its text."""
    yield from WHOLE.items()
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))):
        name = path.relative_to(ROOT).as_posix()
        if name not in WHOLE:
            yield name, partial(examples.page, path)


def main(words: list[str]) -> int:
    check, wanted = "--check" in words, {word for word in words if word != "--check"}
    chosen = [(name, make) for name, make in pages() if not wanted or name in wanted]
    if unknown := wanted - {name for name, _ in chosen}:
        print(f"no such page: {', '.join(sorted(unknown))}")
        return 2
    # MKL and torch's own kernels round alike on every processor of the last ten years.
    os.environ |= {"MKL_CBWR": "COMPATIBLE", "ATEN_CPU_CAPABILITY": "avx2"}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        texts = list(pool.map(lambda one: one[1](), chosen))
    code = 0
    for (name, _), text in zip(chosen, texts, strict=True):
        path = ROOT / name
        if path.exists() and path.read_text(encoding="utf-8") == text:
            continue
        if check:
            print(f"{name} is stale: run `python docs/generate.py`")
            code = 1
        else:
            path.write_text(text, encoding="utf-8")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
