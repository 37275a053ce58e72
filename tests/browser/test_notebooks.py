"""What a notebook shows of a report, and what the page of two files begins with."""

import torch
from selenium.webdriver.common.by import By

import ckptool


def build_report(folder):
    for name, value in (("old", 0.0), ("new", 1.0)):
        state = {"layer.weight": torch.full((4, 4), value), "layer.bias": torch.zeros(4)}
        torch.save(state, folder / f"{name}.pth")
    return ckptool.diff(folder / "old.pth", folder / "new.pth")


def test_a_report_is_shown_in_a_frame_of_a_notebook(browser, tmp_path):
    report = build_report(tmp_path)
    path = tmp_path / "notebook.html"
    path.write_text(f"<!DOCTYPE html><title>n</title><p>In [1]</p>{report._repr_html_()}")
    browser.get(path.as_uri())
    frame = browser.find_element(By.TAG_NAME, "iframe")
    assert frame.size["width"] > 600
    browser.switch_to.frame(frame)
    text = browser.find_element(By.TAG_NAME, "body").text
    browser.switch_to.default_content()
    assert report.verdict in text
    assert "layer.weight" in text


def test_the_page_of_two_files_begins_with_what_changed(browser, tmp_path):
    path = tmp_path / "diff.html"
    path.write_text(ckptool.text(build_report(tmp_path), "html"))
    browser.get(path.as_uri())
    headings = [one.text for one in browser.find_elements(By.TAG_NAME, "h2")]
    assert headings[0].startswith("Values that differ")
    section = browser.find_element(By.TAG_NAME, "section")
    assert "layer.weight" in section.text
    assert "layer.bias" not in section.text
