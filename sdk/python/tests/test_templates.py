# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import io
import subprocess
import tarfile
from pathlib import Path
from typing import Any, List
from urllib.parse import parse_qs

import pytest

from pandastack import Client, TemplateBuildError, docker, set_default_client, templates
from pandastack.cli import main

from .fake import Answer, Fake, Stream

BUILD = "/v1/templates/build"
QUEUED = {"id": "b1", "name": "t", "status": "queued", "started_at": "now", "size_mb": 1024}
DONE = {**QUEUED, "status": "done"}
FAILED = {**QUEUED, "status": "failed", "error": "no such image"}
STATE = "/v1/templates/builds/b1"


@pytest.fixture(autouse=True)
def _default(client: Client) -> None:
    set_default_client(client)


def test_list_get_delete(fake: Fake) -> None:
    base = {"name": "base", "cpu": 1, "aliases": ["ubuntu-24.04"], "built": True, "digest": "new"}
    fake.on("GET", "/v1/templates", Answer(200, [base]))
    fake.on("GET", "/v1/templates/base", Answer(200, base))
    fake.on("DELETE", "/v1/templates/base", Answer(204))
    assert templates.list() == [templates.get("base")]
    assert templates.get("base").aliases == ["ubuntu-24.04"]
    templates.delete("base")


def test_register_is_urlencoded(fake: Fake) -> None:
    fake.on("POST", BUILD, Answer(202, QUEUED))
    build = templates.register("t", "example.test/i:1", cpu=2, kernel="k")
    assert (build.id, build.is_terminal) == ("b1", False)
    seen = fake.only("POST", BUILD)
    assert seen.headers["content-type"] == "application/x-www-form-urlencoded"
    assert parse_qs(seen.body.decode()) == {
        "name": ["t"],
        "image_ref": ["example.test/i:1"],
        "size_mb": ["1024"],
        "cpu": ["2"],
        "kernel": ["k"],
    }


def test_a_dockerfile_by_text_and_by_path(fake: Fake, tmp_path: Path) -> None:
    fake.on("POST", BUILD, Answer(202, QUEUED))
    file = tmp_path / "Dockerfile"
    file.write_text("FROM scratch\n# é\n", "utf-8")
    for argument in (str(file), "FROM scratch\n# é\n"):
        templates.build_from_dockerfile("t", argument)
        form = parse_qs(fake.seen[-1].body.decode())
        assert form["dockerfile"] == ["FROM scratch\n# é\n"]


def test_the_context_goes_along(fake: Fake, tmp_path: Path) -> None:
    fake.on("POST", BUILD, Answer(202, QUEUED))
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "f").write_bytes(b"\x00\xff")
    templates.build_from_dockerfile("t", "FROM x\n", context_dir=str(tmp_path), memory_mb=512)
    seen = fake.only("POST", BUILD)
    assert seen.headers["content-type"].startswith("multipart/form-data")
    assert b'name="sub/f"; filename="sub/f"' in seen.body
    assert b"\x00\xff" in seen.body
    assert b'name="memory_mb"\r\n\r\n512' in seen.body


def test_build_uploads_an_archive_and_waits(fake: Fake, client: Client, tmp_path: Path) -> None:
    archive = tmp_path / "root.tar"
    archive.write_bytes(b"tar" * 1000)
    fake.on("POST", BUILD, Answer(202, QUEUED))
    fake.on("GET", STATE, Answer(200, QUEUED), Answer(200, FAILED))
    build = client.templates.build("t", rootfs_tar=str(archive), poll_interval=0.001)
    assert build.is_failed
    body = fake.only("POST", BUILD).body
    assert b'name="rootfs"; filename="root.tar"' in body
    assert b"tar" * 1000 in body
    for dockerfile, rootfs in ((None, None), ("a", "b")):
        with pytest.raises(ValueError, match="exactly one"):
            templates.build("t", dockerfile, rootfs)


def test_waiting_for_a_build(fake: Fake) -> None:
    fake.on("GET", STATE, Answer(200, QUEUED), Answer(200, DONE))
    assert templates.wait_for_build("b1", poll_interval=0.001).is_done
    fake.on("GET", STATE, Answer(200, FAILED))
    with pytest.raises(TemplateBuildError, match="no such image") as caught:
        templates.wait_for_build("b1")
    assert caught.value.build == templates.TemplateBuild.from_dict(FAILED)
    fake.on("GET", STATE, Answer(200, QUEUED))
    with pytest.raises(TemplateBuildError, match="still queued after 0 s"):
        templates.wait_for_build("b1", timeout_seconds=0)


