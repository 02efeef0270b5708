# SPDX-License-Identifier: Apache-2.0
"""What the server tells, as plain data. Nothing in here talks to it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields
from typing import Any, Dict, List, Mapping, Optional, Union

#: What a sandbox may reach, as the API takes and gives it: ``"none"``, or an object such as
#: ``{"allow": [{"host": "pypi.org"}]}``.
Egress = Union[str, Mapping[str, Any]]


@dataclass(frozen=True)
class ExecResult:
    """What a command left behind. A command that a signal ended has exit code 128 + signal."""

    stdout: str
    stderr: str
    exit_code: int
    duration_ms: int = 0
    #: Output beyond the server's limit was dropped.
    truncated: bool = False

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ExecResult:
        """From the API's object; some servers call the exit code ``exit``."""
        return cls(
            stdout=str(data.get("stdout") or ""),
            stderr=str(data.get("stderr") or ""),
            exit_code=int(data.get("exit_code", data.get("exit", 0))),
            duration_ms=int(data.get("duration_ms") or 0),
            truncated=bool(data.get("truncated", False)),
        )


@dataclass(frozen=True)
class Result:
    """One thing that a code cell showed: the same thing in one or more MIME types."""

    data: Dict[str, str]

    @property
    def png(self) -> Optional[str]:
        """A PNG image in base64."""
        return self.data.get("image/png")

    @property
    def jpeg(self) -> Optional[str]:
        """A JPEG image in base64."""
        return self.data.get("image/jpeg")

    @property
    def svg(self) -> Optional[str]:
        """An SVG image as text."""
        return self.data.get("image/svg+xml")

    @property
    def html(self) -> Optional[str]:
        """HTML, such as the table of a data frame."""
        return self.data.get("text/html")

    @property
    def markdown(self) -> Optional[str]:
        """Markdown."""
        return self.data.get("text/markdown")

    @property
    def json(self) -> Optional[Any]:
        """JSON, parsed; as text when it does not parse."""
        text = self.data.get("application/json")
        try:
            return None if text is None else json.loads(text)
        except ValueError:
            return text

    @property
    def text(self) -> Optional[str]:
        """Plain text: the ``repr`` of the value."""
        return self.data.get("text/plain")

    @property
    def chart(self) -> Optional[str]:
        """The image, in whichever format there is one."""
        return self.png or self.jpeg or self.svg

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Result:
        """From a bundle of MIME types, or from one ``{type, data}``."""
        if "type" in data:
            return cls({str(data["type"]): str(data.get("data", ""))})
        return cls({str(kind): _mime_text(value) for kind, value in data.items()})


def _mime_text(value: Any) -> str:
    """Bundles hold text; a server that sends JSON values as JSON is understood too."""
    return value if isinstance(value, str) else json.dumps(value)


@dataclass(frozen=True)
class Execution:
    """What a code cell did. ``error`` is the formatted traceback of a cell that raised."""

    results: List[Result] = field(default_factory=list)
    stdout: str = ""
    stderr: str = ""
    error: Optional[str] = None
    exit_code: int = 0
    duration_ms: int = 0

    @property
    def logs(self) -> Dict[str, str]:
        """Both output streams by name."""
        return {"stdout": self.stdout, "stderr": self.stderr}

    @property
    def text(self) -> Optional[str]:
        """The first plain text among the results."""
        return next((r.text for r in self.results if r.text is not None), None)

    @property
    def png(self) -> Optional[str]:
        """The first PNG among the results."""
        return next((r.png for r in self.results if r.png is not None), None)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Execution:
        """From the API's object."""
        results = data.get("results") or []
        return cls(
            results=[Result.from_dict(item) for item in results if isinstance(item, dict)],
            stdout=str(data.get("stdout") or ""),
            stderr=str(data.get("stderr") or ""),
            error=str(data["error"]) if data.get("error") else None,
            exit_code=int(data.get("exit", data.get("exit_code", 0)) or 0),
            duration_ms=int(data.get("duration_ms") or 0),
        )


@dataclass(frozen=True)
class FileInfo:
    """A file or directory of a sandbox."""

    name: str
    path: str
    is_dir: bool
    size: int = 0
    mode: str = ""
    mtime: int = 0

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], parent: str = "") -> FileInfo:
        """From the API's object; ``parent`` is the directory that was listed."""
        name = str(data.get("name") or "")
        return cls(
            name=name,
            path=str(data.get("path") or (f"{parent.rstrip('/')}/{name}" if parent else name)),
            is_dir=bool(data.get("is_dir", False)),
            size=int(data.get("size") or 0),
            mode=str(data.get("mode") or ""),
            mtime=int(data.get("mtime") or 0),
        )


