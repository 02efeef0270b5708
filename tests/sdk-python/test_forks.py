# SPDX-License-Identifier: Apache-2.0
"""Forks and snapshots, as the published library knows them."""

import pytest
from pandastack import NotFoundError, Sandbox

from conftest import kill


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
