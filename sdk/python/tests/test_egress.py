# SPDX-License-Identifier: Apache-2.0
"""What a sandbox may reach, and what it tried to: sync and async."""

from __future__ import annotations

import asyncio
import json
from typing import Any, Dict, List

import pytest

from pandastack import (
    AsyncClient,
    AsyncSandbox,
    BadRequestError,
    Client,
    NotFoundError,
    Sandbox,
    ServerError,
)

from .fake import HERE, KEY, SANDBOX, Answer, Fake, Stream

PYPI: Dict[str, Any] = {"allow": [{"host": "pypi.org", "ports": [443]}]}
EGRESS = f"{HERE}/egress"
LOG = f"{HERE}/egress/log"


def entry(number: int) -> Dict[str, Any]:
    return {
        "number": number,
        "time": "2026-01-02T03:04:05Z",
        "kind": "dns",
        "verdict": "deny",
        "name": "\u00e9.test",
        "reason": "no rule allows this name",
    }


def events(*numbers: int) -> bytes:
    blocks = (f"id: {n}\ndata: {json.dumps(entry(n))}\n\n" for n in numbers)
    return "".join(blocks).encode()


def test_a_sandbox_is_made_with_a_policy_or_without(fake: Fake, client: Client) -> None:
    fake.on("POST", "/v1/sandboxes", Answer(201, {**SANDBOX, "egress": PYPI}))
    made = Sandbox.create(egress=PYPI, client=client)
    assert made.egress == PYPI
    client.sandboxes.create(egress="none")
    client.sandboxes.create()
    sent = [seen.json.get("egress", "absent") for seen in fake.requests("POST", "/v1/sandboxes")]
    assert sent == [PYPI, "none", "absent"]


def test_what_is_no_policy_is_not_sent(fake: Fake, sandbox: Sandbox) -> None:
    wrong: Any
    for wrong in (["pypi.org"], 5, True):
        with pytest.raises(TypeError, match="a mapping with a list"):
            Sandbox.create(egress=wrong, client=sandbox.client)
        with pytest.raises(TypeError, match="a mapping with a list"):
            sandbox.set_egress(wrong)
    assert fake.seen == []


def test_a_policy_is_read_and_replaced(fake: Fake, sandbox: Sandbox) -> None:
    fake.on("GET", EGRESS, Answer(200, "none"))
    assert sandbox.get_egress() == "none"
    fake.on("PUT", EGRESS, Answer(200, PYPI), Answer(200, "none"))
    asked = {"allow": [{"host": "PyPI.org", "ports": [443]}]}
    assert sandbox.set_egress(asked) == PYPI
    assert sandbox.egress == PYPI, "as the server spells it"
    assert sandbox.set_egress("none") == "none"
    assert str(sandbox.egress) == "none"
    assert [seen.json for seen in fake.requests("PUT", EGRESS)] == [asked, "none"]
    assert fake.seen[-1].headers["content-type"] == "application/json"


def test_a_policy_that_was_not_changed_is_an_error(fake: Fake, sandbox: Sandbox) -> None:
    before = sandbox.egress
    text = "egress/allow/0/ports/0: a port is 1 to 65535"
    fake.on("PUT", EGRESS, Answer(400, {"error": text}))
    with pytest.raises(BadRequestError, match="egress/allow/0/ports/0"):
        sandbox.set_egress({"allow": [{"host": "a.b", "ports": [0]}]})
    away = Answer(503, {"error": "the policy is not in force"}, {"Retry-After": "5"})
    fake.on("PUT", EGRESS, away)
    with pytest.raises(ServerError, match="not in force"):
        sandbox.set_egress("none")
    assert len(fake.requests("PUT", EGRESS)) == 2, "nothing is sent again by itself"
    assert sandbox.egress == before
    fake.on("PUT", EGRESS, Answer(200, [1]))
    with pytest.raises(ServerError, match="holds no policy"):
        sandbox.set_egress("none")
    with pytest.raises(NotFoundError):
        sandbox.get_egress()


