# SPDX-License-Identifier: Apache-2.0
"""Runs flows on the calling thread, over ``httpx.Client``."""

from __future__ import annotations

import inspect
import time
from contextlib import contextmanager
from typing import Any, Iterator, Optional, Protocol, cast

import httpx

from ._core.answers import error_of
from ._core.wire import Endpoint, Flow, Pause, Reply, Request, Step, T
from .exceptions import APIConnectionError, PandastackError


class CancelEvent(Protocol):
    """What ``cancel=`` takes: a ``threading.Event``, a ``multiprocessing.Event`` or their like."""

    def is_set(self) -> bool: ...

    def wait(self, timeout: Optional[float] = None) -> Any: ...


def check_cancel_event(cancel: Any) -> None:
    """Refuses, before anything is sent, an object that a thread cannot wait on."""
    if cancel is None:
        return
    wait = getattr(cancel, "wait", None)
    if not callable(wait) or not callable(getattr(cancel, "is_set", None)):
        raise TypeError(
            f"cancel= needs is_set() and wait(timeout), {type(cancel).__name__} lacks them"
        )
    if inspect.iscoroutinefunction(wait):
        raise TypeError(
            "cancel= needs an event that blocks, such as threading.Event; an asyncio.Event is for "
            "AsyncClient"
        )


class Driver:
    """One pool of connections and the loop that feeds flows with what it brings."""

    def __init__(self, http: httpx.Client) -> None:
        self.http = http

    def run(self, flow: Flow[T], endpoint: Endpoint) -> T:
        """Runs a flow to its end."""
        try:
            step = next(flow)
            while True:
                try:
                    answer = self._perform(step, endpoint)
                except PandastackError as error:
                    step = flow.throw(error)
                else:
                    step = flow.send(answer)
        except StopIteration as end:
            return cast(T, end.value)

    @contextmanager
    def stream(self, request: Request, endpoint: Endpoint) -> Iterator[Iterator[bytes]]:
        """Sends a request and gives its answer's bytes as they arrive.

        Leaving the block closes the connection, which tells the server to stop.
        """
        response = self._send(request, endpoint, stream=True)
        try:
            if not response.is_success:
                raise error_of(self._read(response))
            yield self._chunks(response)
        finally:
            response.close()

    def _perform(self, step: Step, endpoint: Endpoint) -> object:
        if isinstance(step, Pause):
            if step.cancel is None:
                time.sleep(step.seconds)
                return False
            return bool(step.cancel.wait(step.seconds))
        return self._read(self._send(step, endpoint, stream=False))

    def _send(self, request: Request, endpoint: Endpoint, stream: bool) -> httpx.Response:
        arguments = endpoint.arguments(request)
        try:
            return self.http.send(self.http.build_request(**arguments), stream=stream)
        except (httpx.RequestError, httpx.InvalidURL) as error:
            raise no_answer(error) from error

    def _read(self, response: httpx.Response) -> Reply:
        return Reply(response.status_code, response.headers, b"".join(self._chunks(response)))

    def _chunks(self, response: httpx.Response) -> Iterator[bytes]:
        try:
            yield from response.iter_bytes()
        except httpx.RequestError as error:
            raise no_answer(error) from error


def no_answer(error: Exception) -> APIConnectionError:
    """The exception for a request that brought no complete answer."""
    return APIConnectionError(
        f"could not connect to the PandaStack API: {str(error) or type(error).__name__}"
    )
