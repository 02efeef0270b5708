# SPDX-License-Identifier: Apache-2.0
"""Commands that are run to their end."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from pandastack import CommandFailed, SandboxTimeout

from conftest import eventually

AWKWARD = (
    "é ÅÄ 日本 🐼 next\u0085line line\u2028sep par\u2029sep nb\u00a0sp \ufeff bom \x0b\x0c\x1c"
)


def test_both_streams_and_the_exit_code(sandbox):
    result = sandbox.exec("echo out; echo err >&2; exit 3")
    assert (result.stdout, result.stderr, result.exit_code) == ("out\n", "err\n", 3)
    assert result.duration_ms >= 0


@pytest.mark.parametrize("code", [0, 1, 2, 126, 127, 255])
def test_exit_codes(sandbox, code):
    result = sandbox.exec(f"exit {code}")
    assert (result.stdout, result.stderr, result.exit_code) == ("", "", code)


@pytest.mark.parametrize("signal", [1, 6, 9, 11, 15])
def test_death_by_signal(sandbox, signal):
    assert sandbox.exec(f"kill -{signal} $$").exit_code == 128 + signal


def test_check(sandbox):
    assert sandbox.exec("true", check=True).exit_code == 0
    with pytest.raises(CommandFailed) as caught:
        sandbox.exec("echo why >&2; exit 9", check=True)
    assert (caught.value.exit_code, caught.value.stderr) == (9, "why\n")


def test_a_command_that_does_not_exist(sandbox):
    result = sandbox.exec("no-such-program-anywhere")
    assert result.exit_code == 127
    assert "no-such-program-anywhere" in result.stderr


def test_a_shell_runs_it(sandbox):
    assert sandbox.exec("for i in 1 2 3; do echo $i; done | tail -n 1").stdout == "3\n"
    assert sandbox.exec("echo $HOME; pwd; id -un").stdout.splitlines() == ["/root", "/root", "root"]


def test_nothing_is_shared_between_commands_but_files(sandbox):
    sandbox.exec("export LEFT=behind; cd /usr; umask 0")
    assert sandbox.exec("echo ${LEFT-nothing}; pwd").stdout == "nothing\n/root\n"


def test_unicode_both_ways(sandbox):
    result = sandbox.exec(f"printf %s '{AWKWARD}'; printf %s '{AWKWARD}' >&2")
    assert result.stdout == AWKWARD
    assert result.stderr == AWKWARD


def test_bytes_that_are_no_text_do_no_harm(sandbox):
    result = sandbox.exec(r"printf 'a\377\376b\0c'")
    assert result.stdout.startswith("a")
    assert result.stdout.endswith("b\0c")


def test_a_megabyte_exactly(sandbox):
    result = sandbox.exec("seq 1 150000; seq 1 1000 >&2")
    assert result.stdout == "".join(f"{n}\n" for n in range(1, 150_001))
    assert result.stderr == "".join(f"{n}\n" for n in range(1, 1_001))


def test_a_long_command_line(sandbox):
    text = "x" * 50_000
    assert sandbox.exec(f"printf %s {text} | wc -c").stdout.strip() == "50000"


def test_standard_input_is_empty(sandbox):
    assert sandbox.exec("cat; echo end", timeout_seconds=10).stdout == "end\n"


def test_python(sandbox):
    result = sandbox.run_code("import sys; print(1); print(2, file=sys.stderr); sys.exit(4)")
    assert (result.stdout, result.stderr, result.exit_code) == ("1\n", "2\n", 4)
    assert sandbox.run_code("echo $((6 * 7))", language="bash").stdout == "42\n"
    assert sandbox.commands.run("echo run").stdout == "run\n"


def test_a_timeout_ends_everything_that_was_started(sandbox):
    begin = time.monotonic()
    with pytest.raises(SandboxTimeout):
        sandbox.exec("sleep 3131 & sleep 3131", timeout_seconds=1)
    assert time.monotonic() - begin < 20
    eventually(lambda: sandbox.exec("pgrep -f '[s]leep 3131'").exit_code == 1)
    assert sandbox.exec("echo alive").stdout == "alive\n"


def test_a_timeout_that_is_not_needed(sandbox):
    assert sandbox.exec("echo quick", timeout_seconds=1).stdout == "quick\n"


def test_what_runs_in_the_background_does_not_hold_the_answer(sandbox):
    begin = time.monotonic()
    result = sandbox.exec("sleep 25 </dev/null >/dev/null 2>&1 & echo started")
    assert result.stdout == "started\n"
    assert time.monotonic() - begin < 15


def test_sixteen_at_a_time(sandbox):
    begin = time.monotonic()
    with ThreadPoolExecutor(16) as pool:
        results = list(pool.map(lambda n: sandbox.exec(f"sleep 2; echo {n}; exit {n}"), range(16)))
    assert time.monotonic() - begin < 20, "they ran one after the other"
    assert [r.stdout for r in results] == [f"{n}\n" for n in range(16)]
    assert [r.exit_code for r in results] == list(range(16))


def test_longer_than_the_library_waits_for_a_byte(sandbox):
    # It gives up on a connection that is silent for 30 seconds, so the server must not be. When
    # a limit of that length passes, the status has gone out: what is left is the exit code.
    with ThreadPoolExecutor(2) as pool:
        ends = pool.submit(sandbox.exec, "sleep 31; echo done")
        late = pool.submit(sandbox.exec, "echo begun; sleep 60", timeout_seconds=31)
        assert ends.result().stdout == "done\n"
        assert late.result().exit_code != 0
        assert late.result().stdout == "begun\n"


def test_the_clock_is_right(sandbox):
    guest = int(sandbox.exec("date +%s").stdout)
    assert abs(guest - time.time()) < 5


def test_there_is_no_way_out(sandbox):
    for address in ("169.254.169.254", "10.0.0.1", "127.0.0.1:22", "1.1.1.1"):
        assert sandbox.exec(f"curl -s -m 2 http://{address}/").exit_code != 0
