"""The reference case -> `docs/report.png`, as a browser shows it: `python docs/picture.py`.

Needs chromium and chromedriver, and the packages of the `dev` extra.
"""

import base64
import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service

from ckptool import api
from ckptool.policy import Policy
from ckptool.render import RenderOptions, render

DOCS = Path(__file__).parent
WIDTH = 960
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--hide-scrollbars",
)  # fmt: skip


def page() -> str:
    """Return the report of a file whose mask was changed, against the module that loses it."""
    report = api.diff(
        "samples/whole.pth",
        module="samples.attention:CausalAttentionWithoutBuffers",
        kwargs={"d_in": 3, "d_out": 2, "context_length": 6},
        policy=Policy(select=("CK110",)),
        pictures=True,
    )
    return render("html", report, RenderOptions())


def photograph(html: str, folder: Path) -> bytes:
    """Return a PNG of the page, down to the end of its pictures of values."""
    path = folder / "report.html"
    path.write_text(html, encoding="utf-8")
    options = Options()
    options.binary_location = shutil.which("chromium") or "chromium"
    for flag in (*FLAGS, f"--user-data-dir={folder / 'profile'}", f"--window-size={WIDTH},1000"):
        options.add_argument(flag)
    service = Service(shutil.which("chromedriver") or "chromedriver")
    with webdriver.Chrome(options=options, service=service) as browser:
        browser.get(path.as_uri())
        end = browser.execute_script(
            "return document.querySelector('#values').getBoundingClientRect().bottom"
        )
        clip = {"x": 0, "y": 0, "width": WIDTH, "height": end + 24, "scale": 1.5}
        shot = browser.execute_cdp_cmd(
            "Page.captureScreenshot", {"captureBeyondViewport": True, "clip": clip}
        )
    return base64.b64decode(shot["data"])


def main() -> int:
    with TemporaryDirectory() as folder:
        (DOCS / "report.png").write_bytes(photograph(page(), Path(folder)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
