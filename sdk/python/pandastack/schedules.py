# SPDX-License-Identifier: Apache-2.0
"""Functions run by the clock: ``client.schedules``. A server may not offer them: see `_rest`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Dict, List, Optional

from ._rest import Rest, given

if TYPE_CHECKING:
    from .client import Client


class SchedulesAPI:
    """Schedules of functions, as cron expressions."""

    def __init__(self, client: Client) -> None:
        self._rest = Rest(client)

    def create(
        self, name: str, function_id: str, cron: str, *, paused: bool = False
    ) -> Dict[str, Any]:
        """Runs a function at the times of a cron expression."""
        body = {"name": name, "function_id": function_id, "cron": cron, "paused": paused}
        return self._rest.object("POST", "schedules", json=body)

    def list(self) -> List[Dict[str, Any]]:
        """All schedules."""
        return self._rest.objects("schedules")

    def get(self, schedule_id: str) -> Dict[str, Any]:
        """One schedule."""
        return self._rest.object("GET", "schedules", schedule_id)

    def update(
        self, schedule_id: str, *, cron: Optional[str] = None, paused: Optional[bool] = None
    ) -> Dict[str, Any]:
        """Changes what is given."""
        body = given(cron=cron, paused=paused)
        return self._rest.object("PATCH", "schedules", schedule_id, json=body)

    def delete(self, schedule_id: str) -> None:
        """Ends a schedule."""
        self._rest.delete("schedules", schedule_id)

    def trigger(self, schedule_id: str) -> Dict[str, Any]:
        """Runs it once, now."""
        return self._rest.object("POST", "schedules", schedule_id, "trigger", json={})

    def runs(self, schedule_id: str) -> List[Dict[str, Any]]:
        """What it has run."""
        return self._rest.objects("schedules", schedule_id, "runs")