def test_children_may_be_told_otherwise(fake: Fake, sandbox: Sandbox) -> None:
    child = {**SANDBOX, "id": "2b9d6bcd-bbfd-4b2d-9b5d-ab8dfbbd4bed", "egress": PYPI}
    fake.on("POST", f"{HERE}/fork", Answer(201, {"sandbox": child, "children": [child]}))
    fake.on("POST", f"{HERE}/fork-tree", Answer(201, {"children": [child, child]}))
    assert sandbox.fork(egress=PYPI).egress == PYPI
    sandbox.fork()
    sandbox.client.sandboxes.fork(sandbox.id, {"a": "b"}, egress="none")
    sandbox.fork_tree(2, egress=PYPI)
    sandbox.client.sandboxes.fork_tree(sandbox.id, 2)
    forks = [seen.body for seen in fake.requests("POST", f"{HERE}/fork")]
    assert json.loads(forks[0]) == {"egress": PYPI}
    assert forks[1] == b""
    assert json.loads(forks[2]) == {"metadata": {"a": "b"}, "egress": "none"}
    trees = [seen.json for seen in fake.requests("POST", f"{HERE}/fork-tree")]
    assert trees == [{"count": 2, "egress": PYPI}, {"count": 2}]


def test_the_log_is_read_from_any_place(fake: Fake, sandbox: Sandbox) -> None:
    fake.on("GET", LOG, Answer(200, {"entries": [entry(1), entry(2)], "next": 2}))
    assert sandbox.egress_log() == [entry(1), entry(2)]
    sandbox.egress_log(5, after=0)
    assert [seen.query for seen in fake.requests("GET", LOG)] == [{}, {"tail": "5", "after": "0"}]


def test_the_log_is_followed_to_its_end(fake: Fake, sandbox: Sandbox) -> None:
    whole = events(1, 2, 3)
    noise = [b": ping\n\n", b"data: 5\n\n", b"data: x\n\n"]
    fake.on("GET", LOG, Stream([whole[:50], whole[50:51], whole[51:], *noise]))
    assert list(sandbox.follow_egress_log(tail=3)) == [entry(1), entry(2), entry(3)]
    seen = fake.only("GET", LOG)
    assert seen.query == {"tail": "3", "follow": "true"}
    assert seen.headers["accept"] == "text/event-stream"
    fake.on("GET", LOG, Stream([events(4), b'event: error\ndata: {"error": "gone"}\n\n']))
    entries = sandbox.follow_egress_log(after=3)
    assert next(entries) == entry(4)
    with pytest.raises(ServerError, match="gone"):
        next(entries)


def test_the_same_for_asyncio(fake: Fake) -> None:
    async def run() -> None:
        async with AsyncClient(fake.url, KEY, timeout=5) as client:
            fake.on("POST", "/v1/sandboxes", Answer(201, {**SANDBOX, "egress": PYPI}))
            made = await AsyncSandbox.create(egress=PYPI, client=client)
            assert made.egress == PYPI
            await client.sandboxes.create(egress="none")
            fake.on("PUT", EGRESS, Answer(200, "none"))
            assert await made.set_egress("none") == "none"
            assert str(made.egress) == "none"
            fake.on("GET", EGRESS, Answer(200, PYPI))
            assert await made.get_egress() == PYPI
            fake.on("GET", LOG, Answer(200, {"entries": [entry(1)], "next": 1}))
            assert await made.egress_log(tail=1) == [entry(1)]
            fake.on("GET", LOG, Stream([events(1), events(2)]))
            seen: List[Dict[str, Any]] = []
            async for one in made.follow_egress_log(after=0):
                seen.append(one)
            assert seen == [entry(1), entry(2)]
            child = {**SANDBOX, "egress": "none"}
            fake.on("POST", f"{HERE}/fork", Answer(201, {"sandbox": child}))
            fake.on("POST", f"{HERE}/fork-tree", Answer(201, {"children": [child]}))
            assert (await made.fork(egress="none")).egress == "none"
            await made.fork_tree(1, egress="none")

    asyncio.run(run())
    sent = [seen.json["egress"] for seen in fake.requests("POST", "/v1/sandboxes")]
    assert sent == [PYPI, "none"]
    assert fake.only("POST", f"{HERE}/fork").json == {"egress": "none"}
    assert fake.only("POST", f"{HERE}/fork-tree").json == {"count": 1, "egress": "none"}
