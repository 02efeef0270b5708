# SPDX-License-Identifier: Apache-2.0
"""The client that `Sandbox.create` and its like use when none is named."""

from __future__ import annotations

import atexit
from typing import TYPE_CHECKING, Optional

if TYPE_CHECKING:
    from .client import Client

_default: Optional[Client] = None


def get_default_client() -> Client:
    """The default client; made from the environment and the config file when first needed."""
    global _default
    if _default is None:
        from .client import Client  # client.py needs sandbox.py, which needs this module

        _default = Client()
        atexit.register(_default.close)
    return _default


def set_default_client(client: Optional[Client]) -> None:
    """Replaces the default client; ``None`` makes the next use build a new one."""
    global _default
    _default = client
