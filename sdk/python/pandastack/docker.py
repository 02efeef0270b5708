# SPDX-License-Identifier: Apache-2.0
"""The local Docker, for those who build template images themselves.

Only `TemplatesAPI.build` with a Dockerfile and `TemplatesAPI.push` come here; everything else
builds on the server.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import uuid
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Iterator, Optional


def registry_ref(
    name: str,
    build_id: str,
    *,
    region: Optional[str] = None,
    project: Optional[str] = None,
    repo: Optional[str] = None,
) -> str:
    """Where a template's image is pushed to and pulled from.

    ``$PANDASTACK_REGISTRY/{name}:{build_id}`` when that variable is set. Otherwise the Artifact
    Registry of ``region``, ``project`` and ``repo``, each of which may come from
    ``PANDASTACK_REGISTRY_REGION``, ``_PROJECT`` and ``_REPO``.
    """
    registry = os.getenv("PANDASTACK_REGISTRY", "").rstrip("/")
    if not registry or region or project or repo:
        region = region or os.getenv("PANDASTACK_REGISTRY_REGION")
        project = project or os.getenv("PANDASTACK_REGISTRY_PROJECT")
        repo = repo or os.getenv("PANDASTACK_REGISTRY_REPO")
        if not (region and project and repo):
            raise ValueError(
                "no registry: set PANDASTACK_REGISTRY or name region, project and repo"
            )
        registry = f"{region}-docker.pkg.dev/{project}/{repo}"
    return f"{registry}/{name}:{build_id}"


def new_build_id() -> str:
    """The time: sortable, and a legal image tag."""
    return datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%SZ")


def build_and_push(ref: str, dockerfile: Path, context: Path, platform: str) -> None:
    """Builds an image and pushes it. A failure raises `subprocess.CalledProcessError`."""
    if not dockerfile.is_file():
        raise FileNotFoundError(dockerfile)
    _docker("build", "--platform", platform, "-t", ref, "-f", str(dockerfile), str(context))
    _docker("push", ref)


@contextmanager
def rootfs(dockerfile: Optional[str], archive: Optional[str]) -> Iterator[Path]:
    """A root file system as a tar archive: the one given, or one made of a Dockerfile, which is
    gone at the end of the block."""
    if archive is not None:
        yield Path(archive)
        return
    source = Path(dockerfile or "Dockerfile")
    if not source.is_file():
        raise FileNotFoundError(source)
    name = f"pandastack-{uuid.uuid4().hex}"
    with tempfile.TemporaryDirectory(prefix="pandastack-") as directory:
        exported = Path(directory, "rootfs.tar")
        try:
            _docker("build", "-t", name, "-f", str(source), str(source.parent))
            _docker("create", "--name", name, name)
            _docker("export", "-o", str(exported), name)
            yield exported
        finally:
            for leftover in (["rm", "-f", name], ["rmi", "-f", name]):
                subprocess.run(["docker", *leftover], capture_output=True, check=False)


def _docker(*arguments: str) -> None:
    subprocess.run(["docker", *arguments], check=True)
