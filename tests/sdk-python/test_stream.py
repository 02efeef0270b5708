# SPDX-License-Identifier: Apache-2.0
"""Commands whose output comes as it is written."""

import time

import pytest
from pandastack import NotFoundError, SandboxTimeout

from test_exec import AWKWARD


class Heard:
    """What a command printed, by stream."""

    def __init__(self):
        self.stdout, self.stderr = [], []

    def run(self, sandbox, command, **options):
        return sandbox.exec_stream(
            command, on_stdout=self.stdout.append, on_stderr=self.stderr.append, **options
        )

    @property
    def text(self):
        return "".join(self.stdout), "".join(self.stderr)


@pytest.fixture
def heard():
    return Heard()


def test_both_streams_and_the_exit_code(sandbox, heard):
    assert heard.run(sandbox, "echo out; echo err >&2; exit 7") == 7
    assert heard.text == ("out\n", "err\n")


def test_death_by_signal(sandbox, heard):
    assert heard.run(sandbox, "echo last; kill -9 $$") == 137
    assert heard.text == ("last\n", "")


def test_output_comes_before_the_end(sandbox):
    # The command waits for a file that is written only once its first line has arrived.
    chunks = []

    def answer(chunk):
        chunks.append(chunk)
        if "first" in chunk:
            sandbox.filesystem.write("/tmp/go", "on")

    command = "rm -f /tmp/go; echo first; until [ -e /tmp/go ]; do sleep 0.05; done; echo second"
    assert sandbox.exec_stream(command, on_stdout=answer, timeout_seconds=25) == 0
    assert "".join(chunks) == "first\nsecond\n"


def test_unicode(sandbox, heard):
    assert heard.run(sandbox, f"printf %s '{AWKWARD}'; printf %s '{AWKWARD}' >&2") == 0
    assert heard.text == (AWKWARD, AWKWARD)


def test_a_character_in_two_pieces_is_one(sandbox, heard):
    # Two writes, far enough apart to be two reads.
    assert heard.run(sandbox, r"printf 'a\303'; sleep 0.3; printf '\251b'") == 0
    assert heard.text == ("aéb", "")


def test_a_megabyte_exactly(sandbox, heard):
    assert heard.run(sandbox, "seq 1 150000") == 0
    assert heard.text == ("".join(f"{n}\n" for n in range(1, 150_001)), "")


def test_silence(sandbox, heard):
    assert heard.run(sandbox, "true") == 0
    assert heard.text == ("", "")


def test_a_timeout(sandbox, heard):
    begin = time.monotonic()
    with pytest.raises(SandboxTimeout):
        heard.run(sandbox, "echo begun; sleep 3132", timeout_seconds=1)
    assert time.monotonic() - begin < 20
    assert heard.text == ("begun\n", "")


def test_without_callbacks(sandbox):
    assert sandbox.exec_stream("echo unheard; exit 5") == 5


def test_a_sandbox_that_is_gone(create):
    sandbox = create()
    sandbox.kill()
    with pytest.raises(NotFoundError):
        sandbox.exec_stream("true")
