# SPDX-License-Identifier: Apache-2.0
"""The same package for asyncio: `AsyncClient`, `AsyncSandbox` and what they lead to.

Names, arguments and errors are those of the sync classes, with ``await`` in front. ``cancel``
takes an `asyncio.Event`; cancelling the task works too, but may lose a sandbox that the server
was about to make.
"""

from __future__ import annotations

from .client import AsyncClient, AsyncSandboxAPI
from .code_context import AsyncCodeContext
from .default import get_default_async_client, set_default_async_client
from .filesystem import AsyncSandboxCommands, AsyncSandboxFilesystem
from .resources import AsyncSnapshotsAPI, AsyncTemplatesAPI, AsyncTokensAPI, AsyncVolumesAPI
from .sandbox import AsyncSandbox

__all__ = [
    "AsyncClient",
    "AsyncCodeContext",
    "AsyncSandbox",
    "AsyncSandboxAPI",
    "AsyncSandboxCommands",
    "AsyncSandboxFilesystem",
    "AsyncSnapshotsAPI",
    "AsyncTemplatesAPI",
    "AsyncTokensAPI",
    "AsyncVolumesAPI",
    "get_default_async_client",
    "set_default_async_client",
]
