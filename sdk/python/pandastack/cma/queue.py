# SPDX-License-Identifier: Apache-2.0
"""An environment's queue of work at Anthropic."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Optional
from urllib.parse import quote

import httpx

from .config import CmaConfig

ANTHROPIC_VERSION = "2023-06-01"
ANTHROPIC_BETA = "managed-agents-2026-04-01"

# The longest that the server holds a poll.
_BLOCK_MS = "999"


class KeyRefused(Exception):
    """The environment's key is not valid: no use in going on."""


@dataclass(frozen=True)
class Work:
    """One item: a turn of a session."""

    id: str
    session_id: str


class WorkQueue:
    """Takes items. Raises `httpx.HTTPError` when the queue cannot be reached."""

    def __init__(self, config: CmaConfig, http: Optional[httpx.Client] = None) -> None:
        self._base = (
            f"{config.anthropic_api.rstrip('/')}/v1/environments/"
            f"{quote(config.environment_id, safe='')}/work"
        )
        self._headers = {
            "Authorization": f"Bearer {config.environment_key}",
            "anthropic-version": ANTHROPIC_VERSION,
            "anthropic-beta": ANTHROPIC_BETA,
            "Anthropic-Worker-ID": config.worker_id,
        }
        self._http = http or httpx.Client(timeout=30.0)

    def poll(self) -> Optional[Work]:
        """The next item, or None when there is none for now."""
        url = f"{self._base}/poll"
        answer = self._http.get(url, params={"block_ms": _BLOCK_MS}, headers=self._headers)
        if answer.status_code == 401:
            raise KeyRefused("the environment key was refused: check ANTHROPIC_ENVIRONMENT_KEY")
        if answer.status_code in (204, 404):
            return None
        answer.raise_for_status()
        item: Any = answer.json() if answer.content else None
        if not isinstance(item, dict) or not item.get("id"):
            return None
        return Work(str(item["id"]), str((item.get("data") or {}).get("id") or ""))

    def acknowledge(self, work: Work) -> bool:
        """Takes an item off the queue; false when another worker was faster."""
        url = f"{self._base}/{quote(work.id, safe='')}/ack"
        return self._http.post(url, headers=self._headers).status_code == 200
