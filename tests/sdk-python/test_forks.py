# SPDX-License-Identifier: Apache-2.0
"""Forks and snapshots, as the published library knows them."""

import pytest
from pandastack import NotFoundError, Sandbox, explore

from conftest import is_gone, kill


@pytest.fixture
def parent(create):
    made = create(metadata={"who": "parent"})
    made.exec("echo disk > /root/file; echo memory > /dev/shm/file")
    return made


def read(sandbox):
    return sandbox.exec("cat /root/file /dev/shm/file").stdout


def test_a_fork_has_everything_and_goes_its_own_way(parent):
    child = parent.fork(metadata={"who": "child"})
    try:
        assert child.id != parent.id
        assert (child.template, child.cpu, child.memory_mb) == (
            parent.template,
            parent.cpu,
            parent.memory_mb,
        )
        assert child.metadata["who"] == "child"
        assert read(child) == "disk\nmemory\n"
        child.exec("echo other > /root/file; echo other > /dev/shm/file")
        assert read(parent) == "disk\nmemory\n"
        names = [sandbox.exec("cat /etc/machine-id").stdout for sandbox in (parent, child)]
        assert names[0] != names[1]
    finally:
        kill(child)


def test_a_tree_is_of_one_moment_and_in_order(parent):
    children = parent.fork_tree(4)
    try:
        assert [child.metadata["fork_index"] for child in children] == ["0", "1", "2", "3"]
        assert len({child.metadata["fork_tree_id"] for child in children}) == 1
        assert all(child.metadata["fork_parent_id"] == parent.id for child in children)
        assert all(read(child) == "disk\nmemory\n" for child in children)
    finally:
        for child in children:
            kill(child)


def test_a_snapshot_outlives_its_sandbox(parent, client, create):
    snapshot = parent.snapshot()
    parent.exec("echo later > /root/file; echo later > /dev/shm/file")
    kill(parent)
    try:
        for _ in range(2):
            assert read(create(from_snapshot=snapshot)) == "disk\nmemory\n"
        assert snapshot in [found["id"] for found in client.snapshots.list()]
        assert client.snapshots.get(snapshot)["sandbox_id"] == parent.id
    finally:
        client.snapshots.delete(snapshot)
    with pytest.raises(NotFoundError):
        client.snapshots.get(snapshot)
    with pytest.raises(NotFoundError):
        Sandbox.create(template="base", from_snapshot=snapshot)


def test_a_promoted_child_stays_and_its_siblings_go(parent, client):
    children = parent.fork_tree(3)
    winner = children[1]
    try:
        answer = client.sandboxes.promote(winner.id, cleanup_siblings=True)
        assert answer["winner"] == winner.id
        assert answer["tree_id"] == winner.metadata["fork_tree_id"]
        assert (answer["deleted"], answer["failures"]) == ([children[0].id, children[2].id], {})
        assert read(winner) == "disk\nmemory\n"
        assert is_gone(client, children[0].id) and is_gone(client, children[2].id)
        assert not is_gone(client, parent.id)
    finally:
        for child in children:
            kill(child)


def test_explore_keeps_the_best_of_some_tries(parent, client):
    tries = ["echo first > /root/file", "exit 1", "echo third > /root/file; sleep 1"]
    result = explore(parent, tries, ttl_seconds=300)
    winner = result.winner
    try:
        assert result.winner_outcome.ok and not result.errors
        assert (len(result.reaped), result.reap_failures) == (2, {})
        left = [
            listed.id
            for listed in client.sandboxes.list()
            if (listed.metadata or {}).get("fork_tree_id") == result.tree_id
        ]
        assert left == [winner.id]
        assert not is_gone(client, parent.id)
        # What won is not reaped with those that nobody would have promoted.
        assert winner.lifecycle()["ttl_seconds"] != 300
    finally:
        kill(winner)
