# SPDX-License-Identifier: Apache-2.0
"""What can be asked: templates, logs, who one is."""

import pytest
from pandastack import NotFoundError, templates

from conftest import eventually


def test_templates():
    listed = {template.name: template for template in templates.list()}
    assert {"base", "code-interpreter"} <= set(listed)
    for template in listed.values():
        assert template.cpu >= 1
        assert template.memory_mb >= 128
        assert template.is_global is True


@pytest.mark.parametrize(
    "name", ["base", "code-interpreter", "ubuntu-24.04", "code-interpreter-v1"]
)
def test_one_template(name):
    template = templates.get(name)
    assert template.name in ("base", "code-interpreter")
    assert template.description


def test_an_unknown_template():
    for name in ("no-such-template", "NO", "%2e%2e"):
        with pytest.raises(NotFoundError):
            templates.get(name)


def test_logs_are_plain_lines(sandbox):
    sandbox.exec("echo a line for the log é 🐼; echo one on the side >&2")

    def logged():
        return [line for line in sandbox.logs() if "a line for the log" in line]

    assert eventually(logged) == ["a line for the log é 🐼"]
    out, err = list(sandbox.logs(stream="stdout")), list(sandbox.logs(stream="stderr"))
    assert "a line for the log é 🐼" in out
    assert "one on the side" not in out
    assert "one on the side" in err


def test_logs_can_be_followed(sandbox):
    sandbox.exec("echo before")
    for line in sandbox.logs(follow=True):
        assert not line.startswith("{"), "an event that is no line"
        if line == "before":
            break
    else:
        raise AssertionError("the log ended")


def test_metrics(sandbox, client):
    metrics = client._request("GET", f"/sandboxes/{sandbox.id}/metrics")
    assert metrics["uptime_seconds"] > 0
    assert metrics["host_rss_bytes"] > 0


def test_ports(sandbox):
    sandbox.exec("setsid python3 -m http.server 8123 </dev/null >/dev/null 2>&1 &")
    urls = eventually(lambda: {p: u for p, u in sandbox.preview_urls().items() if p == 8123})
    assert sandbox.id in urls[8123]


def test_who_am_i(client):
    assert isinstance(client.me(), dict)
    assert client.me()
