# SPDX-License-Identifier: Apache-2.0
"""Volumes, as the published library knows them."""

import uuid

import pytest
from pandastack import BadRequestError, NotFoundError

from conftest import kill


@pytest.fixture
def volume(client):
    name = f"test-{uuid.uuid4().hex[:8]}"
    made = client.volumes.create(name, size_mb=32)
    assert (made["name"], made["size_mb"]) == (name, 32)
    yield name
    try:
        client.volumes.delete(name)
    except NotFoundError:
        pass


def test_a_volume_outlives_its_sandboxes(client, create, volume):
    assert client.volumes.get(volume) in client.volumes.list()
    with pytest.raises(BadRequestError, match="exists already"):
        client.volumes.create(volume, size_mb=32)
    writer = create(volumes=[{"name": volume}])
    writer.exec(f"echo kept > /volumes/{volume}/file")
    with pytest.raises(BadRequestError, match="is attached"):
        client.volumes.delete(volume)
    kill(writer)

    readers = [create(volumes=[{"name": volume, "read_only": True}]) for _ in range(2)]
    for reader in readers:
        assert reader.exec(f"cat /volumes/{volume}/file").stdout == "kept\n"
        assert reader.exec(f"echo x > /volumes/{volume}/file").exit_code != 0
        kill(reader)
    client.volumes.delete(volume)
    with pytest.raises(NotFoundError):
        client.volumes.get(volume)


@pytest.mark.parametrize("name, size_mb", [("../x", 32), ("", 32), ("x", 0), ("x", 65537)])
def test_what_is_no_volume_is_refused(client, volume, name, size_mb):
    with pytest.raises(BadRequestError):
        client.volumes.create(name, size_mb=size_mb)