def test_builds_and_their_logs(fake: Fake, client: Client) -> None:
    fake.on("GET", "/v1/templates/builds", Answer(200, [DONE]))
    assert client.templates.builds()[0].is_done
    lines = [b"data: one\n\n", b": ping\n\n", b"data: two\n\nevent: done\ndata: end\n\n"]
    fake.on("GET", f"{STATE}/logs", Stream(lines))
    assert list(templates.build_logs("b1")) == ["one", "two"]
    assert fake.seen[-1].query == {"follow": "1"}
    list(templates.build_logs("b1", follow=False))
    assert fake.seen[-1].query == {}


class Docker:
    """Stands in for the docker program."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: List[List[str]] = []
        monkeypatch.setattr("pandastack.docker.subprocess.run", self._run)

    def _run(self, command: List[str], **options: Any) -> None:
        self.calls.append(command[1:])
        if command[1] == "export":
            with tarfile.open(command[3], "w") as archive:
                archive.addfile(tarfile.TarInfo("etc"), io.BytesIO())


def test_push(fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = Docker(monkeypatch)
    fake.on("POST", BUILD, Answer(202, QUEUED))
    fake.on("GET", f"{STATE}/logs", Stream([b"data: one\n\ndata: end\n\n"]))
    fake.on("GET", STATE, Answer(200, DONE))
    monkeypatch.setenv("PANDASTACK_REGISTRY", "example.test/panda/")
    file = tmp_path / "Dockerfile"
    file.write_text("FROM scratch")
    log: List[str] = []
    assert templates.push("t", str(file), on_log=log.append).is_done
    assert "one" in log
    (build, push) = program.calls
    ref = push[1]
    assert ref.startswith("example.test/panda/t:2")
    assert build == [
        "build",
        "--platform",
        "linux/amd64",
        "-t",
        ref,
        "-f",
        str(file),
        str(tmp_path),
    ]
    with pytest.raises(FileNotFoundError):
        templates.push("t", str(tmp_path / "none"), on_log=log.append)


def test_a_local_build(fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = Docker(monkeypatch)
    fake.on("POST", BUILD, Answer(202, QUEUED))
    fake.on("GET", STATE, Answer(200, DONE))
    file = tmp_path / "Dockerfile"
    file.write_text("FROM scratch")
    assert templates.build("t", str(file)).is_done
    assert [c[0] for c in program.calls] == ["build", "create", "export", "rm", "rmi"]


def test_registry_refs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PANDASTACK_REGISTRY", raising=False)
    with pytest.raises(ValueError, match="no registry"):
        templates.registry_ref("t", "1")
    ref = templates.registry_ref("t", "1", region="r", project="p", repo="q")
    assert ref == "r-docker.pkg.dev/p/q/t:1"


def test_the_command_line(fake: Fake, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fake.on("POST", BUILD, Answer(202, QUEUED))
    fake.on("GET", f"{STATE}/logs", Stream([b"data: one\n\ndata: end\n\n"]))
    fake.on("GET", STATE, Answer(200, DONE))
    file = tmp_path / "Dockerfile"
    file.write_text("FROM scratch")
    assert main(["template", "build", "--name", "t", "-f", str(file)]) == 0
    assert capsys.readouterr().out == "b1\n"
    assert main(["template", "build-logs", "b1"]) == 0
    assert capsys.readouterr().out == "one\n"
    fake.on("GET", STATE, Answer(200, FAILED))
    assert main(["template", "build", "--name", "t", "-f", str(file)]) == 1
    assert "no such image" in capsys.readouterr().err
    assert main(["template", "build", "--name", "t", "-f", str(tmp_path / "none")]) == 1


def test_docker_that_fails_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*command: str) -> None:
        raise subprocess.CalledProcessError(3, command)

    monkeypatch.setattr(docker, "_docker", fail)
    monkeypatch.setenv("PANDASTACK_REGISTRY", "example.test")
    file = tmp_path / "Dockerfile"
    file.write_text("FROM scratch")
    assert main(["template", "push", "--name", "t", "-f", str(file)]) == 1
    assert "exit code 3" in capsys.readouterr().err
