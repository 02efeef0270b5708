# SPDX-License-Identifier: Apache-2.0
"""The worker, with the queue and the sandboxes played by one fake server."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any, List

import pytest

from pandastack import Sandbox, cli
from pandastack.cma import CmaConfig, Worker
from pandastack.cma import session as session_module
from pandastack.cma.session import Session, is_safe_name

from .fake import HERE, KEY, SANDBOX, Answer, Fake

WORK = "/v1/environments/env/work"
ITEM = {"id": "w1", "data": {"id": "s1"}}
OK = Answer(200, {"stdout": "", "stderr": "", "exit_code": 0})
EXITED = Answer(200, {"stdout": "0\n", "stderr": "", "exit_code": 0})


@pytest.fixture(autouse=True)
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "_POLL_SECONDS", 0.001)


@pytest.fixture
def config(fake: Fake, tmp_path: Path) -> CmaConfig:
    # The fake knows one key, so both services are opened with it.
    return CmaConfig(
        "env", KEY, KEY, pandastack_api=fake.url, anthropic_api=fake.url, outputs_dir=tmp_path / "o"
    )


@pytest.fixture
def queue(fake: Fake) -> Fake:
    fake.on("GET", f"{WORK}/poll", Answer(200, ITEM), Answer(204))
    fake.on("POST", f"{WORK}/w1/ack", Answer(200))
    fake.on("GET", "/v1/sandboxes", Answer(200, []))
    fake.on("PUT", f"{HERE}/fs", Answer(200, {}))
    fake.on("POST", f"{HERE}/exec", OK, EXITED)
    entries = [{"name": "out.txt"}, {"name": "../escape"}, {"name": "d", "is_dir": True}]
    nothing = Answer(200, {"entries": None})
    fake.on("GET", f"{HERE}/fs/dir", Answer(200, {"entries": entries}), nothing)
    fake.on("GET", f"{HERE}/fs", Answer(200, b"result"))
    fake.on("POST", f"{HERE}/hibernate", Answer(200, {"status": "hibernated"}))
    return fake


def run_until(config: CmaConfig, last_words: str) -> List[str]:
    """Runs a worker until its log says something."""
    log: List[str] = []

    def logger(line: str) -> None:
        log.append(line)
        if last_words in line:
            worker.stop()

    worker = Worker(config, logger=logger)
    thread = threading.Thread(target=worker.run, daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive(), log
    return log


def test_one_session_from_queue_to_hibernation(queue: Fake, config: CmaConfig) -> None:
    run_until(config, "hibernated")
    assert (config.outputs_dir / "s1" / "out.txt").read_bytes() == b"result"
    assert [p.name for p in config.outputs_dir.rglob("*")] == ["s1", "out.txt"]
    created = queue.only("POST", "/v1/sandboxes").json
    assert created["template"] == "claude-agent"
    assert created["ttl_seconds"] == 3600
    assert created["metadata"] == {"cma.session_id": "s1", "cma.environment_id": "env"}
    launcher = queue.only("PUT", f"{HERE}/fs").body.decode()
    assert f"export ANTHROPIC_ENVIRONMENT_KEY={KEY}\n" in launcher
    assert "export ANTHROPIC_WORK_ID=w1\n" in launcher
    commands = [s.json["cmd"] for s in queue.requests("POST", f"{HERE}/exec")]
    assert not any(KEY in command for command in commands)
    poll = queue.requests("GET", f"{WORK}/poll")[0]
    assert poll.headers["anthropic-beta"].startswith("managed-agents-")


def test_a_returning_session_finds_its_sandbox(queue: Fake, config: CmaConfig) -> None:
    known = {**SANDBOX, "status": "hibernated", "metadata": {"cma.session_id": "s1"}}
    queue.on("GET", "/v1/sandboxes", Answer(200, [{**SANDBOX, "id": "other"}, known]))
    config.on_idle = "delete"
    run_until(config, "deleted")
    assert queue.requests("POST", "/v1/sandboxes") == []
    assert queue.only("DELETE", HERE)


def test_a_sandbox_that_does_not_answer_is_replaced(queue: Fake, config: CmaConfig) -> None:
    known = {**SANDBOX, "metadata": {"cma.session_id": "s1"}}
    queue.on("GET", "/v1/sandboxes", Answer(200, [known]))
    queue.on("POST", f"{HERE}/exec", Answer(500, {"error": "broken"}), OK, EXITED)
    config.on_idle = "running"
    run_until(config, "left running")
    assert queue.only("POST", "/v1/sandboxes")


def test_a_server_with_a_lower_limit(queue: Fake, config: CmaConfig) -> None:
    refusal = Answer(400, {"error": "ttl_seconds exceeds tier maximum"})
    queue.on("POST", "/v1/sandboxes", refusal, Answer(201, SANDBOX))
    run_until(config, "hibernated")
    first, second = (s.json for s in queue.requests("POST", "/v1/sandboxes"))
    assert "ttl_seconds" in first
    assert "ttl_seconds" not in second


def test_a_session_whose_sandbox_goes_away(queue: Fake, config: CmaConfig) -> None:
    queue.on("POST", f"{HERE}/exec", OK, Answer(404, {"error": "not found"}))
    assert any("is gone" in line for line in run_until(config, "is gone"))


def test_work_that_another_worker_took(queue: Fake, config: CmaConfig) -> None:
    queue.on("POST", f"{WORK}/w1/ack", Answer(409))
    queue.on("GET", f"{WORK}/poll", Answer(200, ITEM), Answer(401))
    run_until(config, "was refused")
    assert queue.requests("GET", "/v1/sandboxes") == []


def test_a_runner_that_takes_too_long(queue: Fake, sandbox: Sandbox, config: CmaConfig) -> None:
    config.max_session_seconds = -1
    turn = Session(config, sandbox, "s1", lambda seconds: False)
    assert turn.wait_for_runner() is None
    assert "pkill" in queue.only("POST", f"{HERE}/exec").json["cmd"]


def test_names_from_a_guest() -> None:
    assert all(is_safe_name(name) for name in ("a", "a b", "..a", "é"))
    assert not any(is_safe_name(name) for name in ("", ".", "..", "a/b", "a\\b", "a\0b"))


def test_a_session_id_cannot_name_another_directory(sandbox: Sandbox, config: CmaConfig) -> None:
    with pytest.raises(ValueError, match="cannot name"):
        Session(config, sandbox, "..", lambda seconds: True).collect()


def test_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    assert CmaConfig.from_env().missing_required() == [
        "ANTHROPIC_ENVIRONMENT_ID",
        "ANTHROPIC_ENVIRONMENT_KEY",
        "PANDASTACK_API_KEY",
    ]
    values = {
        "ANTHROPIC_ENVIRONMENT_ID": "env",
        "ANTHROPIC_ENVIRONMENT_KEY": "key",
        "PANDASTACK_API_KEY": "pds_x",
        "PANDASTACK_API": "http://x.test",
        "CMA_OUTPUTS_DIR": "here",
        "CMA_SANDBOX_TTL_SECONDS": "60",
    }
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    config = CmaConfig.from_env(template="mine", on_idle=None)
    assert config.missing_required() == []
    assert (config.template, config.on_idle) == ("mine", "hibernate")
    assert (config.outputs_dir, config.sandbox_ttl_seconds) == (Path("here"), 60)
    assert config.pandastack_api == "http://x.test"


def test_the_command_line(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    assert cli.main(["cma"]) == 1
    assert "missing required config" in capsys.readouterr().err
    seen: List[CmaConfig] = []
    monkeypatch.setattr(Worker, "run", lambda worker: seen.append(worker.config))
    arguments = ["--environment-id", "e", "--environment-key", "k", "--token", "t"]
    assert cli.main(["cma", *arguments, "--on-idle", "delete", "--ttl-seconds", "5"]) == 0
    assert (seen[0].on_idle, seen[0].sandbox_ttl_seconds) == ("delete", 5)
