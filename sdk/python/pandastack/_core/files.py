# SPDX-License-Identifier: Apache-2.0
"""Flows on the files of a sandbox. Contents are bytes, never text."""

from __future__ import annotations

from typing import Any, Dict, List, Optional, Tuple, Union

from ..exceptions import NotFoundError
from ..records import FileInfo
from .answers import as_object, call
from .warmup import warmed_up
from .wire import Flow, Reply, Request, path


def read_file(sandbox_id: str, file: str) -> Flow[bytes]:
    """A file's bytes, as they are."""
    return (yield from _fs("GET", sandbox_id, file)).body


def write_file(sandbox_id: str, file: str, content: Union[bytes, str]) -> Flow[Dict[str, Any]]:
    """Writes a file, text as UTF-8; its directories are made."""
    data = content.encode("utf-8") if isinstance(content, str) else bytes(content)
    return as_object((yield from _fs("PUT", sandbox_id, file, content=data)))


def make_dir(sandbox_id: str, directory: str) -> Flow[None]:
    """Makes a directory and those above it."""
    yield from _fs("POST", sandbox_id, directory, "mkdir")


def remove_file(sandbox_id: str, file: str) -> Flow[None]:
    """Removes a file, or a directory with everything in it."""
    yield from _fs("DELETE", sandbox_id, file)


def list_dir(sandbox_id: str, directory: str) -> Flow[List[FileInfo]]:
    """A directory's entries."""
    answer = as_object((yield from _fs("GET", sandbox_id, directory, "dir")))
    return [FileInfo.from_dict(entry, parent=directory) for entry in answer.get("entries") or []]


def stat(sandbox_id: str, file: str) -> Flow[FileInfo]:
    """One path. It keeps the spelling that was asked for."""
    answer = as_object((yield from _fs("GET", sandbox_id, file, "stat")))
    name = answer.get("name") or file.rstrip("/").rsplit("/", 1)[-1]
    return FileInfo.from_dict({**answer, "name": name, "path": file})


def exists(sandbox_id: str, file: str) -> Flow[bool]:
    """Whether there is anything at a path of an existing sandbox."""
    try:
        yield from stat(sandbox_id, file)
    except NotFoundError:
        return False
    return True


def _fs(
    method: str, sandbox_id: str, file: str, *below: str, content: Optional[bytes] = None
) -> Flow[Reply]:
    binary = {"Content-Type": "application/octet-stream"}
    request = Request(
        method,
        path("sandboxes", sandbox_id, "fs", *below),
        params={"path": file},
        content=content,
        headers={} if content is None else binary,
    )
    return warmed_up(lambda: call(request))


def split_entries(entries: List[FileInfo]) -> Tuple[List[FileInfo], List[FileInfo]]:
    """The directories among some entries, and the rest."""
    return [e for e in entries if e.is_dir], [e for e in entries if not e.is_dir]
