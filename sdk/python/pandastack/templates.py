# SPDX-License-Identifier: Apache-2.0
"""Templates and their builds: ``client.templates``, and the same as functions on the default
client."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Callable, Iterator, List, Optional

from . import docker
from ._core import templates as flows
from ._core.streams import BuildLines
from ._core.wire import Flow, T
from ._default import get_default_client
from .docker import registry_ref
from .records import Template, TemplateBuild

if TYPE_CHECKING:
    from .client import Client

__all__ = [
    "Template",
    "TemplateBuild",
    "TemplatesAPI",
    "build",
    "build_from_dockerfile",
    "build_logs",
    "delete",
    "get",
    "list",
    "push",
    "register",
    "registry_ref",
    "wait_for_build",
]


class TemplatesAPI:
    """What sandboxes are made from."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def list(self) -> List[Template]:
        """All templates."""
        return self._run(flows.listing())

    def get(self, name: str) -> Template:
        """One template, by its name or an alias."""
        return self._run(flows.get(name))

    def delete(self, name: str) -> None:
        """Deletes a template of one's own."""
        self._run(flows.delete(name))

    def builds(self) -> List[TemplateBuild]:
        """All builds that the server remembers."""
        return self._run(flows.builds())

    def get_build(self, build_id: str) -> TemplateBuild:
        """One build."""
        return self._run(flows.get_build(build_id))

    def register(
        self,
        name: str,
        image_ref: str,
        *,
        size_mb: int = 1024,
        cpu: Optional[int] = None,
        memory_mb: Optional[int] = None,
        kernel: Optional[str] = None,
    ) -> TemplateBuild:
        """Starts a build from an OCI image that the server can pull."""
        form = flows.build_form(name, size_mb, cpu, memory_mb, kernel, image_ref=image_ref)
        return self._run(flows.start(form))

    def build_from_dockerfile(
        self,
        name: str,
        dockerfile: str,
        *,
        context_dir: Optional[str] = None,
        cpu: Optional[int] = None,
        memory_mb: Optional[int] = None,
        size_mb: int = 1024,
    ) -> TemplateBuild:
        """Starts a build from a Dockerfile on the server; no Docker is needed here.

        ``dockerfile`` is its path or its text; the files below ``context_dir`` go along.
        """
        text = flows.dockerfile_text(dockerfile)
        form = flows.build_form(name, size_mb, cpu, memory_mb, dockerfile=text)
        return self._run(flows.build_from_dockerfile(form, context_dir))

    def build(
        self,
        name: str,
        dockerfile_path: Optional[str] = None,
        rootfs_tar: Optional[str] = None,
        size_mb: int = 1024,
        poll_interval: float = 1.0,
        timeout_seconds: float = 600.0,
    ) -> TemplateBuild:
        """Builds from a tar archive of a root file system, or from one that the local Docker
        makes of a Dockerfile. Waits for the end, and gives the last state even of a failure."""
        if (dockerfile_path is None) == (rootfs_tar is None):
            raise ValueError("pass exactly one of dockerfile_path and rootfs_tar")
        with docker.rootfs(dockerfile_path, rootfs_tar) as archive, archive.open("rb") as file:
            form = flows.build_form(name, size_mb)
            started = self._run(flows.build_from_rootfs(form, file, archive.name))
        return self._run(flows.wait_for_end(started.id, poll_interval, timeout_seconds))

    def build_logs(self, build_id: str, *, follow: bool = True) -> Iterator[str]:
        """The lines of a build's log; with ``follow`` until the build is over."""
        lines = BuildLines()
        with self._client._stream(flows.logs_request(build_id, follow)) as chunks:
            for chunk in chunks:
                yield from lines.feed(chunk)
                if lines.ended:
                    return

    def wait_for_build(
        self, build_id: str, *, poll_interval: float = 2.0, timeout_seconds: float = 1200.0
    ) -> TemplateBuild:
        """Waits for a build; raises `TemplateBuildError` when it fails or takes too long."""
        return self._run(flows.wait_for_build(build_id, poll_interval, timeout_seconds))

    def push(
        self,
        name: str,
        dockerfile: str = "Dockerfile",
        *,
        context: Optional[str] = None,
        platform: str = "linux/amd64",
        size_mb: int = 1024,
        cpu: Optional[int] = None,
        memory_mb: Optional[int] = None,
        kernel: Optional[str] = None,
        build_id: Optional[str] = None,
        region: Optional[str] = None,
        project: Optional[str] = None,
        repo: Optional[str] = None,
        on_log: Optional[Callable[[str], None]] = None,
        wait: bool = True,
    ) -> TemplateBuild:
        """Builds an image with the local Docker, pushes it (see `registry_ref`) and registers it.

        Unless ``wait`` is off, the log goes to ``on_log``, or is printed, and the result is the
        finished build.
        """
        file = Path(dockerfile)
        log = on_log or print
        ref = registry_ref(
            name, build_id or docker.new_build_id(), region=region, project=project, repo=repo
        )
        log(f"building and pushing {ref} for {platform}")
        docker.build_and_push(ref, file, Path(context) if context else file.parent, platform)
        build = self.register(
            name, ref, size_mb=size_mb, cpu=cpu, memory_mb=memory_mb, kernel=kernel
        )
        log(f"template build {build.id} is {build.status}")
        if not wait:
            return build
        for line in self.build_logs(build.id):
            log(line)
        return flows.succeeded(self.get_build(build.id))

    def _run(self, flow: Flow[T]) -> T:
        return self._client._run(flow)


