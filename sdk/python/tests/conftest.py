# SPDX-License-Identifier: Apache-2.0
"""What every test starts from: a server of its own, and nothing of this machine's settings."""

from __future__ import annotations

from pathlib import Path
from typing import Iterator

import pytest

from pandastack import Client, Sandbox, set_default_client

from .fake import HERE, KEY, SANDBOX, Answer, Fake


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    for name in ("PANDASTACK_API", "PANDASTACK_API_KEY", "PANDASTACK_PREVIEW_HOST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("PANDASTACK_MAX_CREATE_RETRY_SECONDS", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    set_default_client(None)
    yield
    set_default_client(None)


@pytest.fixture
def fake() -> Iterator[Fake]:
    with Fake() as server:
        server.on("POST", "/v1/sandboxes", Answer(201, SANDBOX))
        server.on("GET", HERE, Answer(200, SANDBOX))
        server.on("DELETE", HERE, Answer(204))
        yield server


@pytest.fixture
def client(fake: Fake) -> Iterator[Client]:
    with Client(fake.url, KEY, timeout=5) as made:
        yield made


@pytest.fixture
def sandbox(client: Client) -> Sandbox:
    return Sandbox.from_dict(SANDBOX, client)
