"""What a server can do wrong: one line each, with the way out, and nothing secret in it."""

import os
import socket
import sys
import threading
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import fsspec
import pytest
from remote.servers import serving

import ckptool
from ckptool.errors import CkptoolError
from ckptool.formats.files import http

BEHAVIOURS = {
    "no ranges": "the server does not support range requests: download the file first",
    "no content-range": "does not support range requests: download the file first",
    "unknown size": "does not support range requests: download the file first",
    "lies": "sent bytes 8 to 16391 of 259751 instead of 0 to 16383: download",
    "too much": "sent more than the 16384 bytes it announced",
    "too little": "the connection was closed after 16383 of 16384 bytes; tried 3 times",
    "cuts off": "the connection was closed after 8192 of 16384 bytes; tried 3 times",
    "changes": "changed while it was read: run the command again",
    "grows": "changed while it was read: run the command again",
    "negative": "does not support range requests: download the file first",
    "counts backwards": "sent bytes 16383 to 0 of 259751 instead of 0 to 16383",
    "loses its tag": "changed while it was read: run the command again",
    "changes silently": "changed while it was read: run the command again",
    "drips": "16384 bytes were not received within 1 seconds: download the file first",
    "drips headers": "16384 bytes were not received within 1 seconds: download the file first",
    "continues": "16384 bytes were not received within 1 seconds: download the file first",
    "compresses": "the server compresses its responses: download the file first",
    "status 404": "no such file (404 Not Found)",
    "status 403": "refused access (403 Forbidden): give a password in ~/.netrc or the URL, or",
    "status 401": "refused access (401 Unauthorized): give a password",
    "status 503": "the server responded 503 Service Unavailable; tried 3 times",
    "redirect file:///etc/passwd": "is redirected from http to file, which is not followed",
    "redirect ftp://elsewhere/x": "is redirected from http to ftp, which is not followed",
    "redirect /zip.pth": "was redirected 10 times",
}


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(http, "_PAUSE", 0)
    monkeypatch.setattr(http, "_MIN_SECONDS", 1.0)


def error(place: str) -> str:
    report = ckptool.inspect(place)
    assert report.exit_code == 2
    (line,) = report.errors
    assert "\n" not in line
    return line


@pytest.mark.parametrize("behaviour", BEHAVIOURS)
def test_a_server_that(behaviour: str, shelf: Path):
    size = (shelf / "zip.pth").stat().st_size
    with serving(shelf, behaviour) as site:
        line = error(f"{site.url}/zip.pth?X-Amz-Signature=abcdef")
        assert line.startswith(f"{site.url}/zip.pth?***: ")
        assert BEHAVIOURS[behaviour].replace("259751", str(size)) in line
        assert "abcdef" not in line


@pytest.mark.parametrize("behaviour", ["busy once", "cuts off once"])
def test_what_passes_is_tried_again(behaviour: str, shelf: Path):
    with serving(shelf, behaviour) as site:
        assert not ckptool.inspect(f"{site.url}/zip.pth").errors


def test_no_more_is_taken_than_the_head_of_a_whole_file(shelf: Path, tmp_path: Path):
    with (tmp_path / "large.safetensors").open("wb") as file:
        file.truncate(1 << 36)
    with serving(tmp_path, "no ranges") as site:
        assert "the server does not support range requests:" in error(
            f"{site.url}/large.safetensors"
        )


def test_a_password_is_sent_and_never_shown(shelf: Path, ckptool: Callable):
    with serving(shelf, "password") as site:
        place = site.url.replace("//", "//me:secret@") + "/zip.pth"
        done = ckptool("inspect", place)
        assert (done.code, done.err) == (0, "")
        assert done.out.startswith(site.url.replace("//", "//***@") + "/zip.pth: torch-zip")
        wrong = ckptool("inspect", "-v", place.replace("secret", "hunter2"))
        assert wrong.code == 2
        assert "401 Unauthorized" in wrong.err
        assert "hunter2" not in wrong.err + wrong.out


def test_a_password_is_not_sent_to_where_a_redirect_leads(shelf: Path):
    with serving(shelf, "password") as other:
        with serving(shelf, f"redirect {other.url}/zip.pth") as site:
            line = error(site.url.replace("//", "//me:secret@") + "/zip.pth")
        assert "401 Unauthorized" in line
        assert "secret" not in line


def test_a_redirect_on_the_web_is_followed(shelf: Path, site):
    with serving(shelf, f"redirect {site.url}/zip.pth") as first:
        report = ckptool.inspect(f"{first.url}/elsewhere.pth")
    assert not report.errors
    assert report.checkpoints[0].path == f"{first.url}/elsewhere.pth"


