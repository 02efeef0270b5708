# SPDX-License-Identifier: Apache-2.0
"""The client that `AsyncSandbox.create` and its like use when none is named.

There is one per event loop: a connection belongs to the loop that opened it, and each
``asyncio.run`` has a loop of its own.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Optional
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from .client import AsyncClient

_defaults: WeakKeyDictionary[asyncio.AbstractEventLoop, AsyncClient] = WeakKeyDictionary()


def get_default_async_client() -> AsyncClient:
    """The running loop's default client; made when first needed."""
    from .client import AsyncClient  # client.py needs sandbox.py, which needs this module

    loop = asyncio.get_running_loop()
    client = _defaults.get(loop)
    if client is None:
        client = _defaults[loop] = AsyncClient()
    return client


def set_default_async_client(client: Optional[AsyncClient]) -> None:
    """Replaces the running loop's default client; ``None`` makes the next use build a new one."""
    loop = asyncio.get_running_loop()
    if client is None:
        _defaults.pop(loop, None)
    else:
        _defaults[loop] = client
