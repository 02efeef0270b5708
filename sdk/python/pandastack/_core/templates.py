# SPDX-License-Identifier: Apache-2.0
"""Flows on templates and their builds."""

from __future__ import annotations

import time
from pathlib import Path
from typing import IO, Any, Dict, List, Optional

from ..exceptions import TemplateBuildError
from ..records import Template, TemplateBuild
from .answers import object_call, objects_call, void_call
from .wire import Flow, Request, path, pause

#: A build may be quiet for as long as one of its steps takes.
_LOG_PATIENCE = 1800.0
_BINARY = "application/octet-stream"

Form = Dict[str, str]


def listing() -> Flow[List[Template]]:
    """All templates."""
    items = yield from objects_call(Request("GET", "/templates"), "items", "templates")
    return [Template.from_dict(item) for item in items]


def get(name: str) -> Flow[Template]:
    """One template, by its name or an alias."""
    return Template.from_dict((yield from object_call(Request("GET", path("templates", name)))))


def delete(name: str) -> Flow[None]:
    """Deletes a template of one's own."""
    return void_call(Request("DELETE", path("templates", name)))


def builds() -> Flow[List[TemplateBuild]]:
    """All builds that the server remembers."""
    items = yield from objects_call(Request("GET", "/templates/builds"), "items", "builds")
    return [TemplateBuild.from_dict(item) for item in items]


def get_build(build_id: str) -> Flow[TemplateBuild]:
    """One build."""
    request = Request("GET", path("templates", "builds", build_id))
    return TemplateBuild.from_dict((yield from object_call(request)))


def build_form(
    name: str,
    size_mb: int,
    cpu: Optional[int] = None,
    memory_mb: Optional[int] = None,
    kernel: Optional[str] = None,
    **source: str,
) -> Form:
    """The text fields of a build; ``source`` is where its files come from."""
    form = {"name": name, **source, "size_mb": str(size_mb)}
    optional = {"cpu": cpu, "memory_mb": memory_mb, "kernel": kernel}
    form.update((field, str(value)) for field, value in optional.items() if value is not None)
    return form


def build_from_dockerfile(form: Form, context_dir: Optional[str]) -> Flow[TemplateBuild]:
    """Starts a build from a Dockerfile. Each file of the context is a part named by its path."""
    files: Dict[str, Any] = {}
    if context_dir is not None:
        root = Path(context_dir)
        for file in sorted(p for p in root.rglob("*") if p.is_file()):
            name = file.relative_to(root).as_posix()
            files[name] = (name, file.read_bytes(), _BINARY)
    return start(form, files)


def build_from_rootfs(form: Form, rootfs: IO[bytes], file_name: str) -> Flow[TemplateBuild]:
    """Starts a build from a tar archive, which is streamed and may be large."""
    return start(form, {"rootfs": (file_name, rootfs, _BINARY)})


def start(form: Form, files: Optional[Dict[str, Any]] = None) -> Flow[TemplateBuild]:
    """Starts a build: multipart when there are files, else urlencoded."""
    request = Request("POST", "/templates/build", form=form, files=files or None)
    return TemplateBuild.from_dict((yield from object_call(request)))


def wait_for_end(build_id: str, every: float, limit: float) -> Flow[TemplateBuild]:
    """Asks until a build is over or ``limit`` seconds have passed; gives its last state."""
    deadline = time.monotonic() + limit
    while True:
        build = yield from get_build(build_id)
        if build.is_terminal or time.monotonic() >= deadline:
            return build
        yield from pause(every)


def wait_for_build(build_id: str, every: float, limit: float) -> Flow[TemplateBuild]:
    """`wait_for_end`, for a build that has to succeed."""
    build = yield from wait_for_end(build_id, every, limit)
    if not build.is_terminal:
        message = f"template build {build_id} is still {build.status} after {limit:g} s"
        raise TemplateBuildError(message, build=build)
    return succeeded(build)


def succeeded(build: TemplateBuild) -> TemplateBuild:
    """The build, unless it failed."""
    if build.is_failed:
        raise TemplateBuildError(build.error or "template build failed", build=build)
    return build


def logs_request(build_id: str, follow: bool) -> Request:
    """The request for a build's log as events."""
    return Request(
        "GET",
        path("templates", "builds", build_id, "logs"),
        params={"follow": "1"} if follow else {},
        headers={"Accept": "text/event-stream"},
        patience=_LOG_PATIENCE,
    )


def dockerfile_text(dockerfile: str) -> str:
    """The argument itself, or the content of the file that it names."""
    if "\n" in dockerfile:
        return dockerfile
    file = Path(dockerfile)
    return file.read_text("utf-8") if file.is_file() else dockerfile
