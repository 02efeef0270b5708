# SPDX-License-Identifier: Apache-2.0
"""What `Sandbox.snapshot` wrote: ``client.snapshots``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Dict, List, Optional

from ._core import accounts

if TYPE_CHECKING:
    from .client import Client


class SnapshotsAPI:
    """Snapshots of sandboxes. `Sandbox.create` with ``from_snapshot`` starts from one."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def list(self, *, sandbox_id: Optional[str] = None) -> List[Dict[str, Any]]:
        """Snapshots, newest first; of one sandbox or of all."""
        return self._client._run(accounts.snapshots(sandbox_id))

    def get(self, snapshot_id: str) -> Dict[str, Any]:
        """One snapshot."""
        return self._client._run(accounts.snapshot(snapshot_id))

    def delete(self, snapshot_id: str) -> None:
        """Deletes a snapshot. Sandboxes made from it live on."""
        self._client._run(accounts.delete_snapshot(snapshot_id))
