# SPDX-License-Identifier: Apache-2.0
"""The parts that are plain REST: each method's request, and 404 from a server without them."""

from __future__ import annotations

import base64
import io
import tarfile
from pathlib import Path
from typing import Any, Callable, List, Tuple

import pytest

from pandastack import Client, NotFoundError

from .fake import Answer, Fake, Stream

Case = Tuple[Callable[[Client], Any], str, str, Any]

CASES: List[Case] = [
    (
        lambda c: c.apps.create("a", "g", port=80),
        "POST",
        "/apps",
        {"name": "a", "git_url": "g", "port": 80},
    ),
    (lambda c: c.apps.list(), "GET", "/apps", None),
    (lambda c: c.apps.get("a"), "GET", "/apps/a", None),
    (lambda c: c.apps.update("a", cpu=2, port=None), "PATCH", "/apps/a", {"cpu": 2}),
    (lambda c: c.apps.delete("a"), "DELETE", "/apps/a", None),
    (lambda c: c.apps.deploy("a", git_ref="v1"), "POST", "/apps/a/deploys", {"git_ref": "v1"}),
    (lambda c: c.apps.deployments("a"), "GET", "/apps/a/deploys", None),
    (lambda c: c.apps.deployment("a", "d"), "GET", "/apps/a/deploys/d", None),
    (lambda c: c.apps.rollback("a"), "POST", "/apps/a/rollback", None),
    (lambda c: c.apps.previews(), "GET", "/apps", None),
    (lambda c: c.apps.preview_repos(), "GET", "/preview-repos", None),
    (lambda c: c.apps.enable_preview_repo(7), "POST", "/preview-repos", {"github_repo_id": 7}),
    (lambda c: c.apps.disable_preview_repo(7), "DELETE", "/preview-repos/7", None),
    (lambda c: c.apps.list_env("a"), "GET", "/apps/a/env", None),
    (
        lambda c: c.apps.set_env("a", "K", "v"),
        "PUT",
        "/apps/a/env/K",
        {"value": "v", "secret": False, "scope": "all"},
    ),
    (lambda c: c.apps.unset_env("a", "K"), "DELETE", "/apps/a/env/K", None),
    (
        lambda c: c.apps.import_env("a", "K=v"),
        "POST",
        "/apps/a/env/import",
        {"dotenv": "K=v", "secret": False, "scope": "all"},
    ),
    (lambda c: c.apps.add_domain("a", "d.test"), "POST", "/apps/a/domains", {"domain": "d.test"}),
    (lambda c: c.apps.domains("a"), "GET", "/apps/a/domains", None),
    (lambda c: c.apps.get_domain("a", "d.test"), "GET", "/apps/a/domains/d.test", None),
    (lambda c: c.apps.remove_domain("a", "d.test"), "DELETE", "/apps/a/domains/d.test", None),
    (lambda c: c.apps.list_preview_env(7), "GET", "/repos/7/preview-env", None),
    (
        lambda c: c.apps.set_preview_env(7, "K", "v"),
        "PUT",
        "/repos/7/preview-env/K",
        {"value": "v", "secret": False},
    ),
    (lambda c: c.apps.unset_preview_env(7, "K"), "DELETE", "/repos/7/preview-env/K", None),
    (
        lambda c: c.apps.import_preview_env(7, "K=v"),
        "POST",
        "/repos/7/preview-env/import",
        {"dotenv": "K=v", "secret": False},
    ),
    (lambda c: c.databases.list(), "GET", "/databases", None),
    (lambda c: c.databases.get("d"), "GET", "/databases/d", None),
    (lambda c: c.databases.delete("d"), "DELETE", "/databases/d", None),
    (lambda c: c.databases.connection("d"), "GET", "/databases/d/connection", None),
    (lambda c: c.databases.failover("d"), "POST", "/databases/d/failover", None),
    (
        lambda c: c.databases.update("d", always_on=True),
        "PATCH",
        "/databases/d",
        {"always_on": True},
    ),
    (lambda c: c.databases.wake("d"), "POST", "/databases/d/wake", None),
    (
        lambda c: c.databases.clone("d", size="4g", wait=False),
        "POST",
        "/databases/d/clone",
        {"size": "4g"},
    ),
    (lambda c: c.functions.list(), "GET", "/functions", None),
    (lambda c: c.functions.get("f"), "GET", "/functions/f", None),
    (lambda c: c.functions.update("f", public=True), "PATCH", "/functions/f", {"public": True}),
    (lambda c: c.functions.delete("f"), "DELETE", "/functions/f", None),
    (lambda c: c.functions.metrics("f"), "GET", "/functions/f/metrics", None),
    (lambda c: c.functions.trigger("f", input=[1]), "POST", "/functions/f/invoke", {"input": [1]}),
    (lambda c: c.functions.runs("f"), "GET", "/functions/f/runs", None),
    (
        lambda c: c.schedules.create("s", "f", "* * * * *"),
        "POST",
        "/schedules",
        {"name": "s", "function_id": "f", "cron": "* * * * *", "paused": False},
    ),
    (lambda c: c.schedules.list(), "GET", "/schedules", None),
    (lambda c: c.schedules.get("s"), "GET", "/schedules/s", None),
    (lambda c: c.schedules.update("s", paused=True), "PATCH", "/schedules/s", {"paused": True}),
    (lambda c: c.schedules.delete("s"), "DELETE", "/schedules/s", None),
    (lambda c: c.schedules.trigger("s"), "POST", "/schedules/s/trigger", {}),
    (lambda c: c.schedules.runs("s"), "GET", "/schedules/s/runs", None),
]


