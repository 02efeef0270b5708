# SPDX-License-Identifier: Apache-2.0
"""``sandbox.filesystem`` and ``sandbox.commands``, for asyncio."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Any,
    AsyncIterator,
    Dict,
    List,
    Mapping,
    Optional,
    Sequence,
    Tuple,
    Union,
)

from .._core import files
from .._core.wire import Flow, T
from ..records import ExecResult, FileInfo

if TYPE_CHECKING:
    from .sandbox import AsyncSandbox


class AsyncSandboxFilesystem:
    """Files by absolute path; each method is explained in `SandboxFilesystem`."""

    def __init__(self, sandbox: AsyncSandbox) -> None:
        self._sandbox = sandbox

    async def read(self, path: str) -> bytes:
        """A file's bytes."""
        return await self._run(files.read_file(self._sandbox.id, path))

    async def read_text(self, path: str, encoding: str = "utf-8") -> str:
        """A file's text."""
        return (await self.read(path)).decode(encoding)

    async def write(self, path: str, content: Union[bytes, str]) -> Dict[str, Any]:
        """Writes a file, text as UTF-8, and makes its directories."""
        return await self._run(files.write_file(self._sandbox.id, path, content))

    async def upload(self, local_path: Union[str, Path], remote_path: str) -> Dict[str, Any]:
        """Copies a file of this machine into the sandbox."""
        return await self.write(remote_path, await asyncio.to_thread(Path(local_path).read_bytes))

    async def download(self, remote_path: str, local_path: Union[str, Path]) -> None:
        """Copies a file of the sandbox to this machine."""
        content = await self.read(remote_path)
        await asyncio.to_thread(Path(local_path).write_bytes, content)

    async def mkdir(self, path: str) -> None:
        """Makes a directory and those above it; one that exists is left as it is."""
        await self._run(files.make_dir(self._sandbox.id, path))

    async def remove(self, path: str) -> None:
        """Removes a file, or a directory with everything in it."""
        await self._run(files.remove_file(self._sandbox.id, path))

    async def listdir(self, path: str = "/") -> List[FileInfo]:
        """A directory's entries."""
        return await self._run(files.list_dir(self._sandbox.id, path))

    async def stat(self, path: str) -> FileInfo:
        """One file or directory."""
        return await self._run(files.stat(self._sandbox.id, path))

    async def exists(self, path: str) -> bool:
        """Whether there is a file or directory at this path."""
        return await self._run(files.exists(self._sandbox.id, path))

    async def walk(
        self, path: str = "/"
    ) -> AsyncIterator[Tuple[str, List[FileInfo], List[FileInfo]]]:
        """Every directory below ``path``, top down."""
        directories, plain = files.split_entries(await self.listdir(path))
        yield path, directories, plain
        for entry in directories:
            async for below in self.walk(entry.path):
                yield below

    async def _run(self, flow: Flow[T]) -> T:
        return await self._sandbox.client._run(flow)


class AsyncSandboxCommands:
    """Commands of one sandbox."""

    def __init__(self, sandbox: AsyncSandbox) -> None:
        self._sandbox = sandbox

    async def run(
        self,
        cmd: Union[str, Sequence[str]],
        timeout: Optional[int] = None,
        *,
        env: Optional[Mapping[str, str]] = None,
        cwd: Optional[str] = None,
        user: Optional[str] = None,
        stdin: Optional[str] = None,
    ) -> ExecResult:
        """`AsyncSandbox.exec`."""
        return await self._sandbox.exec(
            cmd, timeout_seconds=timeout, env=env, cwd=cwd, user=user, stdin=stdin
        )