def list() -> List[Template]:
    """`TemplatesAPI.list` of the default client."""
    return get_default_client().templates.list()


def get(name: str) -> Template:
    """`TemplatesAPI.get` of the default client."""
    return get_default_client().templates.get(name)


def delete(name: str) -> None:
    """`TemplatesAPI.delete` of the default client."""
    get_default_client().templates.delete(name)


def build(
    name: str,
    dockerfile_path: Optional[str] = None,
    rootfs_tar: Optional[str] = None,
    size_mb: int = 1024,
) -> TemplateBuild:
    """`TemplatesAPI.build` of the default client."""
    return get_default_client().templates.build(name, dockerfile_path, rootfs_tar, size_mb)


def register(
    name: str,
    image_ref: str,
    *,
    size_mb: int = 1024,
    cpu: Optional[int] = None,
    memory_mb: Optional[int] = None,
    kernel: Optional[str] = None,
) -> TemplateBuild:
    """`TemplatesAPI.register` of the default client."""
    return get_default_client().templates.register(
        name, image_ref, size_mb=size_mb, cpu=cpu, memory_mb=memory_mb, kernel=kernel
    )


def build_from_dockerfile(
    name: str,
    dockerfile: str,
    *,
    context_dir: Optional[str] = None,
    cpu: Optional[int] = None,
    memory_mb: Optional[int] = None,
    size_mb: int = 1024,
) -> TemplateBuild:
    """`TemplatesAPI.build_from_dockerfile` of the default client."""
    return get_default_client().templates.build_from_dockerfile(
        name, dockerfile, context_dir=context_dir, cpu=cpu, memory_mb=memory_mb, size_mb=size_mb
    )


def build_logs(build_id: str, *, follow: bool = True) -> Iterator[str]:
    """`TemplatesAPI.build_logs` of the default client."""
    return get_default_client().templates.build_logs(build_id, follow=follow)


def wait_for_build(
    build_id: str, *, poll_interval: float = 2.0, timeout_seconds: float = 1200.0
) -> TemplateBuild:
    """`TemplatesAPI.wait_for_build` of the default client."""
    return get_default_client().templates.wait_for_build(
        build_id, poll_interval=poll_interval, timeout_seconds=timeout_seconds
    )


def push(
    name: str,
    dockerfile: str = "Dockerfile",
    *,
    context: Optional[str] = None,
    platform: str = "linux/amd64",
    size_mb: int = 1024,
    cpu: Optional[int] = None,
    memory_mb: Optional[int] = None,
    kernel: Optional[str] = None,
    on_log: Optional[Callable[[str], None]] = None,
    wait: bool = True,
) -> TemplateBuild:
    """`TemplatesAPI.push` of the default client."""
    return get_default_client().templates.push(
        name,
        dockerfile,
        context=context,
        platform=platform,
        size_mb=size_mb,
        cpu=cpu,
        memory_mb=memory_mb,
        kernel=kernel,
        on_log=on_log,
        wait=wait,
    )