@dataclass(frozen=True)
class Port:
    """A port of a sandbox: listed by a user, or found to be listening."""

    port: int
    label: Optional[str] = None
    listening: bool = True
    source: str = "detected"
    #: Its address below the API's, for holders of a key.
    proxy_url: Optional[str] = None
    #: Whether anybody may reach it, without a key.
    public: bool = False
    #: The address of its own site, as the server knows it.
    preview_url: Optional[str] = None

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Port:
        """From the API's object."""
        return cls(
            port=int(data["port"]),
            label=data.get("label"),
            listening=bool(data.get("listening", True)),
            source=str(data.get("source") or "detected"),
            proxy_url=data.get("proxy_url"),
            public=bool(data.get("public", False)),
            preview_url=data.get("preview_url"),
        )


@dataclass(frozen=True)
class Template:
    """What sandboxes are made from."""

    name: str
    rootfs_path: Optional[str] = None
    size_bytes: Optional[int] = None
    cpu: Optional[int] = None
    memory_mb: Optional[int] = None
    #: Shared by every user of the server, who cannot delete it.
    is_global: Optional[bool] = None
    workspace: Optional[str] = None
    label: Optional[str] = None
    description: Optional[str] = None
    category: Optional[str] = None
    base: Optional[str] = None
    tools: Optional[List[str]] = None
    meta: Optional[Dict[str, Any]] = None
    #: Other names that lead to it.
    aliases: Optional[List[str]] = None
    #: Built, so that a create need not wait for it.
    built: Optional[bool] = None

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Template:
        """From the API's object."""
        return cls(**{**_known(cls, data), "name": str(data.get("name") or "")})


@dataclass(frozen=True)
class TemplateBuild:
    """A build of a template: ``queued``, on its way, then ``done`` or ``failed``."""

    id: str
    name: str
    status: str
    error: Optional[str] = None
    started_at: Optional[str] = None
    ended_at: Optional[str] = None
    size_mb: Optional[int] = None
    bytes: Optional[int] = None
    image_ref: Optional[str] = None

    @property
    def is_done(self) -> bool:
        """It succeeded."""
        return self.status == "done"

    @property
    def is_failed(self) -> bool:
        """It failed; ``error`` says why."""
        return self.status == "failed"

    @property
    def is_terminal(self) -> bool:
        """It is over, either way."""
        return self.is_done or self.is_failed

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TemplateBuild:
        """From the API's object."""
        required = {name: str(data.get(name) or "") for name in ("id", "name", "status")}
        return cls(**{**_known(cls, data), **required})


@dataclass(frozen=True)
class Token:
    """An API key. Only the answer to its creation holds ``token``, the key itself."""

    prefix: str
    name: str = ""
    token: Optional[str] = None
    created_at: Optional[str] = None

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Token:
        """From the API's object."""
        return cls(
            prefix=str(data.get("prefix") or ""),
            name=str(data.get("name") or data.get("label") or ""),
            token=data.get("token"),
            created_at=data.get("created_at"),
        )


def _known(cls: Any, data: Mapping[str, Any]) -> Dict[str, Any]:
    """The entries of ``data`` that are fields of a dataclass; newer servers may send more."""
    return {f.name: data[f.name] for f in fields(cls) if f.name in data}


@dataclass
class SandboxInfo:
    """The fields of a sandbox, as they were when it was last asked about."""

    id: str
    template: str
    cpu: int
    memory_mb: int
    status: str
    guest_ip: Optional[str] = None
    created_at: Optional[str] = None
    metadata: Dict[str, str] = field(default_factory=dict)
    from_snapshot: Optional[str] = None
    boot_ms: Optional[int] = None
    boot_mode: Optional[str] = None
    #: A persistent sandbox is not killed by the end of a ``with`` block.
    persistent: bool = False
    #: Seconds of life, 0 for no limit.
    ttl_seconds: Optional[int] = None
    #: What runs its instructions: ``kvm`` or ``qemu``.
    engine: Optional[str] = None
    #: How strong the wall around it is: ``hardware`` or ``emulated``.
    isolation: Optional[str] = None
    #: What it may reach: ``"none"`` is nothing at all, else an object with ``allow``.
    egress: Optional[Egress] = None
    #: Why it ended, once it has.
    end_reason: Optional[str] = None
    #: Writable disk in MiB.
    disk_mb: Optional[int] = None


def sandbox_fields(data: Mapping[str, Any], persistent: bool = False) -> Dict[str, Any]:
    """The fields of `SandboxInfo` from a sandbox object of the API.

    ``persistent`` is what the caller asked for, for servers that do not say.
    """
    created_at = data.get("created_at")
    return {
        "id": str(data["id"]),
        "template": str(data.get("template") or "code-interpreter"),
        "cpu": int(data.get("cpu") or 1),
        "memory_mb": int(data.get("memory_mb") or 512),
        "status": str(data.get("status") or "unknown"),
        "created_at": None if created_at is None else str(created_at),
        "metadata": dict(data.get("metadata") or {}),
        "persistent": bool(data.get("persistent", persistent)),
        **{name: data.get(name) for name in _AS_SENT},
    }


_AS_SENT = (
    "guest_ip",
    "from_snapshot",
    "boot_ms",
    "boot_mode",
    "ttl_seconds",
    "engine",
    "isolation",
    "egress",
    "end_reason",
    "disk_mb",
)
