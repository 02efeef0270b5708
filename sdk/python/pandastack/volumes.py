# SPDX-License-Identifier: Apache-2.0
"""Disks that outlive sandboxes: ``client.volumes``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Dict, List

from ._core import accounts

if TYPE_CHECKING:
    from .client import Client


class VolumesAPI:
    """Named disks. Attach them with ``volumes=[{"name": ..., "read_only": ...}]`` of a create."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def create(self, name: str, size_mb: int) -> Dict[str, Any]:
        """Makes a volume. A quota that is used up raises `BadRequestError` with status 429."""
        return self._client._run(accounts.create_volume(name, size_mb))

    def list(self) -> List[Dict[str, Any]]:
        """All volumes."""
        return self._client._run(accounts.volumes())

    def get(self, name: str) -> Dict[str, Any]:
        """One volume."""
        return self._client._run(accounts.volume(name))

    def delete(self, name: str) -> None:
        """Deletes a volume and what is on it; refused while a sandbox has it."""
        self._client._run(accounts.delete_volume(name))
