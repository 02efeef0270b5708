# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from pathlib import Path

import pytest

from pandastack import AuthError, Client, get_default_client, set_default_client
from pandastack._core.config import DEFAULT_API_URL, Settings

from .fake import KEY, Fake


def write_config(**values: object) -> None:
    file = Path.home() / ".config" / "pandastack" / "config.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(values), "utf-8")


def test_nothing_is_configured() -> None:
    client = Client()
    assert (client.api_url, client.api_key) == (DEFAULT_API_URL, None)
    with pytest.raises(AuthError, match="PANDASTACK_API_KEY is required"):
        client.sandboxes.list()


@pytest.mark.parametrize("name", ["token", "apiKey", "api_key"])
def test_the_config_file_is_read(name: str) -> None:
    write_config(**{name: "pds_file\n", "api_url": "http://example.test:1/"})
    client = Client()
    assert (client.api_url, client.api_key) == ("http://example.test:1", "pds_file")


def test_token_wins_among_the_names_of_the_key() -> None:
    write_config(api_key="c", apiKey="b", token="a")
    assert Client().api_key == "a"


@pytest.mark.parametrize("text", ["", "nonsense", "[1]", '{"token": 5}', "\udcff"])
def test_a_broken_config_file_is_no_config_file(text: str) -> None:
    file = Path.home() / ".config" / "pandastack" / "config.json"
    file.parent.mkdir(parents=True)
    file.write_bytes(text.encode("utf-8", "surrogateescape"))
    assert Client().api_key is None


def test_the_environment_wins_over_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    write_config(token="pds_file", api_url="http://file.test")
    monkeypatch.setenv("PANDASTACK_API", "http://env.test/")
    monkeypatch.setenv("PANDASTACK_API_KEY", "pds_env")
    client = Client()
    assert (client.api_url, client.api_key) == ("http://env.test", "pds_env")


def test_arguments_win_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PANDASTACK_API", "http://env.test")
    monkeypatch.setenv("PANDASTACK_API_KEY", "pds_env")
    client = Client("http://argument.test", "pds_argument")
    assert (client.api_url, client.api_key) == ("http://argument.test", "pds_argument")
    assert Client(api_base="http://base.test").api_base == "http://base.test"
    assert Client(api_key="").api_key is None


@pytest.mark.parametrize(
    ("url", "local"),
    [
        ("http://127.0.0.1:8080", True),
        ("http://localhost", True),
        ("http://[::1]:8080", True),
        ("http://10.0.0.1", False),
        ("https://api.example.test", False),
    ],
)
def test_a_server_on_this_machine_is_not_asked_through_a_proxy(url: str, local: bool) -> None:
    assert Settings(url, None).pool()["trust_env"] is not local


def test_a_wrong_key_is_an_auth_error(fake: Fake) -> None:
    with pytest.raises(AuthError, match="unknown token") as caught:
        Client(fake.url, "pds_wrong").sandboxes.list()
    assert caught.value.status_code == 401


def test_the_default_client_is_made_once_and_can_be_replaced() -> None:
    assert get_default_client() is get_default_client()
    mine = Client("http://mine.test", KEY)
    set_default_client(mine)
    assert get_default_client() is mine
