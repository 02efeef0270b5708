# SPDX-License-Identifier: Apache-2.0
"""Everything this package raises on purpose.

```text
PandastackError
├── AuthError            401, or no API key configured
├── NotFoundError        404
├── BadRequestError      any other 4xx: the request is at fault
├── ServerError          5xx: the server or its host is at fault
├── ConnectionError      no answer at all (alias: APIConnectionError)
├── CreateCancelled      the caller's `cancel` event ended a create
├── SandboxTimeout       a command or a code cell ran out of time
├── CommandFailed        `check=True` and a non-zero exit code
├── ExecInterrupted      a stream ended and the outcome is unknown
├── TemplateBuildError   a template build failed or took too long
└── ExploreError         an experiment had no winner
```
"""

from __future__ import annotations

from typing import Optional


class PandastackError(Exception):
    """The root of the tree above."""

    #: HTTP status of the answer that caused this, when an answer did.
    status_code: Optional[int] = None


class AuthError(PandastackError):
    """The API key is missing or was refused."""


class NotFoundError(PandastackError):
    """There is no such sandbox, file, template or other object."""


class BadRequestError(PandastackError):
    """The server refused the request as it stands; see ``status_code``."""


class ServerError(PandastackError):
    """The server, or the host it runs on, failed."""


class ConnectionError(PandastackError):
    """No usable answer arrived: refused, reset, timed out or cut off."""


APIConnectionError = ConnectionError


class CreateCancelled(PandastackError):
    """A create, fork or fork-tree was given up through its ``cancel`` event.

    Nothing is sent once the event is set. When the server had refused an earlier attempt,
    that refusal is the ``__cause__``.
    """


class _Partial(PandastackError):
    """An error that carries what a command had printed until then."""

    def __init__(self, message: str, *, partial_stdout: str = "", partial_stderr: str = "") -> None:
        super().__init__(message)
        self.partial_stdout = partial_stdout
        self.partial_stderr = partial_stderr


class SandboxTimeout(_Partial):
    """A command or code cell was killed because its time ran out.

    ``partial_stdout`` and ``partial_stderr`` hold what it had printed, where the server says so.
    """


class CommandFailed(PandastackError):
    """A command that had to succeed did not."""

    def __init__(self, message: str, *, exit_code: int, stdout: str = "", stderr: str = "") -> None:
        super().__init__(message)
        self.exit_code = exit_code
        self.stdout = stdout
        self.stderr = stderr


class ExecInterrupted(_Partial):
    """A command's stream ended before its exit code arrived.

    Whether the command succeeded, failed or still runs is not known, so no exit code is made
    up. What had arrived is in ``partial_stdout`` and ``partial_stderr`` (their last mebibyte).
    """


class TemplateBuildError(PandastackError):
    """A template build failed or did not end in time; ``build`` is its last known state."""

    def __init__(self, message: str, *, build: Optional[object] = None) -> None:
        super().__init__(message)
        self.build = build


class ExploreError(PandastackError):
    """An experiment could not run, or none of its branches was fit to win."""
