# SPDX-License-Identifier: Apache-2.0
"""Ports and previews: the library's addresses and the routes beside it, and plain HTTP to them."""

import os
import urllib.request
from urllib.error import HTTPError
from urllib.parse import urlsplit

import pytest
from pandastack import BadRequestError

from conftest import eventually

SERVE = "setsid python3 -m http.server 8124 --bind 127.0.0.1 --directory /srv </dev/null >/dev/null 2>&1 &"


@pytest.fixture(scope="module")
def web(sandbox, client):
    """A sandbox with a server on its own loopback."""
    sandbox.exec("mkdir -p /srv/static; echo root > /srv/index.html; echo file > /srv/static/a.txt")
    sandbox.exec(SERVE)
    eventually(lambda: 8124 in sandbox.preview_urls())
    return sandbox


def get(url, **headers):
    """Status and text of an answer, whatever it is."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(urllib.request.Request(url, headers=headers), timeout=60) as answer:
            return answer.status, answer.read().decode()
    except HTTPError as error:
        return error.code, error.read().decode()


def listed(client, sandbox):
    ports = client._request("GET", f"/sandboxes/{sandbox.id}/ports")
    return {port["port"]: port for port in ports}


def test_a_listed_port(web, client):
    where = f"/sandboxes/{web.id}/ports"
    port = client._request("POST", where, json={"port": 8124, "label": "web"})
    assert (port["port"], port["label"]) == (8124, "web")
    assert (port["listening"], port["source"], port["public"]) == (True, "user", False)
    assert listed(client, web)[8124] == port
    key = os.environ["PANDASTACK_API_KEY"]
    assert get(port["proxy_url"])[0] == 401
    assert get(port["proxy_url"], Authorization=f"Bearer {key}") == (200, "root\n")
    client._request("DELETE", f"{where}/8124")
    assert listed(client, web)[8124]["source"] == "detected"


@pytest.mark.parametrize("port", [0, 22, 65536])
def test_ports_that_are_none(web, client, port):
    with pytest.raises(BadRequestError):
        client._request("POST", f"/sandboxes/{web.id}/ports", json={"port": port})


def test_a_signed_address(web, client):
    body = {"port": 8124, "ttl_seconds": 60, "paths": ["/static"]}
    answer = client._request("POST", f"/sandboxes/{web.id}/preview-token", json=body)
    assert (answer["sandbox_id"], answer["port"]) == (web.id, 8124)
    assert answer["paths"] == ["/static"]
    assert answer["token"] in answer["url"]
    assert answer["expires_at"]
    assert get(answer["url"] + "static/a.txt") == (200, "file\n")
    assert get(answer["url"])[0] == 403
    broken = answer["url"].replace(answer["token"], answer["token"][:-2])
    assert get(broken + "static/a.txt")[0] == 401


def test_a_site_of_its_own(web, client):
    """The address that the library makes has the host; where it leads is the network's business."""
    token = client._request("GET", f"/sandboxes/{web.id}/traffic-token")["traffic_token"]
    assert f"8124-{web.id}." in web.preview_url(8124)
    api = urlsplit(os.environ["PANDASTACK_API"]).netloc
    host = {"Host": f"8124-{web.id}.localhost"}
    shown = {**host, "X-Panda-Traffic-Token": token}
    assert get(f"http://{api}/", **shown) == (200, "root\n")
    assert get(f"http://{api}/", **host)[0] == 401
