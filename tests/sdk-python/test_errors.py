# SPDX-License-Identifier: Apache-2.0
"""What cannot be done, and the exception that says so."""

import uuid

import pytest
from pandastack import AuthError, BadRequestError, Client, NotFoundError, Sandbox

from conftest import is_gone


@pytest.mark.parametrize("name", ["no-such-template", "../base", "", "BASE", "a/b"])
def test_an_unknown_template(name):
    with pytest.raises(BadRequestError):
        Sandbox.create(template=name, ttl_seconds=60)


def test_a_negative_time_to_live():
    with pytest.raises(BadRequestError):
        Sandbox.create(template="base", ttl_seconds=-1)


@pytest.mark.parametrize("sandbox_id", [str(uuid.uuid4()), "nonsense", "0" * 36])
def test_an_unknown_sandbox(client, sandbox_id):
    with pytest.raises(NotFoundError):
        client.sandboxes.get(sandbox_id)
    with pytest.raises(NotFoundError):
        client.sandboxes.delete(sandbox_id)
    for method, path in (("POST", "exec"), ("POST", "pause"), ("GET", "lifecycle"), ("GET", "fs")):
        with pytest.raises(NotFoundError):
            client._request(
                method,
                f"/sandboxes/{sandbox_id}/{path}",
                json={"cmd": "true"} if method == "POST" else None,
                params={"path": "/etc/hostname"},
            )


def test_a_sandbox_that_is_gone(create, client):
    sandbox = create()
    sandbox.kill()
    for use in (
        lambda: sandbox.exec("true"),
        lambda: sandbox.filesystem.read("/etc/hostname"),
        lambda: sandbox.filesystem.write("/tmp/x", b"x"),
        sandbox.pause,
        sandbox.lifecycle,
        sandbox.refresh,
    ):
        with pytest.raises(NotFoundError):
            use()
    assert is_gone(client, sandbox.id)


@pytest.mark.parametrize("key", ["pds_wrong", "wrong", "pds_" + "0" * 40])
def test_a_wrong_key(sandbox, key):
    stranger = Client(api_key=key)
    for use in (
        stranger.sandboxes.list,
        stranger.sandboxes.create,
        stranger.templates.list,
        lambda: stranger.sandboxes.get(sandbox.id),
        lambda: stranger.sandboxes.delete(sandbox.id),
        lambda: stranger._request("POST", f"/sandboxes/{sandbox.id}/exec", json={"cmd": "true"}),
    ):
        with pytest.raises(AuthError):
            use()
    assert sandbox.exec("echo untouched").stdout == "untouched\n"


def test_a_request_without_a_command(sandbox, client):
    for body in ({}, {"cmd": ""}, {"cmd": "true", "timeout_seconds": -1}):
        with pytest.raises(BadRequestError):
            client._request("POST", f"/sandboxes/{sandbox.id}/exec", json=body)


def test_fields_of_other_versions_are_ignored(sandbox, client):
    body = {"cmd": "echo fine", "args": ["x"], "from_the_future": {"deep": [1]}}
    answer = client._request("POST", f"/sandboxes/{sandbox.id}/exec", json=body)
    assert answer["stdout"] == "fine\n"


def test_the_reason_is_text(client):
    with pytest.raises(BadRequestError) as caught:
        Sandbox.create(template="no-such-template")
    assert "template" in str(caught.value)
    assert "{" not in str(caught.value)
