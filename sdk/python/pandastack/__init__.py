# SPDX-License-Identifier: Apache-2.0
"""PandaStack: throwaway microVMs for code that is not trusted.

    from pandastack import Sandbox

    with Sandbox.create(template="code-interpreter", ttl_seconds=300) as sb:
        result = sb.exec("python3 -c 'print(sum(range(100)))'", timeout_seconds=30)
        print(result.stdout, result.exit_code)

`AsyncSandbox` and `AsyncClient` are the same for asyncio.
"""

from __future__ import annotations

from ._version import __version__
from .aio import (
    AsyncClient,
    AsyncCodeContext,
    AsyncSandbox,
    get_default_async_client,
    set_default_async_client,
)
from .apps import AppsAPI
from .client import Client, CreateRetryEvent
from .cma import CmaConfig, Worker
from .databases import DatabasesAPI
from .exceptions import (
    APIConnectionError,
    AuthError,
    BadRequestError,
    CommandFailed,
    ConnectionError,
    CreateCancelled,
    ExecInterrupted,
    ExploreError,
    NotFoundError,
    PandastackError,
    SandboxTimeout,
    ServerError,
    TemplateBuildError,
)
from .explore import BranchOutcome, Candidate, ExploreResult, explore
from .functions import FunctionsAPI
from .records import Egress
from .sandbox import (
    CodeContext,
    ExecResult,
    Execution,
    FileInfo,
    Port,
    Result,
    Sandbox,
    SandboxCommands,
    SandboxFilesystem,
    get_default_client,
    set_default_client,
)
from .schedules import SchedulesAPI
from .snapshots import SnapshotsAPI
from .templates import Template, TemplateBuild, TemplatesAPI
from .tokens import Token
from .volumes import VolumesAPI

__all__ = [
    "APIConnectionError",
    "AppsAPI",
    "AsyncClient",
    "AsyncCodeContext",
    "AsyncSandbox",
    "AuthError",
    "BadRequestError",
    "BranchOutcome",
    "Candidate",
    "Client",
    "CmaConfig",
    "CodeContext",
    "CommandFailed",
    "ConnectionError",
    "CreateCancelled",
    "CreateRetryEvent",
    "DatabasesAPI",
    "Egress",
    "ExecInterrupted",
    "ExecResult",
    "Execution",
    "ExploreError",
    "ExploreResult",
    "FileInfo",
    "FunctionsAPI",
    "NotFoundError",
    "PandastackError",
    "Port",
    "Result",
    "Sandbox",
    "SandboxCommands",
    "SandboxFilesystem",
    "SandboxTimeout",
    "SchedulesAPI",
    "ServerError",
    "SnapshotsAPI",
    "Template",
    "TemplateBuild",
    "TemplateBuildError",
    "TemplatesAPI",
    "Token",
    "VolumesAPI",
    "Worker",
    "__version__",
    "explore",
    "get_default_async_client",
    "get_default_client",
    "set_default_async_client",
    "set_default_client",
]
