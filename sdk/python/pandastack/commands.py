# SPDX-License-Identifier: Apache-2.0
"""``sandbox.commands``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Mapping, Optional, Sequence, Union

from .records import ExecResult

if TYPE_CHECKING:
    from .sandbox import Sandbox


class SandboxCommands:
    """Commands of one sandbox."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox

    def run(
        self,
        cmd: Union[str, Sequence[str]],
        timeout: Optional[int] = None,
        *,
        env: Optional[Mapping[str, str]] = None,
        cwd: Optional[str] = None,
        user: Optional[str] = None,
        stdin: Optional[str] = None,
    ) -> ExecResult:
        """`Sandbox.exec`."""
        return self._sandbox.exec(
            cmd, timeout_seconds=timeout, env=env, cwd=cwd, user=user, stdin=stdin
        )
