# SPDX-License-Identifier: Apache-2.0
"""One session in its sandbox: the runner in the guest, and what it leaves behind."""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from typing import Callable, Optional

from ..exceptions import NotFoundError, PandastackError
from ..sandbox import Sandbox
from .config import CmaConfig

_RUNNER = "ant beta:worker run --workdir /workspace --log-format json"
# Matches the runner's command line, but not that of the shell that runs this.
_STOP_RUNNER = "pkill -f '[a]nt beta:worker run'"
_RUNNER_LOG = "/var/log/cma-runner.log"
_LAUNCHER = "/tmp/cma-launch.sh"
_EXIT_FILE = "/tmp/cma-runner.exit"
_OUTPUTS = "/mnt/session/outputs"
_POLL_SECONDS = 5.0

# The guest is hostile: these bound what its listing of outputs can make this machine do.
_MAX_DEPTH = 16
_MAX_FILES = 10_000


class Session:
    """Runs one turn. ``wait`` sleeps, and says true when the worker is to stop."""

    def __init__(
        self, config: CmaConfig, sandbox: Sandbox, session_id: str, wait: Callable[[float], bool]
    ) -> None:
        self._config = config
        self._sandbox = sandbox
        self._id = session_id
        self._wait = wait

    def launch(self, work_id: str) -> None:
        """Starts the runner, detached: it may run for longer than any request.

        The key reaches the guest in a file that deletes itself, not in a command line that the
        server may log.
        """
        variables = {
            "ANTHROPIC_ENVIRONMENT_ID": self._config.environment_id,
            "ANTHROPIC_ENVIRONMENT_KEY": self._config.environment_key,
            "ANTHROPIC_SESSION_ID": self._id,
            "ANTHROPIC_WORK_ID": work_id,
            "HOME": "/root",
            # The template's language runtimes, which a plain `sh -c` does not find by itself.
            "MISE_DATA_DIR": "/opt/mise",
            "MISE_CONFIG_DIR": "/opt/mise",
        }
        run = f"{_RUNNER} >>{_RUNNER_LOG} 2>&1; echo $? >{_EXIT_FILE}"
        lines = [
            f"rm -f {_LAUNCHER} {_EXIT_FILE}",
            *(f"export {name}={shlex.quote(value)}" for name, value in variables.items()),
            "export PATH=/opt/mise/shims:$PATH",
            f"setsid sh -c {shlex.quote(run)} </dev/null >/dev/null 2>&1 &",
        ]
        self._sandbox.filesystem.write(_LAUNCHER, "\n".join(lines) + "\n")
        self._sandbox.exec(f"sh {_LAUNCHER}", timeout_seconds=30, check=True)

    def wait_for_runner(self) -> Optional[str]:
        """Waits for the runner's exit code; None when its time ran out or the worker stops.

        Raises `NotFoundError` when the sandbox is gone.
        """
        deadline = time.monotonic() + self._config.max_session_seconds
        while not self._wait(_POLL_SECONDS):
            if time.monotonic() > deadline:
                self._sandbox.exec(_STOP_RUNNER, timeout_seconds=15)
                return None
            try:
                code = self._sandbox.exec(f"cat {_EXIT_FILE} 2>/dev/null", timeout_seconds=15)
            except NotFoundError:
                raise
            except PandastackError:
                continue  # the next look may succeed
            if code.stdout.strip():
                return code.stdout.strip()
        return None

    def collect(self) -> int:
        """Copies the session's outputs to this machine; returns how many files."""
        if not is_safe_name(self._id):
            raise ValueError(f"session id {self._id!r} cannot name a directory")
        return self._copy(_OUTPUTS, self._config.outputs_dir / self._id, _MAX_FILES, _MAX_DEPTH)

    def _copy(self, remote: str, local: Path, room: int, depth: int) -> int:
        copied = 0
        for entry in self._sandbox.filesystem.listdir(remote):
            if not is_safe_name(entry.name) or copied >= room:
                continue
            source, target = f"{remote}/{entry.name}", local / entry.name
            if target.is_symlink():
                continue
            if not entry.is_dir:
                local.mkdir(parents=True, exist_ok=True)
                target.write_bytes(self._sandbox.filesystem.read(source))
                copied += 1
            elif depth > 0:
                copied += self._copy(source, target, room - copied, depth - 1)
        return copied

    def park(self) -> str:
        """Does with the sandbox what is configured for the time between turns."""
        if self._config.on_idle == "delete":
            self._sandbox.kill()
            return "deleted"
        if self._config.on_idle == "running":
            return "left running"
        self._sandbox.hibernate()
        return "hibernated"


def is_safe_name(name: str) -> bool:
    """Whether a name from elsewhere is one component of a path and stays where it is put."""
    return name not in ("", ".", "..") and not any(c in name for c in "/\\\0")
