# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from pandastack import Execution, Result, Sandbox, SandboxTimeout, ServerError

from .fake import HERE, Answer, Fake

SESSIONS = f"{HERE}/repl/sessions"
RUN = f"{SESSIONS}/s1/run"
OPENED = {"id": "s1", "sandbox_id": "x", "language": "python"}


def test_a_context_runs_cells_and_is_closed(fake: Fake, sandbox: Sandbox) -> None:
    fake.on("POST", SESSIONS, Answer(201, OPENED))
    fake.on("GET", SESSIONS, Answer(200, [OPENED]))
    fake.on("DELETE", f"{SESSIONS}/s1", Answer(204))
    fake.on(
        "POST",
        RUN,
        Answer(
            200,
            {
                "stdout": "hi\n",
                "stderr": "",
                "exit": 0,
                "duration_ms": 3,
                "results": [
                    {"text/plain": "41", "text/html": "<b>41</b>", "application/json": "[1]"},
                    {"type": "image/png", "data": "aGk="},
                    "noise",
                ],
            },
        ),
    )
    with sandbox.create_code_context("Py") as context:
        done = context.run_code("x", timeout_seconds=2)
        assert sandbox.code_contexts()[0]["id"] == context.id == "s1"
    assert fake.only("POST", SESSIONS).json == {"language": "python"}
    assert fake.only("POST", RUN).json == {"code": "x", "timeout_ms": 2000}
    assert fake.only("DELETE", f"{SESSIONS}/s1")
    assert (done.text, done.png, done.error, done.exit_code) == ("41", "aGk=", None, 0)
    assert done.logs == {"stdout": "hi\n", "stderr": ""}
    first, second = done.results
    assert (first.html, first.json, first.chart) == ("<b>41</b>", [1], None)
    assert second.chart == "aGk="


def test_a_cell_that_raises_is_a_result(fake: Fake, sandbox: Sandbox) -> None:
    fake.on("POST", SESSIONS, Answer(201, OPENED))
    fake.on("POST", RUN, Answer(200, {"error": "Traceback ...", "exit_code": 1}))
    done = sandbox.create_code_context().run_code("1/0")
    assert (done.error, done.exit_code, done.results) == ("Traceback ...", 1, [])


def test_a_cell_that_takes_too_long(fake: Fake, sandbox: Sandbox) -> None:
    fake.on("POST", SESSIONS, Answer(201, OPENED))
    fake.on("POST", RUN, Answer(504, {"error": "cell timeout"}))
    with pytest.raises(SandboxTimeout):
        sandbox.create_code_context().run_code("while True: pass")


def test_closing_what_is_gone(fake: Fake, sandbox: Sandbox) -> None:
    fake.on("POST", SESSIONS, Answer(201, OPENED))
    with sandbox.create_code_context():
        pass
    fake.on("DELETE", f"{SESSIONS}/s1", Answer(500, {"error": "stuck"}))
    with sandbox.create_code_context() as context:
        pass
    with pytest.raises(ServerError, match="stuck"):
        context.close()


def test_a_context_without_an_id_is_an_error(fake: Fake, sandbox: Sandbox) -> None:
    fake.on("POST", SESSIONS, Answer(201, {}))
    with pytest.raises(ServerError, match="no code context"):
        sandbox.create_code_context()


def test_json_that_does_not_parse_stays_text() -> None:
    assert Result({"application/json": "{"}).json == "{"
    assert Result({}).json is None
    assert Result.from_dict({"application/json": {"a": 1}}).json == {"a": 1}
    assert Execution().text is None
