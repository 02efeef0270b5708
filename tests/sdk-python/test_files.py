# SPDX-License-Identifier: Apache-2.0
"""Files: bytes in, the same bytes out."""

import hashlib
import random
import time

import pytest
from pandastack import NotFoundError

EVERY_BYTE = bytes(range(256))
AWKWARD = "/root/with space/ünï 🐼/50% a+b&c=d?#.bin"


def remove(sandbox, path):
    """The published library has no call for it."""
    sandbox._client._request("DELETE", f"/sandboxes/{sandbox.id}/fs", params={"path": path})


@pytest.mark.parametrize(
    "content",
    [b"", b"\n", EVERY_BYTE, EVERY_BYTE * 1000, "é 🐼\r\n\u2028".encode()],
    ids=["empty", "newline", "every byte", "256 kB", "text"],
)
def test_round_trip(sandbox, content):
    answer = sandbox.filesystem.write("/tmp/round", content)
    assert (answer["path"], answer["bytes"]) == ("/tmp/round", len(content))
    assert sandbox.filesystem.read("/tmp/round") == content
    seen = sandbox.exec("sha256sum < /tmp/round").stdout.split()[0]
    assert seen == hashlib.sha256(content).hexdigest()


def test_five_megabytes(sandbox):
    content = random.Random(5).randbytes(5_000_000)
    sandbox.filesystem.write("/tmp/large", content)
    assert sandbox.filesystem.stat("/tmp/large").size == len(content)
    assert sandbox.filesystem.read("/tmp/large") == content
    remove(sandbox, "/tmp/large")


def test_text_is_utf_8(sandbox):
    sandbox.filesystem.write("/tmp/text", "é 🐼")
    assert sandbox.filesystem.read("/tmp/text") == "é 🐼".encode()


def test_a_shorter_file_replaces_a_longer_one(sandbox):
    sandbox.filesystem.write("/tmp/again", b"x" * 1000)
    sandbox.filesystem.write("/tmp/again", b"y")
    assert sandbox.filesystem.read("/tmp/again") == b"y"


def test_any_path_and_its_directories(sandbox):
    sandbox.filesystem.write(AWKWARD, EVERY_BYTE)
    assert sandbox.filesystem.read(AWKWARD) == EVERY_BYTE
    assert sandbox.exec(f"wc -c < '{AWKWARD}'").stdout.strip() == "256"
    assert [e.path for e in sandbox.filesystem.listdir("/root/with space/ünï 🐼")] == [AWKWARD]
    assert sandbox.filesystem.stat(AWKWARD).name == AWKWARD.rsplit("/", 1)[1]


def test_what_commands_write_is_there_at_once(sandbox):
    sandbox.exec("mkdir -p /tmp/from; printf hello > /tmp/from/command")
    assert sandbox.filesystem.read("/tmp/from/command") == b"hello"


def test_upload_and_download(sandbox, tmp_path):
    (tmp_path / "up").write_bytes(EVERY_BYTE)
    sandbox.filesystem.upload(tmp_path / "up", "/tmp/up")
    sandbox.filesystem.download("/tmp/up", tmp_path / "down")
    assert (tmp_path / "down").read_bytes() == EVERY_BYTE


def test_listing_and_stat(sandbox):
    sandbox.exec("mkdir -p /tmp/list/below /tmp/list/empty")
    sandbox.filesystem.write("/tmp/list/file", b"12345")
    sandbox.filesystem.write("/tmp/list/below/deep", b"")
    entries = {entry.name: entry for entry in sandbox.filesystem.listdir("/tmp/list")}
    assert sorted(entries) == ["below", "empty", "file"]
    assert entries["below"].is_dir
    assert entries["file"].path == "/tmp/list/file"
    assert sandbox.filesystem.listdir("/tmp/list/empty") == []
    for info in (entries["file"], sandbox.filesystem.stat("/tmp/list/file")):
        assert (info.name, info.is_dir, info.size) == ("file", False, 5)
        assert abs(info.mtime - time.time()) < 60
        assert info.mode
    assert sandbox.filesystem.stat("/tmp/list").is_dir
    walked = [
        (path, len(dirs), len(files)) for path, dirs, files in sandbox.filesystem.walk("/tmp/list")
    ]
    assert sorted(walked) == [
        ("/tmp/list", 2, 1),
        ("/tmp/list/below", 0, 1),
        ("/tmp/list/empty", 0, 0),
    ]
    assert "etc" in [entry.name for entry in sandbox.filesystem.listdir()]


def test_what_is_missing(sandbox):
    files = sandbox.filesystem
    for path in ("/tmp/no/such/file", "/nowhere"):
        for access in (files.read, files.stat, files.listdir):
            with pytest.raises(NotFoundError):
                access(path)
        assert not files.exists(path)
    assert files.exists("/etc")
    with pytest.raises(NotFoundError):
        remove(sandbox, "/tmp/no/such/file")


def test_deletion(sandbox):
    files = sandbox.filesystem
    files.write("/tmp/gone/below/file", b"x")
    remove(sandbox, "/tmp/gone/below/file")
    assert not files.exists("/tmp/gone/below/file")
    assert files.exists("/tmp/gone/below")
    files.write("/tmp/gone/below/file", b"x")
    remove(sandbox, "/tmp/gone")
    assert not files.exists("/tmp/gone")
