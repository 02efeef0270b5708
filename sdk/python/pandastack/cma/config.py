# SPDX-License-Identifier: Apache-2.0
"""What a worker needs to know."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, List

from .._core.config import DEFAULT_API_URL, Settings


def _worker_id() -> str:
    return f"pandastack-{socket.gethostname()}"


@dataclass
class CmaConfig:
    """Configuration of a `Worker`. The first three have no default."""

    environment_id: str
    environment_key: str
    pandastack_token: str
    pandastack_api: str = DEFAULT_API_URL
    anthropic_api: str = "https://api.anthropic.com"
    template: str = "claude-agent"
    #: What becomes of a sandbox between turns: ``hibernate``, ``running`` or ``delete``.
    on_idle: str = "hibernate"
    #: Each session's outputs go to a directory of their own in here.
    outputs_dir: Path = field(default_factory=lambda: Path("outputs"))
    #: Ends a sandbox that no worker looks after any more.
    sandbox_ttl_seconds: int = 3600
    #: A runner is stopped after this long.
    max_session_seconds: int = 3600
    worker_id: str = field(default_factory=_worker_id)
    client_timeout: float = 60.0

    @classmethod
    def from_env(cls, **overrides: object) -> CmaConfig:
        """A configuration from the environment; overrides that are not ``None`` win.

        ``ANTHROPIC_ENVIRONMENT_ID``, ``ANTHROPIC_ENVIRONMENT_KEY``, ``ANTHROPIC_BASE_URL``,
        ``CMA_TEMPLATE``, ``CMA_ON_IDLE``, ``CMA_OUTPUTS_DIR``, ``CMA_SANDBOX_TTL_SECONDS``,
        ``CMA_MAX_SESSION_SECONDS``, ``CMA_WORKER_ID``; the server and its key as for `Client`.
        """
        server = Settings.resolve(None, None)
        values: Dict[str, Any] = {
            "environment_id": os.getenv("ANTHROPIC_ENVIRONMENT_ID", ""),
            "environment_key": os.getenv("ANTHROPIC_ENVIRONMENT_KEY", ""),
            "pandastack_token": server.api_key or "",
            "pandastack_api": server.api_url,
        }
        for variable, (name, kind) in _OPTIONAL.items():
            text = os.getenv(variable)
            if text:
                values[name] = kind(text)
        values.update((name, value) for name, value in overrides.items() if value is not None)
        return cls(**values)

    def missing_required(self) -> List[str]:
        """The variables of the fields that have to be set and are not."""
        required = {
            "ANTHROPIC_ENVIRONMENT_ID": self.environment_id,
            "ANTHROPIC_ENVIRONMENT_KEY": self.environment_key,
            "PANDASTACK_API_KEY": self.pandastack_token,
        }
        return [name for name, value in required.items() if not value]


_OPTIONAL: Dict[str, Any] = {
    "ANTHROPIC_BASE_URL": ("anthropic_api", str),
    "CMA_TEMPLATE": ("template", str),
    "CMA_ON_IDLE": ("on_idle", str),
    "CMA_OUTPUTS_DIR": ("outputs_dir", Path),
    "CMA_SANDBOX_TTL_SECONDS": ("sandbox_ttl_seconds", int),
    "CMA_MAX_SESSION_SECONDS": ("max_session_seconds", int),
    "CMA_WORKER_ID": ("worker_id", str),
}
