# SPDX-License-Identifier: Apache-2.0
"""Functions as a service: ``client.functions``. A server may not offer them: see `_rest`."""

from __future__ import annotations

import base64
import io
import os
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, Iterator, List, Optional, Tuple

from ._core.answers import object_call
from ._core.wire import Request
from ._core.wire import path as url_path
from ._rest import Rest, given

if TYPE_CHECKING:
    from .client import Client

# What tools leave behind and a bundle does not need.
_LEFT_OUT = frozenset(
    (".git", ".next", ".turbo", ".venv", "__pycache__", "dist", "node_modules", "venv")
)


class FunctionsAPI:
    """Functions: code that the server runs in a sandbox for each call."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._rest = Rest(client)

    def create(
        self,
        name: str,
        runtime: str,
        file_path: str,
        *,
        entrypoint: Optional[str] = None,
        env: Optional[Dict[str, str]] = None,
        template: str = "code-interpreter",
        public: bool = False,
    ) -> Dict[str, Any]:
        """A function of one file."""
        file = Path(file_path)
        code = base64.b64encode(file.read_bytes()).decode("ascii")
        body = _definition(name, runtime, entrypoint or file.name, env, template, public)
        return self._rest.object("POST", "functions", json={**body, "code": code})

    def deploy(
        self,
        name: str,
        runtime: str,
        path: str,
        *,
        entrypoint: Optional[str] = None,
        env: Optional[Dict[str, str]] = None,
        template: str = "code-interpreter",
        public: bool = False,
    ) -> Dict[str, Any]:
        """Uploads a file or a directory as a function's code; makes the function if needed."""
        entrypoint = entrypoint or ("handler.js" if runtime == "nodejs" else "handler.py")
        function = next((f for f in self.list() if f.get("name") == name), None)
        if function is None:
            body = _definition(name, runtime, entrypoint, env, template, public)
            function = self._rest.object("POST", "functions", json=body)
        return self.deploy_bundle(function["id"], _bundle(Path(path), entrypoint), entrypoint)

    def deploy_bundle(
        self, function_id: str, bundle: bytes, entrypoint: Optional[str] = None
    ) -> Dict[str, Any]:
        """Uploads a function's code as a gzipped tar archive."""
        request = Request(
            "POST",
            url_path("functions", function_id, "deploy"),
            form=given(entrypoint=entrypoint),
            files={"bundle": ("code.tar.gz", bundle, "application/gzip")},
        )
        return self._client._run(object_call(request))

    def metrics(self, function_id: str, period_hours: int = 24) -> Dict[str, Any]:
        """Latencies, error rate and cold starts."""
        period = {"period": str(period_hours)}
        return self._rest.object("GET", "functions", function_id, "metrics", params=period)

    def list(self) -> List[Dict[str, Any]]:
        """All functions."""
        return self._rest.objects("functions")

    def get(self, function_id: str) -> Dict[str, Any]:
        """One function."""
        return self._rest.object("GET", "functions", function_id)

    def update(
        self,
        function_id: str,
        *,
        name: Optional[str] = None,
        env: Optional[Dict[str, str]] = None,
        public: Optional[bool] = None,
        entrypoint: Optional[str] = None,
    ) -> Dict[str, Any]:
        """Changes what is given."""
        body = given(name=name, env=env, public=public, entrypoint=entrypoint)
        return self._rest.object("PATCH", "functions", function_id, json=body)

    def delete(self, function_id: str) -> None:
        """Deletes a function."""
        self._rest.delete("functions", function_id)

    def invoke(self, function_id: str, *, input: Optional[Any] = None) -> Dict[str, Any]:
        """Runs a function and waits: ``{status, exit_code, stdout, stderr, duration_ms}``."""
        return self._rest.object(
            "POST", "functions", function_id, "invoke", json=given(input=input)
        )

    def trigger(self, function_id: str, *, input: Optional[Any] = None) -> Dict[str, Any]:
        """`invoke`."""
        return self.invoke(function_id, input=input)

    def runs(self, function_id: str) -> List[Dict[str, Any]]:
        """What it has run."""
        return self._rest.objects("functions", function_id, "runs")


def _definition(
    name: str,
    runtime: str,
    entrypoint: str,
    env: Optional[Dict[str, str]],
    template: str,
    public: bool,
) -> Dict[str, Any]:
    return given(
        name=name,
        runtime=runtime,
        entrypoint=entrypoint,
        env=env,
        template=template,
        public=public,
    )


def _bundle(source: Path, entrypoint: str) -> bytes:
    """A gzipped tar archive of a directory's files, or of one file under the entry point's name."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for file, name in _members(source, entrypoint):
            archive.add(file, arcname=name)
    return buffer.getvalue()


def _members(source: Path, entrypoint: str) -> Iterator[Tuple[Path, str]]:
    if not source.is_dir():
        yield source, entrypoint
        return
    for directory, below, names in os.walk(source):
        below[:] = sorted(set(below) - _LEFT_OUT)
        for name in sorted(names):
            file = Path(directory, name)
            yield file, file.relative_to(source).as_posix()
