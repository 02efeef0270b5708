# SPDX-License-Identifier: Apache-2.0
"""How long sandboxes live, and that they stand still when told to."""

import time

import pytest
from pandastack import BadRequestError, Sandbox

from conftest import eventually, is_gone, kill

# Counts ten times a second for as long as its machine runs.
COUNTER = (
    "setsid sh -c 'n=0; while :; do n=$((n + 1)); echo $n > /tmp/count; sleep 0.1; done' "
    "</dev/null >/dev/null 2>&1 &"
)


def test_the_time_to_live_is_shown_and_can_be_changed(create):
    sandbox = create(ttl_seconds=300)
    lifecycle = sandbox.lifecycle()
    assert lifecycle["ttl_seconds"] == 300
    assert lifecycle["persistent"] is False
    assert lifecycle["idle_seconds"] >= 0
    assert sandbox.set_ttl(500)["ttl_seconds"] == 500
    assert sandbox.set_ttl(0)["ttl_seconds"] == 0
    assert sandbox.lifecycle()["ttl_seconds"] == 0
    with pytest.raises(BadRequestError):
        sandbox.set_ttl(-1)


def test_the_time_to_live_is_kept_to(create, client):
    begin = time.monotonic()
    sandbox = create(ttl_seconds=2)
    assert not is_gone(client, sandbox.id)
    eventually(lambda: is_gone(client, sandbox.id))
    assert time.monotonic() - begin >= 2


def test_a_new_time_to_live_counts_from_now(create, client):
    sandbox = create()
    begin = time.monotonic()
    sandbox.set_ttl(1)
    eventually(lambda: is_gone(client, sandbox.id))
    assert time.monotonic() - begin >= 1


def test_a_persistent_one_outlives_its_block(client):
    with Sandbox.create(template="base", persistent=True) as sandbox:
        pass
    try:
        with Sandbox.get(sandbox.id) as again:
            assert again.persistent is True
            assert again.lifecycle()["persistent"] is True
        assert not is_gone(client, sandbox.id)
        assert again.set_persistent(False)["persistent"] is False
        with Sandbox.get(sandbox.id):
            pass
        assert is_gone(client, sandbox.id)
    finally:
        kill(sandbox)


def count(sandbox):
    return int(sandbox.exec("cat /tmp/count").stdout.strip() or 0)


def test_a_paused_one_stands_still(create, client):
    sandbox = create()
    sandbox.exec(COUNTER)
    eventually(lambda: sandbox.filesystem.exists("/tmp/count") and count(sandbox) > 3)
    before = count(sandbox)
    sandbox.pause()
    assert client.sandboxes.get(sandbox.id).status == "paused"
    with pytest.raises(BadRequestError):
        sandbox.exec("true")
    time.sleep(4)  # not to wait for anything: this is the time in which nothing may happen
    sandbox.resume()
    after = count(sandbox)
    assert client.sandboxes.get(sandbox.id).status == "running"
    # Forty, had it gone on. Some, because it does run before the pause and after the resume.
    assert before <= after < before + 25
    eventually(lambda: count(sandbox) > after)
    assert abs(int(sandbox.exec("date +%s").stdout) - time.time()) < 5


def test_pausing_and_resuming_twice(create):
    sandbox = create()
    sandbox.pause()
    sandbox.pause()
    sandbox.resume()
    sandbox.resume()
    assert sandbox.exec("echo alive").stdout == "alive\n"


def test_a_paused_one_can_be_killed(create, client):
    sandbox = create()
    sandbox.pause()
    sandbox.kill()
    assert is_gone(client, sandbox.id)


def test_a_hibernated_one_sleeps_until_it_is_used(create, client):
    sandbox = create()
    sandbox.filesystem.write("/root/disk", b"disk")
    sandbox.exec("echo memory > /dev/shm/memory; " + COUNTER)
    eventually(lambda: sandbox.filesystem.exists("/tmp/count") and count(sandbox) > 3)
    sandbox.hibernate()
    for _ in range(2):
        assert client.sandboxes.get(sandbox.id).status == "hibernated"
    assert any(listed.id == sandbox.id for listed in client.sandboxes.list())
    assert sandbox.exec("cat /root/disk /dev/shm/memory").stdout == "diskmemory\n"
    assert client.sandboxes.get(sandbox.id).status == "running"
    after = count(sandbox)
    eventually(lambda: count(sandbox) > after)


def test_hibernating_and_waking_twice(create, client):
    sandbox = create()
    sandbox.filesystem.write("/root/file", b"kept")
    sandbox.hibernate()
    sandbox.hibernate()
    sandbox.wake()
    sandbox.wake()
    assert client.sandboxes.get(sandbox.id).status == "running"
    sandbox.hibernate()
    assert sandbox.filesystem.read("/root/file") == b"kept"


def test_a_hibernated_one_can_be_killed(create, client):
    sandbox = create()
    sandbox.hibernate()
    sandbox.kill()
    assert is_gone(client, sandbox.id)