@pytest.mark.parametrize(("call", "method", "path", "body"), CASES)
def test_requests(
    fake: Fake,
    client: Client,
    call: Callable[[Client], Any],
    method: str,
    path: str,
    body: Any,
) -> None:
    fake.on(method, f"/v1{path}", Answer(200, {"id": "x"}))
    call(client)
    [seen] = fake.seen
    assert (seen.method, seen.path) == (method, f"/v1{path}")
    assert (seen.json if seen.body else None) == body


@pytest.mark.parametrize("name", ["apps", "databases", "functions", "schedules"])
def test_a_server_without_them_says_not_found(client: Client, name: str) -> None:
    with pytest.raises(NotFoundError):
        getattr(client, name).list()


def test_deployment_logs(fake: Fake, client: Client) -> None:
    lines = [b"data: one\n\n", b"event: done\ndata: end\n\n"]
    fake.on("GET", "/v1/apps/a/deploys/d/logs", Stream(lines))
    assert list(client.apps.deploy_logs("a", "d")) == ["one"]


def test_a_database_is_waited_for(
    fake: Fake, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pandastack.databases.time.sleep", lambda seconds: None)
    ready = {"id": "d", "status": "running", "connection_url": "postgres://"}
    fake.on("POST", "/v1/databases", Answer(202, {"id": "d", "status": "provisioning"}))
    fake.on("GET", "/v1/databases/d", Answer(200, {"status": "provisioning"}), Answer(200, ready))
    assert client.databases.create(label="l") == ready
    fake.on("POST", "/v1/databases/d/reset-credentials", Answer(200, {}))
    assert client.databases.reset_credentials("d") == ready
    fake.on("GET", "/v1/databases/d", Answer(200, {"status": "failed", "error": "disk"}))
    with pytest.raises(RuntimeError, match="disk"):
        client.databases.wait_until_ready("d")
    fake.on("GET", "/v1/databases/d", Answer(200, {"status": "provisioning"}))
    with pytest.raises(TimeoutError):
        client.databases.wait_until_ready("d", timeout=0)


def test_functions_carry_their_code(fake: Fake, client: Client, tmp_path: Path) -> None:
    (tmp_path / "handler.py").write_bytes(b"code")
    (tmp_path / "node_modules").mkdir()
    (tmp_path / "node_modules" / "x").write_bytes(b"junk")
    fake.on("POST", "/v1/functions", Answer(201, {"id": "f"}))
    fake.on("GET", "/v1/functions", Answer(200, []))
    fake.on("POST", "/v1/functions/f/deploy", Answer(200, {"version": 2}))
    client.functions.create("n", "python", str(tmp_path / "handler.py"), env={"A": "1"})
    sent = fake.only("POST", "/v1/functions").json
    assert base64.b64decode(sent["code"]) == b"code"
    assert (sent["entrypoint"], sent["env"], sent["public"]) == ("handler.py", {"A": "1"}, False)
    assert client.functions.deploy("n", "python", str(tmp_path)) == {"version": 2}
    body = fake.only("POST", "/v1/functions/f/deploy").body
    start = body.index(b"\x1f\x8b")
    with tarfile.open(fileobj=io.BytesIO(body[start:]), mode="r|gz") as archive:
        assert [member.name for member in archive] == ["handler.py"]
    client.functions.deploy("n", "nodejs", str(tmp_path / "handler.py"))
    body = fake.seen[-1].body
    with tarfile.open(fileobj=io.BytesIO(body[body.index(b"\x1f\x8b") :]), mode="r|gz") as archive:
        assert [member.name for member in archive] == ["handler.js"]
