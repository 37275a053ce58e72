"""A real browser for the pages: chromium, driven by Selenium, with a profile of its own."""

import shutil
from collections.abc import Iterator
from importlib.resources import files

import pytest
from render.pages import KINDS, page
from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--window-size=1200,1000",
)  # fmt: skip


@pytest.fixture(scope="session")
def browser(tmp_path_factory) -> Iterator[webdriver.Chrome]:
    if not BROWSER or not DRIVER:
        pytest.skip("no chromium and chromedriver here: apt-get install chromium chromium-driver")
    options = Options()
    options.binary_location = BROWSER
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="session")
def axe() -> str:
    """Return the axe-core script, which looks for what a screen reader cannot use."""
    return (files("axe_core_python") / "axe.min.js").read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def urls(tmp_path_factory) -> dict[str, str]:
    """Write a page of each kind, and return where it is."""
    folder = tmp_path_factory.mktemp("pages")
    found = {}
    for kind in KINDS:
        path = folder / f"{kind}.html"
        path.write_text(page(kind, folder), encoding="utf-8")
        found[kind] = path.as_uri()
    return found
