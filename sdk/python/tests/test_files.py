# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest

from pandastack import FileInfo, NotFoundError, Sandbox
from pandastack._core import warmup

from .fake import HERE, Answer, Fake

FS = f"{HERE}/fs"
EVERY_BYTE = bytes(range(256))
MISSING = Answer(404, {"error": "no such file"})


def test_bytes_are_bytes(fake: Fake, sandbox: Sandbox) -> None:
    fake.on("GET", FS, Answer(200, EVERY_BYTE))
    fake.on("PUT", FS, Answer(200, {"path": "/a", "bytes": 256}))
    assert sandbox.filesystem.read("/a b/ü?&#") == EVERY_BYTE
    assert fake.seen[-1].query == {"path": "/a b/ü?&#"}
    # JSON in a file is content and not an answer.
    fake.on("GET", FS, Answer(200, b'{"a": 1}', {"Content-Type": "application/json"}))
    assert sandbox.filesystem.read("/a") == b'{"a": 1}'
    assert sandbox.filesystem.write("/a", EVERY_BYTE) == {"path": "/a", "bytes": 256}
    seen = fake.seen[-1]
    assert (seen.body, seen.query) == (EVERY_BYTE, {"path": "/a"})
    assert seen.headers["content-type"] == "application/octet-stream"


def test_text_is_utf_8(fake: Fake, sandbox: Sandbox) -> None:
    fake.on("PUT", FS, Answer(200, {}))
    sandbox.filesystem.write("/a", "é🐼")
    assert fake.seen[-1].body == "é🐼".encode()
    fake.on("GET", FS, Answer(200, "é🐼".encode()))
    assert sandbox.filesystem.read_text("/a") == "é🐼"


def test_empty_files(fake: Fake, sandbox: Sandbox) -> None:
    fake.on("PUT", FS, Answer(200, {"bytes": 0}))
    fake.on("GET", FS, Answer(200))
    sandbox.filesystem.write("/a", b"")
    assert fake.seen[-1].headers["content-length"] == "0"
    assert sandbox.filesystem.read("/a") == b""


def test_upload_and_download(fake: Fake, sandbox: Sandbox, tmp_path: Path) -> None:
    fake.on("PUT", FS, Answer(200, {}))
    fake.on("GET", FS, Answer(200, EVERY_BYTE))
    (tmp_path / "up").write_bytes(EVERY_BYTE)
    sandbox.filesystem.upload(tmp_path / "up", "/a")
    assert fake.seen[-1].body == EVERY_BYTE
    sandbox.filesystem.download("/a", str(tmp_path / "down"))
    assert (tmp_path / "down").read_bytes() == EVERY_BYTE


def test_listing_and_stat(fake: Fake, sandbox: Sandbox) -> None:
    entry = {"name": "f", "is_dir": False, "size": 3, "mode": "-rw-r--r--", "mtime": 9}
    fake.on("GET", f"{FS}/dir", Answer(200, {"path": "/d", "entries": [entry]}))
    fake.on("GET", f"{FS}/stat", Answer(200, {**entry, "path": "/other"}))
    expected = FileInfo("f", "/d/f", False, 3, "-rw-r--r--", 9)
    assert sandbox.filesystem.listdir("/d/") == [expected]
    assert sandbox.filesystem.stat("/d/f") == expected
    assert fake.seen[-1].query == {"path": "/d/f"}
    fake.on("GET", f"{FS}/dir", Answer(200, {"path": "/", "entries": None}))
    assert sandbox.filesystem.listdir() == []


def test_exists_and_remove(fake: Fake, sandbox: Sandbox) -> None:
    fake.on("GET", f"{FS}/stat", Answer(200, {"name": "f"}), MISSING)
    fake.on("DELETE", FS, Answer(204), MISSING)
    fake.on("POST", f"{FS}/mkdir", Answer(200, {"path": "/d"}))
    sandbox.filesystem.mkdir("/d")
    assert fake.seen[-1].query == {"path": "/d"}
    assert sandbox.filesystem.exists("/f")
    sandbox.filesystem.remove("/f")
    assert not sandbox.filesystem.exists("/f")
    with pytest.raises(NotFoundError, match="no such file"):
        sandbox.filesystem.remove("/f")
    fake.on("GET", FS, MISSING)
    with pytest.raises(NotFoundError):
        sandbox.filesystem.read("/f")


def test_walk_can_be_pruned(fake: Fake, sandbox: Sandbox) -> None:
    top = [{"name": n, "is_dir": n != "f"} for n in ("a", "b", "f")]
    fake.on("GET", f"{FS}/dir", Answer(200, {"entries": top}), Answer(200, {"entries": []}))
    seen = []
    for directory, directories, files in sandbox.filesystem.walk("/"):
        directories[:] = [d for d in directories if d.name != "b"]
        seen.append((directory, [d.path for d in directories], [f.path for f in files]))
    assert seen == [("/", ["/a"], ["/f"]), ("/a", [], [])]


def test_a_guest_that_is_coming_up_is_waited_for(
    fake: Fake, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warmup, "_FIRST_DELAY", 0.001)
    early = Answer(502, {"error": "connect: connection refused"})
    fake.on("PUT", FS, early, Answer(200, {}))
    sandbox.filesystem.write("/a", b"x")
    assert [s.body for s in fake.seen] == [b"x", b"x"]
