"""The site is built strictly, asks nothing of a network, and its examples are run as they say."""

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from paths import ROOT

sys.path.append(str(ROOT / "docs"))
from generator import examples

pytestmark = pytest.mark.process


LOADING = {
    ("script", "src"),
    ("link", "href"),
    ("img", "src"),
    ("iframe", "src"),
    ("source", "src"),
}


class Loaded(HTMLParser):
    """Collects what a page makes a browser fetch."""

    def __init__(self):
        super().__init__()
        self.found = set()

    def handle_starttag(self, tag, attrs):
        self.found |= {value for name, value in attrs if (tag, name) in LOADING and value}


@pytest.fixture(scope="session")
def site(tmp_path_factory) -> Path:
    pytest.importorskip("mkdocs", reason="mkdocs is not installed: pip install -e '.[docs]'")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "-d", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def test_no_page_fetches_anything_from_elsewhere(site):
    pages = sorted(site.rglob("*.html"))
    assert {"index.html", "tutorial.html", "rules.html"} <= {p.name for p in pages}
    for page in pages:
        reader = Loaded()
        reader.feed(page.read_text(encoding="utf-8"))
        away = {url for url in reader.found if "//" in url}
        assert not away, page
    for style in site.rglob("*.css"):
        assert not re.search(r"@import|url\(", style.read_text(encoding="utf-8")), style


def test_what_links_name_in_the_repository_is_a_page(site):
    tutorial = (site / "tutorial.html").read_text(encoding="utf-8")
    assert 'href="source/samples/attention.py.html"' in tutorial
    shown = (site / "source/samples/attention.py.html").read_text(encoding="utf-8")
    assert "register_buffer" in shown


def test_every_page_has_its_place_in_the_navigation(site):
    start = (site / "index.html").read_text(encoding="utf-8")
    for page in (ROOT / "docs").rglob("*.md"):
        place = page.relative_to(ROOT / "docs").with_suffix(".html").as_posix()
        assert f'href="{place}"' in start, place


PAGE = """\
<!-- workspace: samples/model.pth -->
<!-- write: words.txt -->
```text
one
```

<!-- run: cat words.txt && ls -->
```console
stale
```

<!-- run: ckptool inspect missing.pth; echo "exit code $?" -->
```console
```
"""


def test_examples_run_in_order_in_a_folder_of_their_own(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(PAGE, encoding="utf-8")
    text = examples.page(page)
    assert "$ cat words.txt && ls\none\nmodel.pth\nwords.txt\n```" in text
    assert "stale" not in text
    assert "ckptool: missing.pth: no such file" in text
    assert "exit code 2\n```" in text


def test_nothing_is_written_outside_of_a_workspace(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("<!-- write: README.md -->\n```text\nx\n```\n", encoding="utf-8")
    with pytest.raises(ValueError, match="outside of a workspace"):
        examples.page(page)
