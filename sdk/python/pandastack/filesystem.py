# SPDX-License-Identifier: Apache-2.0
"""``sandbox.filesystem``: the files of a sandbox."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, Iterator, List, Tuple, Union

from ._core import files
from ._core.wire import Flow, T
from .records import FileInfo

if TYPE_CHECKING:
    from .sandbox import Sandbox


class SandboxFilesystem:
    """Files by absolute path. A missing file raises `NotFoundError`."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox

    def read(self, path: str) -> bytes:
        """A file's bytes."""
        return self._run(files.read_file(self._sandbox.id, path))

    def read_text(self, path: str, encoding: str = "utf-8") -> str:
        """A file's text."""
        return self.read(path).decode(encoding)

    def write(self, path: str, content: Union[bytes, str]) -> Dict[str, Any]:
        """Writes a file, text as UTF-8, and makes its directories; returns
        ``{path, bytes}``."""
        return self._run(files.write_file(self._sandbox.id, path, content))

    def upload(self, local_path: Union[str, Path], remote_path: str) -> Dict[str, Any]:
        """Copies a file of this machine into the sandbox."""
        return self.write(remote_path, Path(local_path).read_bytes())

    def download(self, remote_path: str, local_path: Union[str, Path]) -> None:
        """Copies a file of the sandbox to this machine."""
        Path(local_path).write_bytes(self.read(remote_path))

    def mkdir(self, path: str) -> None:
        """Makes a directory and those above it; one that exists is left as it is."""
        self._run(files.make_dir(self._sandbox.id, path))

    def remove(self, path: str) -> None:
        """Removes a file, or a directory with everything in it."""
        self._run(files.remove_file(self._sandbox.id, path))

    def listdir(self, path: str = "/") -> List[FileInfo]:
        """A directory's entries."""
        return self._run(files.list_dir(self._sandbox.id, path))

    def stat(self, path: str) -> FileInfo:
        """One file or directory."""
        return self._run(files.stat(self._sandbox.id, path))

    def exists(self, path: str) -> bool:
        """Whether there is a file or directory at this path."""
        return self._run(files.exists(self._sandbox.id, path))

    def walk(self, path: str = "/") -> Iterator[Tuple[str, List[FileInfo], List[FileInfo]]]:
        """Every directory below ``path`` as ``(directory, its directories, its files)``, top
        down. As with `os.walk`, what the caller takes out of the directories is not visited."""
        directories, plain = files.split_entries(self.listdir(path))
        yield path, directories, plain
        for entry in directories:
            yield from self.walk(entry.path)

    def _run(self, flow: Flow[T]) -> T:
        return self._sandbox.client._run(flow)
