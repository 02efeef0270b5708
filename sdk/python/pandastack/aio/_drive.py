# SPDX-License-Identifier: Apache-2.0
"""Runs flows on the event loop, over ``httpx.AsyncClient``."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import Any, AsyncIterator, cast

import httpx

from .._core.answers import error_of
from .._core.wire import Endpoint, Flow, Pause, Reply, Request, Step, T
from .._drive import no_answer
from ..exceptions import PandastackError


def check_cancel_event(cancel: Any) -> None:
    """Refuses, before anything is sent, an event that would block the loop."""
    if cancel is not None and not isinstance(cancel, asyncio.Event):
        raise TypeError(f"cancel= needs an asyncio.Event here, got {type(cancel).__name__}")


class AsyncDriver:
    """One pool of connections and the loop that feeds flows with what it brings."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self.http = http

    async def run(self, flow: Flow[T], endpoint: Endpoint) -> T:
        """Runs a flow to its end."""
        try:
            step = next(flow)
            while True:
                try:
                    answer = await self._perform(step, endpoint)
                except PandastackError as error:
                    step = flow.throw(error)
                else:
                    step = flow.send(answer)
        except StopIteration as end:
            return cast(T, end.value)

    @asynccontextmanager
    async def stream(
        self, request: Request, endpoint: Endpoint
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """Sends a request and gives its answer's bytes as they arrive.

        Leaving the block closes the connection, which tells the server to stop.
        """
        response = await self._send(request, endpoint, stream=True)
        try:
            if not response.is_success:
                raise error_of(await self._read(response))
            yield self._chunks(response)
        finally:
            await response.aclose()

    async def _perform(self, step: Step, endpoint: Endpoint) -> object:
        if isinstance(step, Pause):
            return await self._pause(step)
        return await self._read(await self._send(step, endpoint, stream=False))

    async def _pause(self, step: Pause) -> bool:
        if step.cancel is None:
            await asyncio.sleep(step.seconds)
            return False
        try:
            await asyncio.wait_for(step.cancel.wait(), step.seconds)
        except asyncio.TimeoutError:
            return False
        return True

    async def _send(self, request: Request, endpoint: Endpoint, stream: bool) -> httpx.Response:
        arguments = endpoint.arguments(request)
        try:
            return await self.http.send(self.http.build_request(**arguments), stream=stream)
        except (httpx.RequestError, httpx.InvalidURL) as error:
            raise no_answer(error) from error

    async def _read(self, response: httpx.Response) -> Reply:
        body = b"".join([chunk async for chunk in self._chunks(response)])
        return Reply(response.status_code, response.headers, body)

    async def _chunks(self, response: httpx.Response) -> AsyncIterator[bytes]:
        try:
            async for chunk in response.aiter_bytes():
                yield chunk
        except httpx.RequestError as error:
            raise no_answer(error) from error
