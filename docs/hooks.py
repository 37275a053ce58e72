"""MkDocs' hooks: the pages of docs/, README, CONTRIBUTING and CHANGELOG -> one site.

Links are written as a reader of the repository needs them. Here they are turned into links of the
site; what they name outside of docs/ (code, an example of CI) becomes a page with its text, so that
a link to a file that is not there fails the build.
"""

import html
import posixpath
import re
from pathlib import Path, PurePosixPath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page
from pygments.formatters import HtmlFormatter

ROOT = Path(__file__).resolve().parent.parent
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "CONTRIBUTING.md",
    "CHANGELOG.md": "CHANGELOG.md",
}
"""Pages of the repository that are none of docs/."""
LINK = re.compile(r"(?P<head>!?\[[^\]]*\]\()(?P<target>[^)\s#]+)(?P<anchor>#[^)\s]*)?(?P<end>\))")
FENCE = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
LANGUAGES = {
    ".py": "python",
    ".toml": "toml",
    ".yml": "yaml",
    ".yaml": "yaml",
    ".json": "json",
    ".sh": "bash",
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages outside of docs/, and a page for each other file that a link names."""
    sources = {path.relative_to(ROOT).as_posix() for path in _markdown()}
    for name, place in PAGES.items():
        files.append(File.generated(config, place, content=(ROOT / name).read_text("utf-8")))
    files.append(File.generated(config, "css/code.css", content=_colours()))
    for target in sorted({t for name in sources for t in _targets(name) if _outside(t)}):
        if (ROOT / target).is_file():
            text = _source_page(target)
            place = f"source/{target}.md"
            kept = InclusionLevel.NOT_IN_NAV
            files.append(File.generated(config, place, content=text, inclusion=kept))
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Turn the repository's links into the site's."""
    here = page.file.src_uri
    back = {place: name for name, place in PAGES.items()}
    name = back.get(here, f"docs/{here}")
    if here.startswith("source/"):
        return markdown

    def moved(match: re.Match[str]) -> str:
        if ":" in match["target"]:
            return match[0]
        target = posixpath.normpath(posixpath.join(posixpath.dirname(name), match["target"]))
        place = PAGES.get(target) or (
            f"source/{target}.md" if _outside(target) else target.removeprefix("docs/")
        )
        if _outside(target) and not (ROOT / target).is_file():
            place = target
        link = posixpath.relpath(place, posixpath.dirname(here) or ".")
        return f"{match['head']}{link}{match['anchor'] or ''}{match['end']}"

    parts, last = [], 0
    for fence in FENCE.finditer(markdown):
        parts += [LINK.sub(moved, markdown[last : fence.start()]), fence[0]]
        last = fence.end()
    return "".join([*parts, LINK.sub(moved, markdown[last:])])


def _markdown() -> list[Path]:
    docs = (ROOT / "docs").rglob("*.md")
    return [*(ROOT / name for name in PAGES), *docs]


def _targets(name: str) -> set[str]:
    """Return the files of the repository that a page links to."""
    text = FENCE.sub("", (ROOT / name).read_text(encoding="utf-8"))
    links = (match["target"] for match in LINK.finditer(text))
    return {
        posixpath.normpath(posixpath.join(posixpath.dirname(name), link))
        for link in links
        if ":" not in link
    }


def _outside(target: str) -> bool:
    """Whether a file is no page and no picture of docs/."""
    path = PurePosixPath(target)
    return target not in PAGES and (path.parts[0] != "docs" or path.suffix in {".py", ".yml"})


def _source_page(target: str) -> str:
    text = (ROOT / target).read_text(encoding="utf-8")
    language = LANGUAGES.get(PurePosixPath(target).suffix, "text")
    mark = "````" if "```" in text else "```"
    return f"# {html.escape(target)}\n\n{mark}{language}\n{text.rstrip()}\n{mark}\n"


def _colours() -> str:
    """Return the colours of code, for a light screen and for a dark one."""
    light = HtmlFormatter(style="default").get_style_defs(".code")
    dark = HtmlFormatter(style="github-dark").get_style_defs(".code")
    return f"{light}\n@media (prefers-color-scheme: dark) {{\n{dark}\n}}\n"
