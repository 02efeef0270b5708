# SPDX-License-Identifier: Apache-2.0
"""Flows that make, find, change and end sandboxes. Sandboxes are dicts here, as the API sends
them; the clients wrap them in their own classes."""

from __future__ import annotations

from typing import Any, Dict, List, Mapping, Optional, Sequence

from ..exceptions import ServerError
from ..records import Egress
from . import egress as policies
from .answers import as_list, as_object, call, object_call, objects_call, void_call
from .capacity import Patience, create_call
from .wire import Flow, Reply, Request, path

Info = Dict[str, Any]

#: A snapshot of a large guest is written while the caller waits.
_SNAPSHOT_PATIENCE = 180.0


def create_body(
    template: str,
    cpu: Optional[int] = None,
    memory_mb: Optional[int] = None,
    metadata: Optional[Mapping[str, str]] = None,
    ttl_seconds: Optional[int] = None,
    persistent: bool = False,
    from_snapshot: Optional[str] = None,
    volumes: Optional[Sequence[Mapping[str, Any]]] = None,
    egress: Optional[Egress] = None,
    disk_mb: Optional[int] = None,
) -> Info:
    """The body of a create: what was asked for and nothing else."""
    body: Info = {"template": template}
    if persistent:
        body["persistent"] = True
    if metadata:
        body["metadata"] = dict(metadata)
    if volumes:
        body["volumes"] = [
            {"name": v["name"], "read_only": bool(v.get("read_only", v.get("readOnly", False)))}
            for v in volumes
        ]
    optional = {
        "cpu": cpu,
        "memory_mb": memory_mb,
        "disk_mb": disk_mb,
        "ttl_seconds": ttl_seconds,
        "from_snapshot": from_snapshot,
        "egress": None if egress is None else policies.body(egress),
    }
    body.update((name, value) for name, value in optional.items() if value is not None)
    return body


def create(body: Info, patience: Patience) -> Flow[Info]:
    """Makes a sandbox."""
    return _with_id((yield from create_call(Request("POST", "/sandboxes", json=body), patience)))


def get(sandbox_id: str) -> Flow[Info]:
    """One sandbox."""
    return _with_id((yield from call(Request("GET", path("sandboxes", sandbox_id)))))


def listing() -> Flow[List[Info]]:
    """All sandboxes of the key."""
    return objects_call(Request("GET", "/sandboxes"), "items")


def delete(sandbox_id: str) -> Flow[None]:
    """Ends a sandbox."""
    return void_call(Request("DELETE", path("sandboxes", sandbox_id)))


def fork(
    parent: str,
    metadata: Optional[Mapping[str, str]],
    patience: Patience,
    egress: Optional[Egress] = None,
) -> Flow[Info]:
    """Forks a sandbox once. The child is in ``sandbox``, first of ``children``, or the body."""
    body = _fork_body(metadata, egress)
    request = Request("POST", path("sandboxes", parent, "fork"), json=body or None)
    answer = as_object((yield from create_call(request, patience)))
    children = answer.get("children") or []
    child = answer.get("sandbox") or (children[0] if children else answer)
    return (yield from _child(child, parent))


def fork_tree(
    parent: str,
    count: int,
    metadata: Optional[Mapping[str, str]],
    patience: Patience,
    egress: Optional[Egress] = None,
) -> Flow[List[Info]]:
    """Forks a sandbox ``count`` times at one moment; fewer children are a partial success."""
    body: Info = {"count": count, **_fork_body(metadata, egress)}
    request = Request("POST", path("sandboxes", parent, "fork-tree"), json=body)
    reply = yield from create_call(request, patience)
    infos = []
    for child in as_list(reply, "children", "items", "sandboxes"):
        infos.append((yield from _child(child, parent)))
    return infos


def _fork_body(metadata: Optional[Mapping[str, str]], egress: Optional[Egress]) -> Info:
    body: Info = {}
    if metadata is not None:
        body["metadata"] = dict(metadata)
    if egress is not None:
        body["egress"] = policies.body(egress)
    return body


def promote(sandbox_id: str, cleanup_siblings: bool, tree_id: Optional[str]) -> Flow[Info]:
    """Makes a child independent of its fork tree."""
    body: Info = {"cleanup_siblings": cleanup_siblings}
    if tree_id is not None:
        body["tree_id"] = tree_id
    return object_call(Request("POST", path("sandboxes", sandbox_id, "promote"), json=body))


def act(sandbox_id: str, verb: str) -> Flow[None]:
    """``pause``, ``resume``, ``hibernate`` or ``wake``."""
    return void_call(Request("POST", path("sandboxes", sandbox_id, verb)))


def snapshot(sandbox_id: str) -> Flow[str]:
    """Writes a snapshot and gives its id."""
    where = path("sandboxes", sandbox_id, "snapshots")
    answer = yield from object_call(Request("POST", where, patience=_SNAPSHOT_PATIENCE))
    snapshot_id = answer.get("id") or answer.get("snapshot_id")
    if not snapshot_id:
        raise ServerError(f"the snapshot's answer holds no id: {answer!r}")
    return str(snapshot_id)


def lifecycle(sandbox_id: str) -> Flow[Info]:
    """How long a sandbox lives."""
    return object_call(Request("GET", path("sandboxes", sandbox_id, "lifecycle")))


def set_lifecycle(sandbox_id: str, change: Mapping[str, Any]) -> Flow[Info]:
    """Changes how long a sandbox lives."""
    where = path("sandboxes", sandbox_id, "lifecycle")
    return object_call(Request("PATCH", where, json=change))


def metrics(sandbox_id: str) -> Flow[Info]:
    """What a sandbox costs its host."""
    return object_call(Request("GET", path("sandboxes", sandbox_id, "metrics")))


def events(sandbox_id: str, tail: int) -> Flow[List[Info]]:
    """What happened to a sandbox."""
    where = path("sandboxes", sandbox_id, "events")
    return objects_call(Request("GET", where, params={"tail": str(tail)}), "events")


def _with_id(reply: Reply) -> Info:
    """A sandbox that cannot be addressed is worse than an error."""
    info = as_object(reply)
    if not info.get("id"):
        raise ServerError(f"the answer holds no sandbox: {info!r}")
    return info


def _child(child: Any, parent: str) -> Flow[Info]:
    """A fork's child with all its fields: some servers send only its id."""
    if isinstance(child, str):
        child = yield from get(child)
    if not isinstance(child, dict) or not child.get("id"):
        raise ServerError(f"the fork of {parent} gave no sandbox")
    metadata = {"fork_parent_id": parent, **(child.get("metadata") or {})}
    return {"status": "running", **child, "metadata": metadata}
