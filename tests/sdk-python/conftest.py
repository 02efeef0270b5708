# SPDX-License-Identifier: Apache-2.0
"""The published Python SDK, unmodified, against a running server.

``PANDASTACK_API`` and ``PANDASTACK_API_KEY`` say which; the library reads them itself.

    python -m venv venv && venv/bin/pip install -r requirements.txt
    PANDASTACK_API=http://127.0.0.1:7878 PANDASTACK_API_KEY=pds_... venv/bin/python -m pytest
"""

import os
import time

import pytest
from pandastack import Client, NotFoundError, Sandbox

# Tests that fail half-way must not leave sandboxes behind for long.
TTL = 600


def pytest_configure(config):
    missing = [n for n in ("PANDASTACK_API", "PANDASTACK_API_KEY") if not os.environ.get(n)]
    if missing:
        raise pytest.UsageError(f"set {' and '.join(missing)}: the tests need a running server")


@pytest.fixture(scope="session")
def client():
    return Client()


@pytest.fixture(scope="module")
def sandbox():
    """One for all tests of a file that leave no trace which others could trip over."""
    made = Sandbox.create(template="base", ttl_seconds=TTL)
    yield made
    kill(made)


@pytest.fixture
def create():
    """Makes sandboxes that are gone after the test."""
    made = []

    def make(**options):
        options.setdefault("template", "base")
        options.setdefault("ttl_seconds", TTL)
        made.append(Sandbox.create(**options))
        return made[-1]

    yield make
    for one in made:
        kill(one)


def kill(sandbox):
    try:
        sandbox.kill()
    except NotFoundError:
        pass


def eventually(check, seconds=15.0):
    """The first true value of ``check``, asked until a deadline."""
    deadline = time.monotonic() + seconds
    while True:
        value = check()
        if value:
            return value
        assert time.monotonic() < deadline, f"still {value!r} after {seconds} s"
        time.sleep(0.05)


def is_gone(client, sandbox_id):
    try:
        client.sandboxes.get(sandbox_id)
    except NotFoundError:
        return True
    return False
