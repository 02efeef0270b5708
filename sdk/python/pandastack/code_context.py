# SPDX-License-Identifier: Apache-2.0
"""Interpreters that keep their state."""

from __future__ import annotations

import logging
from types import TracebackType
from typing import TYPE_CHECKING, Optional, Type

from ._core import cells
from .exceptions import PandastackError
from .records import Execution

if TYPE_CHECKING:
    from .sandbox import Sandbox

logger = logging.getLogger(__name__)


class CodeContext:
    """An interpreter in a sandbox: what one cell defines, the next one can use.

    As a context manager it is closed at the end of the block.
    """

    def __init__(self, sandbox: Sandbox, session_id: str, language: str = "python") -> None:
        self._sandbox = sandbox
        self.id = session_id
        self.language = language

    def run_code(self, code: str, timeout_seconds: Optional[float] = None) -> Execution:
        """Runs a cell. Raises `SandboxTimeout`; a cell that raises is an `Execution` with
        ``error``."""
        flow = cells.run_cell(self._sandbox.id, self.id, code, timeout_seconds)
        return self._sandbox.client._run(flow)

    def close(self) -> None:
        """Ends the interpreter."""
        self._sandbox.client._run(cells.close_context(self._sandbox.id, self.id))

    def __enter__(self) -> CodeContext:
        return self

    def __exit__(
        self,
        exc_type: Optional[Type[BaseException]],
        exc: Optional[BaseException],
        tb: Optional[TracebackType],
    ) -> None:
        try:
            self.close()
        except PandastackError as error:
            # It ends with its sandbox at the latest: not worth losing the block's result for.
            logger.warning("code context %s could not be closed: %s", self.id, error)
