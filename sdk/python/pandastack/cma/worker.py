# SPDX-License-Identifier: Apache-2.0
"""The worker: takes items of work and looks after their sessions."""

from __future__ import annotations

import signal
import threading
import time
from datetime import datetime, timezone
from typing import Callable, Optional, Set

import httpx

from ..client import Client
from ..exceptions import BadRequestError, NotFoundError, PandastackError
from ..sandbox import Sandbox
from .config import CmaConfig
from .queue import KeyRefused, Work, WorkQueue
from .session import Session

_SESSION_KEY = "cma.session_id"
_ENVIRONMENT_KEY = "cma.environment_id"
_WAKE_SECONDS = 60
_LONGEST_BACK_OFF = 5.0


def _print(message: str) -> None:
    print(f"[{datetime.now(timezone.utc):%H:%M:%S}] {message}", flush=True)


class Worker:
    """Takes sessions until it is stopped; see `pandastack.cma`."""

    def __init__(
        self, config: CmaConfig, *, logger: Optional[Callable[[str], None]] = None
    ) -> None:
        self.config = config
        self.log = logger or _print
        self._client = Client(
            config.pandastack_api, config.pandastack_token, timeout=config.client_timeout
        )
        self._queue = WorkQueue(config)
        self._stopping = threading.Event()
        # Sessions with a runner: a second item for one of them must not start a second runner.
        self._active: Set[str] = set()
        self._lock = threading.Lock()

    def stop(self) -> None:
        """Makes `run` return. Runners in sandboxes run on and keep their work."""
        self._stopping.set()

    def run(self, *, install_signal_handlers: bool = True) -> None:
        """Takes work until `stop`, SIGINT or SIGTERM."""
        missing = self.config.missing_required()
        if missing:
            raise ValueError(f"missing required config: {', '.join(missing)}")
        self.config.outputs_dir.mkdir(parents=True, exist_ok=True)
        # Only the main thread may have signal handlers.
        if install_signal_handlers and threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, lambda *_: self.stop())
        self.log(f"worker {self.config.worker_id} takes work of {self.config.environment_id}")
        failures = 0
        while not self._stopping.is_set():
            try:
                work = self._queue.poll()
            except KeyRefused as error:
                self.log(str(error))
                return
            except (httpx.HTTPError, ValueError) as error:
                failures += 1
                if failures == 3:  # one lost long poll is nothing to talk about
                    self.log(f"the queue cannot be reached: {error}")
                self._stopping.wait(min(_LONGEST_BACK_OFF, float(failures)))
                continue
            failures = 0
            if work is not None:
                self._take(work)
        self.log("stopped")

    def _take(self, work: Work) -> None:
        """Starts a session's turn, and a thread that waits for its end."""
        session = work.session_id
        with self._lock:
            if not session or session in self._active:
                return
            self._active.add(session)
        try:
            if not self._queue.acknowledge(work):
                self._release(session)
                return
            sandbox = self._sandbox_for(session)
            turn = Session(self.config, sandbox, session, self._stopping.wait)
            turn.launch(work.id)
        except (PandastackError, httpx.HTTPError) as error:
            self.log(f"session {session}: not started: {error}")
            self._release(session)
            return
        self.log(f"session {session}: running in sandbox {sandbox.id}")
        threading.Thread(target=self._follow, args=(turn, session), daemon=True).start()

    def _follow(self, turn: Session, session: str) -> None:
        try:
            code = turn.wait_for_runner()
            if self._stopping.is_set():
                return
            self.log(f"session {session}: runner ended, exit code {code or 'unknown'}")
            try:
                self.log(f"session {session}: {turn.collect()} output files")
            except (PandastackError, OSError, ValueError) as error:
                self.log(f"session {session}: outputs not copied: {error}")
            self.log(f"session {session}: sandbox {turn.park()}")
        except NotFoundError:
            self.log(f"session {session}: its sandbox is gone")
        except PandastackError as error:
            self.log(f"session {session}: {error}")
        finally:
            self._release(session)

    def _release(self, session: str) -> None:
        with self._lock:
            self._active.discard(session)

    def _sandbox_for(self, session: str) -> Sandbox:
        """The sandbox of an earlier turn if it still answers, else a new one."""
        for sandbox in Sandbox.list(client=self._client):
            if sandbox.metadata.get(_SESSION_KEY) != session:
                continue
            if sandbox.status in ("deleted", "failed", "stopping"):
                continue
            try:
                sandbox.exec("true", timeout_seconds=_WAKE_SECONDS)
                return sandbox
            except PandastackError as error:
                self.log(f"session {session}: sandbox {sandbox.id} is of no use: {error}")
                sandbox.kill()
        return self._new_sandbox(session)

    def _new_sandbox(self, session: str) -> Sandbox:
        metadata = {_SESSION_KEY: session, _ENVIRONMENT_KEY: self.config.environment_id}
        started = time.monotonic()
        ttl: Optional[int] = self.config.sandbox_ttl_seconds
        while True:
            try:
                sandbox = Sandbox.create(
                    self.config.template, metadata=metadata, ttl_seconds=ttl, client=self._client
                )
            except BadRequestError as error:
                if ttl is None or "ttl_seconds exceeds tier maximum" not in str(error):
                    raise
                ttl = None  # the server's own limit applies
                continue
            took = int((time.monotonic() - started) * 1000)
            self.log(f"session {session}: sandbox {sandbox.id} made in {took} ms")
            return sandbox
