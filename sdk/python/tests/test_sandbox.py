# SPDX-License-Identifier: Apache-2.0
"""Sandboxes as objects: made, listed, changed, ended."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from pandastack import Client, NotFoundError, Sandbox, ServerError, set_default_client

from .fake import HERE, KEY, SANDBOX, Answer, Fake

PACKAGE_ROOT = Path(__file__).parents[1]


def test_create_sends_what_was_asked_for_and_nothing_else(fake: Fake, client: Client) -> None:
    client.sandboxes.create()
    Sandbox.create(
        "base",
        cpu=2,
        memory_mb=1024,
        disk_mb=4096,
        metadata={"a": "b"},
        ttl_seconds=0,
        persistent=True,
        from_snapshot="snap",
        volumes=[{"name": "v"}, {"name": "w", "readOnly": True}],
        client=client,
    )
    small, full = (seen.json for seen in fake.requests("POST", "/v1/sandboxes"))
    assert small == {"template": "code-interpreter"}
    assert full == {
        "template": "base",
        "cpu": 2,
        "memory_mb": 1024,
        "disk_mb": 4096,
        "metadata": {"a": "b"},
        "ttl_seconds": 0,
        "persistent": True,
        "from_snapshot": "snap",
        "volumes": [{"name": "v", "read_only": False}, {"name": "w", "read_only": True}],
    }


def test_the_fields_of_a_sandbox(client: Client) -> None:
    made = client.sandboxes.create()
    for name in set(SANDBOX) - {"something_new"}:
        assert getattr(made, name) == SANDBOX[name], name
    assert (made.engine, made.isolation, made.egress) == ("qemu", "emulated", "none")
    assert made.end_reason is None
    assert KEY not in repr(made)


@pytest.mark.parametrize("sent", [{}, {"cpu": None, "memory_mb": None, "metadata": None}])
def test_a_sparse_answer_is_good_enough(client: Client, sent: Any) -> None:
    made = Sandbox.from_dict({"id": "x", **sent}, client, persistent=True)
    assert (made.cpu, made.memory_mb, made.status) == (1, 512, "unknown")
    assert made.metadata == {}
    assert made.persistent


def test_an_answer_without_a_sandbox_is_an_error(fake: Fake, client: Client) -> None:
    fake.on("POST", "/v1/sandboxes", Answer(201, {}))
    with pytest.raises(ServerError, match="holds no sandbox"):
        client.sandboxes.create()
    fake.on("POST", "/v1/sandboxes", Answer(201, b"<html>"))
    with pytest.raises(ServerError, match="expected an object"):
        client.sandboxes.create()


@pytest.mark.parametrize("body", [[SANDBOX], {"items": [SANDBOX]}])
def test_list(fake: Fake, client: Client, body: Any) -> None:
    fake.on("GET", "/v1/sandboxes", Answer(200, body))
    set_default_client(client)
    assert [s.id for s in Sandbox.list()] == [SANDBOX["id"]]
    assert Sandbox.get(SANDBOX["id"]) == client.sandboxes.list()[0]


def test_a_with_block_kills(fake: Fake, client: Client) -> None:
    with client.sandboxes.create() as made:
        assert fake.requests("DELETE", HERE) == []
    assert fake.only("DELETE", HERE)
    assert made.status == "deleted"


def test_a_with_block_leaves_a_persistent_one(fake: Fake, client: Client) -> None:
    fake.on("POST", "/v1/sandboxes", Answer(201, {**SANDBOX, "persistent": True}))
    with client.sandboxes.create(persistent=True):
        pass
    assert fake.requests("DELETE", HERE) == []


def test_one_that_is_gone_is_killed_already(fake: Fake, sandbox: Sandbox) -> None:
    fake.on("DELETE", HERE, Answer(204), Answer(404, {"error": "sandbox not found"}))
    sandbox.kill()
    sandbox.kill()
    assert len(fake.requests("DELETE", HERE)) == 2
    with pytest.raises(NotFoundError):
        sandbox.client.sandboxes.delete(sandbox.id)


def test_a_failed_kill_does_not_hide_what_went_wrong(
    fake: Fake, sandbox: Sandbox, caplog: pytest.LogCaptureFixture
) -> None:
    fake.on("DELETE", HERE, Answer(500, {"error": "stuck"}))
    with pytest.raises(ServerError, match="stuck"), sandbox:
        pass
    with caplog.at_level(logging.WARNING), pytest.raises(KeyError, match="mine"), sandbox:
        raise KeyError("mine")
    assert "could not be killed: stuck" in caplog.text


def test_lifecycle(fake: Fake, sandbox: Sandbox) -> None:
    where = f"{HERE}/lifecycle"
    state = {"ttl_seconds": 60, "persistent": True, "idle_seconds": 1}
    fake.on("GET", where, Answer(200, state))
    fake.on("PATCH", where, Answer(200, state))
    assert sandbox.lifecycle() == sandbox.set_ttl(60) == sandbox.set_persistent(True) == state
    assert [s.json for s in fake.requests("PATCH", where)] == [
        {"ttl_seconds": 60},
        {"persistent": True},
    ]
    assert sandbox.persistent
    assert sandbox.ttl_seconds == 60


def test_a_refused_change_changes_nothing_here(fake: Fake, sandbox: Sandbox) -> None:
    fake.on("PATCH", f"{HERE}/lifecycle", Answer(500, {"error": "no"}))
    with pytest.raises(ServerError):
        sandbox.set_persistent(True)
    assert not sandbox.persistent


def test_pause_resume_hibernate_wake(fake: Fake, sandbox: Sandbox) -> None:
    fake.on("POST", f"{HERE}/pause", Answer(204))
    fake.on("POST", f"{HERE}/resume", Answer(204))
    fake.on("POST", f"{HERE}/hibernate", Answer(200, {"status": "hibernated"}))
    fake.on("POST", f"{HERE}/wake", Answer(200, {"status": "running"}))
    steps = (
        (sandbox.pause, "paused"),
        (sandbox.resume, "running"),
        (sandbox.hibernate, "hibernated"),
        (sandbox.wake, "running"),
    )
    for step, status in steps:
        step()
        assert sandbox.status == status
    assert {seen.headers["content-length"] for seen in fake.seen} == {"0"}


@pytest.mark.parametrize("key", ["id", "snapshot_id"])
def test_snapshot(fake: Fake, sandbox: Sandbox, key: str) -> None:
    fake.on("POST", f"{HERE}/snapshots", Answer(201, {key: "snap"}))
    assert sandbox.snapshot() == "snap"
    fake.on("POST", f"{HERE}/snapshots", Answer(201, {}))
    with pytest.raises(ServerError, match="no id"):
        sandbox.snapshot()


def test_refresh_metrics_and_events(fake: Fake, sandbox: Sandbox) -> None:
    fake.on("GET", HERE, Answer(200, {**SANDBOX, "status": "failed", "end_reason": "ttl"}))
    fake.on("GET", f"{HERE}/metrics", Answer(200, {"threads": 4}))
    assert sandbox.refresh() is sandbox
    assert (sandbox.status, sandbox.end_reason) == ("failed", "ttl")
    assert sandbox.metrics() == {"threads": 4}
    fake.on("GET", f"{HERE}/events", Answer(200, {"events": [{"type": "sandbox.created"}]}))
    assert sandbox.events(5) == [{"type": "sandbox.created"}]
    assert fake.seen[-1].query == {"tail": "5"}


def test_ports(fake: Fake, sandbox: Sandbox) -> None:
    where = f"{HERE}/ports"
    listed = {"port": 8000, "listening": True, "source": "user", "proxy_url": "/p", "label": "web"}
    fake.on("GET", where, Answer(200, {"ports": [listed, 9000]}))
    fake.on("POST", where, Answer(201, listed))
    fake.on("DELETE", f"{where}/8000", Answer(204))
    fake.on("POST", f"{HERE}/preview-token", Answer(200, {"url": "http://x/p/t"}))
    assert [(p.port, p.label, p.source) for p in sandbox.ports()] == [
        (8000, "web", "user"),
        (9000, None, "detected"),
    ]
    assert sandbox.expose_port(8000, "web").proxy_url == "/p"
    assert fake.only("POST", where).json == {"port": 8000, "label": "web"}
    public = {**listed, "public": True, "preview_url": "http://8000-x.localhost"}
    fake.on("POST", where, Answer(201, public))
    port = sandbox.expose_port(8000, public=True)
    assert (port.public, port.preview_url) == (True, "http://8000-x.localhost")
    assert fake.requests("POST", where)[-1].json == {"port": 8000, "public": True}
    fake.on("GET", f"{HERE}/traffic-token", Answer(200, {"traffic_token": "pdt_1"}))
    fake.on("POST", f"{HERE}/traffic-token", Answer(200, {"traffic_token": "pdt_2"}))
    assert sandbox.traffic_token() == "pdt_1"
    assert sandbox.traffic_token(rotate=True) == "pdt_2"
    sandbox.close_port(8000)
    assert sandbox.preview_token(8000, paths=["/a"])["url"] == "http://x/p/t"
    sent = fake.only("POST", f"{HERE}/preview-token").json
    assert sent == {"port": 8000, "ttl_seconds": 3600, "paths": ["/a"]}
    assert list(sandbox.preview_urls()) == [8000, 9000]


def test_preview_urls_are_made_here(
    sandbox: Sandbox, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"8000-{sandbox.id}"
    here = f"{name}.localhost:{urlsplit(client.api_url).port}"
    assert sandbox.preview_url(8000) == f"http://{here}"
    client.api_url = "https://api.example.test:8443/v1"
    assert sandbox.preview_url(8000, scheme="http") == f"http://{name}.example.test"
    monkeypatch.setenv("PANDASTACK_PREVIEW_HOST", ".env.test")
    assert sandbox.preview_url(8000) == f"https://{name}.env.test"
    monkeypatch.setenv("PANDASTACK_PREVIEW_HOST", "http://env.test:81/")
    assert sandbox.preview_url(8000) == f"http://{name}.env.test:81"
    client.preview_host = "mine.test:8080"
    assert sandbox.preview_url(8000) == f"https://{name}.mine.test:8080"
    for port in (0, 65536, "80"):
        with pytest.raises(ValueError, match="1-65535"):
            sandbox.preview_url(port)  # type: ignore[arg-type]


def test_the_sample_runs_to_the_letter(fake: Fake, tmp_path: Path) -> None:
    sample = """\
from pandastack import Sandbox
with Sandbox.create(template="code-interpreter", ttl_seconds=300) as sb:
    result = sb.exec("python3 -c 'print(sum(range(100)))'", timeout_seconds=30)
    print(result.stdout, result.exit_code)
"""
    result = {"stdout": "4950\n", "stderr": "", "exit_code": 0, "duration_ms": 90}
    fake.on("POST", f"{HERE}/exec", Answer(200, result))
    config = tmp_path / ".config" / "pandastack" / "config.json"
    config.parent.mkdir(parents=True)
    config.write_text(f'{{"api_url": "{fake.url}", "token": "{KEY}"}}')
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHONPATH": str(PACKAGE_ROOT)}
    ran = subprocess.run(
        [sys.executable, "-c", sample], env=env, capture_output=True, text=True, check=False
    )
    assert (ran.stdout, ran.stderr, ran.returncode) == ("4950\n 0\n", "", 0)
    assert fake.only("POST", "/v1/sandboxes").json["ttl_seconds"] == 300
    assert fake.only("DELETE", HERE)