def test_from_https_to_http_is_not_followed():
    from ckptool.errors import ReadError
    from ckptool.locations import RemotePath

    with pytest.raises(ReadError, match="from https to http"):
        http._resolve_redirect(RemotePath("https://a/b"), "https://a/b", "http://a/b")
    assert (
        http._resolve_redirect(RemotePath("http://a/b"), "http://a/b", "https://c/d")
        == "https://c/d"
    )


def test_nobody_listens():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        place = f"http://127.0.0.1:{taken.getsockname()[1]}/x.pth?Signature=s3cret"
        line = error(place)
    assert line.endswith("/x.pth?***: 127.0.0.1 cannot be reached: Connection refused")


def test_there_is_no_such_host():
    assert error("http://nowhere.invalid/x.pth").endswith("there is no host nowhere.invalid")


def test_nothing_ever_comes(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(http, "_TIMEOUT", (0.2, 0.2))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        line = error(f"http://127.0.0.1:{silent.getsockname()[1]}/x.pth")
    assert "no response within 0.2 seconds; tried 3 times" in line


def test_a_line_that_is_no_http():
    with socket.create_server(("127.0.0.1", 0)) as odd:

        def answer() -> None:
            for _ in range(3):
                client, _ = odd.accept()
                client.recv(1000)
                client.sendall(b"220 mail ready\r\n")
                client.close()

        thread = threading.Thread(target=answer)
        thread.start()
        line = error(f"http://127.0.0.1:{odd.getsockname()[1]}/x.pth")
        thread.join()
    assert "127.0.0.1 closed the connection; tried 3 times" in line


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("http://", "http cannot list a folder"),
        ("http://[::1", "is not a valid URL"),
        ("https://example.invalid/folder/", "https cannot list a folder: give its .index.json"),
        ("nothing://x/y", "nothing:// is not a protocol supported by fsspec"),
        ("memory://nowhere/x.pth", "no such file"),
        ("gs://bucket/x.pth", "needs a package that is not installed: Please install gcsfs"),
        ("s3:/bucket/x.pth", "a remote location is given as a str, not as a pathlib.Path"),
        ("C:\\x.pth", "no such file"),
        ("C:/x.pth", "no such file"),
    ],
)
def test_places_that_cannot_be(place: str, said: str):
    assert said in error(place)


def test_a_folder_without_a_checkpoint():
    fsspec.filesystem("memory").pipe("/odd/notes.txt", b"x")
    assert error("memory://odd").endswith("is a directory without a checkpoint")


def test_a_file_in_memory_that_changes(shelf: Path):
    from ckptool.formats.files.source import open_source
    from ckptool.locations import parse_location

    store = fsspec.filesystem("memory")
    store.pipe("/changing.pth", (shelf / "zip.pth").read_bytes())

    def read() -> None:
        with open_source(parse_location("memory://changing.pth")) as source:
            source.read_head(100)
            store.pipe("/changing.pth", (shelf / "legacy.pth").read_bytes())
            source.read(20_000, 100)

    with pytest.raises(CkptoolError, match="changed while it was read: run the command again"):
        read()


@pytest.mark.parametrize("package", ["requests", "fsspec", "s3fs"])
def test_a_package_is_missing(package: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, package, None)
    if package == "fsspec":
        monkeypatch.setitem(sys.modules, "fsspec.core", None)
    if package == "s3fs":
        # fsspec keeps the class that another test asked for
        kept = import_module("fsspec.registry")._registry
        monkeypatch.delitem(kept, "s3", raising=False)
    scheme = {"requests": "https", "fsspec": "memory", "s3fs": "s3"}[package]
    line = error(f"{scheme}://somewhere/x.pth")
    assert "needs a package that is not installed: pip install 'ckptool[remote]'" in line


def test_s3_says_what_is_wrong(aws: str, monkeypatch: pytest.MonkeyPatch):
    assert error("s3://shelf/none.pth").endswith("no such file")
    assert error("s3://none/none.pth").endswith("no such file")
    assert "choose one of 'legacy.pth', 'plain.safetensors', 'zip.pth'" in error("s3://shelf")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    line = error("s3://shelf/zip.pth")
    assert "Unable to locate credentials" in line
    assert "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE" in line


def test_a_public_bucket(aws: str, shelf: Path, ckptool: Callable):
    done = ckptool(
        "inspect", "s3://shelf/zip.pth", AWS_ACCESS_KEY_ID="", AWS_SECRET_ACCESS_KEY="",
        FSSPEC_S3_ANON="true",
    )  # fmt: skip
    assert (done.code, done.err) == (0, "")
