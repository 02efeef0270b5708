# SPDX-License-Identifier: Apache-2.0
"""Where the server is and which key opens it.

Arguments win over the environment (``PANDASTACK_API``, ``PANDASTACK_API_KEY``), which wins over
``~/.config/pandastack/config.json``: the file that a server on this machine writes for its user.
"""

from __future__ import annotations

import ipaddress
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Mapping, Optional
from urllib.parse import urlsplit

import httpx

#: Asked when nothing names a server: one on this machine, on its default port.
DEFAULT_API_URL = "http://127.0.0.1:7878"


@dataclass(frozen=True)
class Settings:
    """A server's address, without a slash at the end, and the key for it."""

    api_url: str
    api_key: Optional[str]

    @classmethod
    def resolve(cls, api_url: Optional[str], api_key: Optional[str]) -> Settings:
        """Fills in what the caller left out."""
        file = _config_file()
        url = api_url or os.getenv("PANDASTACK_API") or _text(file, "api_url") or DEFAULT_API_URL
        if api_key is None:
            api_key = os.getenv("PANDASTACK_API_KEY") or _text(file, "token", "apiKey", "api_key")
        # A key read from a file often brings its newline along, which no header may contain.
        return cls(url.rstrip("/"), api_key.strip() if api_key else None)

    def pool(self) -> Dict[str, Any]:
        """Arguments for a connection pool to this server.

        No limit on parallel calls, and no proxy of the environment for a server on this machine:
        a proxy elsewhere would look for it on its own.
        """
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=32)
        return {"limits": limits, "trust_env": not self._is_local()}

    def _is_local(self) -> bool:
        return is_this_machine(urlsplit(self.api_url).hostname or "")


def is_this_machine(host: str) -> bool:
    """Whether a host of an address is the machine that we are on."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _config_file() -> Mapping[str, Any]:
    """The file's object; empty when it is missing or not what it should be."""
    try:
        text = (Path.home() / ".config" / "pandastack" / "config.json").read_text("utf-8")
        value = json.loads(text)
    except (OSError, RuntimeError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _text(file: Mapping[str, Any], *keys: str) -> Optional[str]:
    """The first of these keys that holds a non-empty string."""
    values = (file.get(key) for key in keys)
    return next((value for value in values if isinstance(value, str) and value), None)
