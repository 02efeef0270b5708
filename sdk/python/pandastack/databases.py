# SPDX-License-Identifier: Apache-2.0
"""Databases in sandboxes: ``client.databases``. A server may not offer them: see `_rest`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Dict, List, Optional

from ._rest import Rest, given

if TYPE_CHECKING:
    from .client import Client

_FAILOVER_SECONDS = 300.0
_ROTATION_SECONDS = 180.0


class DatabasesAPI:
    """PostgreSQL databases, each in a sandbox of its own."""

    def __init__(self, client: Client) -> None:
        self._rest = Rest(client)

    def create(
        self,
        *,
        cpu: Optional[int] = None,
        memory_mb: Optional[int] = None,
        label: Optional[str] = None,
        size: Optional[str] = None,
        always_on: Optional[bool] = None,
        timeout: float = 180.0,
    ) -> Dict[str, Any]:
        """Makes a database and waits until it takes connections. ``size`` is its memory class,
        ``1g``, ``4g`` or ``16g``; `clone` is the way to another one."""
        body = given(cpu=cpu, memory_mb=memory_mb, label=label, size=size, always_on=always_on)
        created = self._rest.object("POST", "databases", json=body)
        return self.wait_until_ready(created["id"], timeout=timeout)

    def wait_until_ready(self, database_id: str, *, timeout: float = 180.0) -> Dict[str, Any]:
        """Waits until a database takes connections. Raises `TimeoutError`, or `RuntimeError`
        when it has failed."""
        deadline = time.monotonic() + timeout
        delay = 1.0
        while True:
            database = self.get(database_id)
            status = str(database.get("status", ""))
            if status == "running" and database.get("connection_url"):
                return database
            if status in ("failed", "error"):
                reason = database.get("error") or status
                raise RuntimeError(f"database {database_id} failed: {reason}")
            if time.monotonic() >= deadline:
                raise TimeoutError(f"database {database_id} is {status!r} after {timeout:.0f} s")
            time.sleep(delay)
            delay = min(delay * 1.5, 5.0)

    def list(self) -> List[Dict[str, Any]]:
        """All databases, without their passwords."""
        return self._rest.objects("databases")

    def get(self, database_id: str) -> Dict[str, Any]:
        """One database, with what is needed to connect."""
        return self._rest.object("GET", "databases", database_id)

    def delete(self, database_id: str) -> None:
        """Deletes a database and everything in it."""
        self._rest.delete("databases", database_id)

    def connection(self, database_id: str) -> Dict[str, str]:
        """The addresses of a running database: ``{connection_url, broker_url}``."""
        return self._rest.object("GET", "databases", database_id, "connection")

    def failover(self, database_id: str) -> Dict[str, Any]:
        """Restores a failed database from its backup on another host. Takes minutes."""
        return self._rest.object(
            "POST", "databases", database_id, "failover", patience=_FAILOVER_SECONDS
        )

    def update(self, database_id: str, *, always_on: Optional[bool] = None) -> Dict[str, Any]:
        """Whether it stays up without connections."""
        body = given(always_on=always_on)
        return self._rest.object("PATCH", "databases", database_id, json=body)

    def wake(self, database_id: str) -> Dict[str, Any]:
        """Starts to wake a hibernated database; `wait_until_ready` waits for it."""
        return self._rest.object("POST", "databases", database_id, "wake")

    def clone(
        self,
        database_id: str,
        *,
        label: Optional[str] = None,
        target_time: Optional[str] = None,
        size: Optional[str] = None,
        wait: bool = True,
        timeout: float = 600.0,
    ) -> Dict[str, Any]:
        """A new database with the data of another one, as of ``target_time`` (RFC 3339) if that
        is given, in another memory class if ``size`` is."""
        body = given(label=label, target_time=target_time, size=size)
        created = self._rest.object("POST", "databases", database_id, "clone", json=body)
        return self.wait_until_ready(created["id"], timeout=timeout) if wait else created

    def reset_credentials(self, database_id: str) -> Dict[str, Any]:
        """Replaces the password and the broker's token; whoever uses the old ones is cut off."""
        changed = self._rest.object(
            "POST", "databases", database_id, "reset-credentials", patience=_ROTATION_SECONDS
        )
        return changed if changed.get("connection_url") else self.get(database_id)
