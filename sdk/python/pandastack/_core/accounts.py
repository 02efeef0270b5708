# SPDX-License-Identifier: Apache-2.0
"""Flows on what belongs to a user rather than to a sandbox: tokens, volumes, snapshots."""

from __future__ import annotations

from typing import Any, Dict, List, Optional

from ..records import Token
from .answers import object_call, objects_call, void_call
from .wire import Flow, Request, path

Info = Dict[str, Any]


def me() -> Flow[Info]:
    """Who the key belongs to."""
    return object_call(Request("GET", "/me"))


def tokens() -> Flow[List[Token]]:
    """All tokens, without the keys themselves."""
    items = yield from objects_call(Request("GET", "/me/tokens"), "items")
    return [Token.from_dict(item) for item in items]


def create_token(name: str, expires_in_days: Optional[int]) -> Flow[Token]:
    """A new token with its key."""
    body: Info = {"label": name}
    if expires_in_days is not None:
        body["expires_in_days"] = expires_in_days
    return Token.from_dict((yield from object_call(Request("POST", "/me/tokens", json=body))))


def revoke_token(prefix: str) -> Flow[None]:
    """Ends a token."""
    return void_call(Request("DELETE", path("me", "tokens", prefix)))


def volumes() -> Flow[List[Info]]:
    """All volumes."""
    return objects_call(Request("GET", "/volumes"), "items")


def create_volume(name: str, size_mb: int) -> Flow[Info]:
    """Makes a volume."""
    return object_call(Request("POST", "/volumes", json={"name": name, "size_mb": size_mb}))


def volume(name: str) -> Flow[Info]:
    """One volume."""
    return object_call(Request("GET", path("volumes", name)))


def delete_volume(name: str) -> Flow[None]:
    """Deletes a volume and what is on it."""
    return void_call(Request("DELETE", path("volumes", name)))


def snapshots(sandbox_id: Optional[str]) -> Flow[List[Info]]:
    """Snapshots, newest first; of one sandbox or of all."""
    params = {"sandbox_id": sandbox_id} if sandbox_id else {}
    return objects_call(Request("GET", "/snapshots", params=params), "snapshots", "items")


def snapshot(snapshot_id: str) -> Flow[Info]:
    """One snapshot."""
    return object_call(Request("GET", path("snapshots", snapshot_id)))


def delete_snapshot(snapshot_id: str) -> Flow[None]:
    """Deletes a snapshot."""
    return void_call(Request("DELETE", path("snapshots", snapshot_id)))
