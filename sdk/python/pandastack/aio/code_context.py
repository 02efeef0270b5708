# SPDX-License-Identifier: Apache-2.0
"""Interpreters that keep their state, for asyncio."""

from __future__ import annotations

import logging
from types import TracebackType
from typing import TYPE_CHECKING, Optional, Type

from .._core import cells
from ..exceptions import PandastackError
from ..records import Execution

if TYPE_CHECKING:
    from .sandbox import AsyncSandbox

logger = logging.getLogger(__name__)


class AsyncCodeContext:
    """An interpreter in a sandbox: what one cell defines, the next one can use."""

    def __init__(self, sandbox: AsyncSandbox, session_id: str, language: str = "python") -> None:
        self._sandbox = sandbox
        self.id = session_id
        self.language = language

    async def run_code(self, code: str, timeout_seconds: Optional[float] = None) -> Execution:
        """Runs a cell."""
        flow = cells.run_cell(self._sandbox.id, self.id, code, timeout_seconds)
        return await self._sandbox.client._run(flow)

    async def close(self) -> None:
        """Ends the interpreter."""
        await self._sandbox.client._run(cells.close_context(self._sandbox.id, self.id))

    async def __aenter__(self) -> AsyncCodeContext:
        return self

    async def __aexit__(
        self,
        exc_type: Optional[Type[BaseException]],
        exc: Optional[BaseException],
        tb: Optional[TracebackType],
    ) -> None:
        try:
            await self.close()
        except PandastackError as error:
            # It ends with its sandbox at the latest: not worth losing the block's result for.
            logger.warning("code context %s could not be closed: %s", self.id, error)
