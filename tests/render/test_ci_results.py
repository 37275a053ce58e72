"""Findings and errors for machines: each names the file it is about."""

import ckptool


def test_a_path_with_a_colon_in_it_is_named_whole(tmp_path):
    """The path of an error was cut out of its message, at the first colon and blank."""
    path = tmp_path / "epoch: 3.pth"
    path.write_bytes(b"\x80\x04")
    for report in (ckptool.inspect(path), ckptool.digest(path), ckptool.gate(path)):
        assert report.error_paths == (str(path),)
        assert "file=" + str(path).replace(":", "%3A") + "::" in ckptool.text(report, "github")
