"""Every kind of report in a real browser: silent, closed, accessible, light and dark, printable."""

import base64
import json
import re

import pytest
from render.pages import KINDS
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

SCHEMES = ("light", "dark")
ALPHA = re.compile(r"rgba?\(([^)]*)\)")


LOADED = """
const here = location.href.split('#')[0] === arguments[0].split('#')[0];
return here && document.readyState === 'complete' && document.body.children.length > 0;
"""


def shown(browser, url, *, scheme="light", width=1200):
    """Open a page as a reader with these settings would."""
    size = {"width": width, "height": 1000, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    browser.get_log("browser")
    browser.get_log("performance")
    browser.get(url)
    # The driver comes back before a large page is all there, now and then.
    WebDriverWait(browser, 30).until(lambda one: one.execute_script(LOADED, url))


def requested(browser):
    """Return the addresses that the page asked for."""
    messages = [json.loads(one["message"])["message"] for one in browser.get_log("performance")]
    return [
        one["params"]["request"]["url"]
        for one in messages
        if one["method"] == "Network.requestWillBeSent"
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_it_opens_from_a_file_without_a_word_or_a_request(browser, urls, kind):
    shown(browser, urls[kind])
    assert browser.find_element(By.TAG_NAME, "h1").text
    assert browser.get_log("browser") == []
    asked = [url for url in requested(browser) if not url.startswith("data:")]
    assert asked == [urls[kind]]


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("kind", KINDS)
def test_axe_finds_nothing_with_every_table_open(browser, urls, axe, kind, scheme):
    shown(browser, urls[kind], scheme=scheme)
    browser.execute_script("for (const d of document.querySelectorAll('details')) d.open = true")
    browser.execute_script(axe)
    found = browser.execute_async_script(
        "const done = arguments[0]; axe.run({resultTypes: ['violations']}).then(done)"
    )
    assert found["passes"]
    broken = [(one["id"], [n["html"][:160] for n in one["nodes"]]) for one in found["violations"]]
    assert broken == []


def luminance(colour):
    parts = [float(part) for part in ALPHA.match(colour)[1].split(",")[:3]]
    linear = [c / 255 / 12.92 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in parts]
    return sum(share * c for share, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one, other):
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


PAIRS = """
const css = (e) => getComputedStyle(e).fill;
const under = (name) => {
  const shape = document.querySelector(`path.${name}`);
  const fill = css(shape);
  return fill.startsWith('url') ? css(document.querySelector(`.b${name}`)) : fill;
};
const texts = document.querySelectorAll('svg text[class]:not(.frame)');
return [...texts].map((t) => [t.textContent, css(t), under(t.classList[0])]);
"""


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("kind", ["diff", "files", "large"])
def test_text_in_pictures_can_be_read(browser, urls, kind, scheme):
    shown(browser, urls[kind], scheme=scheme)
    pairs = browser.execute_script(PAIRS)
    assert pairs
    low = {(fill, below) for _, fill, below in pairs if contrast(fill, below) < 4.5}
    assert low == set()


@pytest.mark.parametrize("kind", ["diff", "files"])
def test_light_and_dark_differ(browser, urls, kind):
    grounds = []
    for scheme in SCHEMES:
        shown(browser, urls[kind], scheme=scheme)
        body = browser.find_element(By.TAG_NAME, "body")
        grounds.append(luminance(body.value_of_css_property("background-color")))
    light, dark = grounds
    assert light > 0.9
    assert dark < 0.05


@pytest.mark.parametrize("kind", KINDS)
def test_a_narrow_screen_needs_no_sideways_scrolling(browser, urls, kind):
    shown(browser, urls[kind], width=360)
    wide = browser.execute_script(
        "return [document.documentElement.scrollWidth, document.body.scrollWidth]"
    )
    assert max(wide) <= 360


@pytest.mark.parametrize("kind", KINDS)
def test_it_prints(browser, urls, kind):
    shown(browser, urls[kind], scheme="dark")
    printed = browser.execute_cdp_cmd("Page.printToPDF", {"printBackground": False})
    pdf = base64.b64decode(printed["data"])
    assert pdf.startswith(b"%PDF-")
    dark = {"name": "prefers-color-scheme", "value": "dark"}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print", "features": [dark]})
    body = browser.find_element(By.TAG_NAME, "body")
    assert luminance(body.value_of_css_property("background-color")) > 0.9
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": []})
    assert len(pdf) > 5000
    assert 1 <= pdf.count(b"/Type /Page\n") + pdf.count(b"/Type /Page ") <= 30


def test_details_are_reached_and_opened_by_keyboard(browser, urls):
    shown(browser, urls["diff"])
    details = browser.find_elements(By.TAG_NAME, "details")
    assert details
    assert not any(one.get_attribute("open") for one in details)
    for _ in range(60):
        browser.switch_to.active_element.send_keys(Keys.TAB)
        focused = browser.switch_to.active_element
        if focused.tag_name == "summary":
            focused.send_keys(Keys.ENTER)
        if all(one.get_attribute("open") for one in details):
            break
    assert all(one.get_attribute("open") for one in details)


def test_a_key_that_is_markup_is_text(browser, urls):
    shown(browser, urls["odd"])
    assert browser.get_log("browser") == []
    assert "<script>alert(1)</script>" in browser.find_element(By.TAG_NAME, "main").text
    assert browser.find_elements(By.TAG_NAME, "script") == []


def test_the_mask_is_a_triangle(browser, urls):
    """Of the cells drawn with the darkest shade, each stands above the diagonal."""
    shown(browser, urls["diff"])
    boxes = browser.execute_script(
        """const svg = document.querySelector('.pictures svg');
        const own = svg.getBoundingClientRect();
        const at = (x, y) => document.elementFromPoint(
            own.x + (x + .2) * own.width / 6, own.y + (y + .2) * own.height / 6);
        svg.scrollIntoView();
        return [...Array(6).keys()].map((y) => [...Array(6).keys()].map((x) => {
            const now = svg.getBoundingClientRect();
            return document.elementFromPoint(now.x + (x + .2) * now.width / 6,
                now.y + (y + .2) * now.height / 6).getAttribute('class'); }));"""
    )
    assert boxes == [["v6" if x > y else "v0" for x in range(6)] for y in range(6)]
