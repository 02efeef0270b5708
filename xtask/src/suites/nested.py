"""Runs test programs one test after the other, where there is KVM and neither cargo nor network.

    /share/programs    pandastack and the test programs, whose names are the arguments
    /share/roots       of the tests' template ──linked──▶ /scratch/data ──▶ one bake for all tests
    /share/sample      the sample of the README, and the root of its template
    /share/sdk         the Python packages that the sample imports

A line tells how each test ended, the last one the sum. The status is 0 if none failed.
"""

import os
import signal
import subprocess
import sys
import time
import urllib.request

PROGRAMS = "/share/programs"
PANDASTACK = f"{PROGRAMS}/pandastack"
SAMPLE = "/share/sample"
DATA = "/scratch/data"
SAMPLE_DATA = "/scratch/sample"
SKIPS = "/scratch/skips"
# Of one test. Most take a minute or two here.
TIMEOUT = 2400


def say(text):
    print(text, flush=True)


def bake(template, roots, data):
    """A data directory with the roots of the host, and a bake of this engine in it."""
    os.makedirs(f"{data}/templates/roots")
    for name in os.listdir(roots):
        os.symlink(f"{roots}/{name}", f"{data}/templates/roots/{name}")
    begin = time.monotonic()
    command = [PANDASTACK, "template", "build", template, "--data-dir", data]
    subprocess.run(command, check=True)
    say(f"baked {template} in {time.monotonic() - begin:.0f} s")


def prepare():
    os.environ.update(
        PANDASTACK_BIN=PANDASTACK,
        PANDASTACK_TEST_DATA=DATA,
        PANDASTACK_TEST_SKIPS=SKIPS,
        PANDASTACK_ENGINE=os.environ["PANDASTACK_TEST_ENGINE"],
        TMPDIR="/scratch/tmp",
    )
    os.makedirs("/scratch/tmp")
    bake("base", "/share/roots", DATA)


def sample():
    """What the README shows, to the letter."""
    bake("code-interpreter", f"{SAMPLE}/roots", SAMPLE_DATA)
    address = "127.0.0.1:7878"
    command = [PANDASTACK, "serve", "--data-dir", SAMPLE_DATA, "--listen", address, "--no-client-config"]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        wait_for(address)
        with open(f"{SAMPLE_DATA}/api-key") as key:
            environment = {
                "PANDASTACK_API": f"http://{address}",
                "PANDASTACK_API_KEY": key.read().strip(),
                "PYTHONPATH": "/share/sdk",
            }
        printed = subprocess.run(
            ["python3", f"{SAMPLE}/sample.py"],
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
        )
        passed = printed.stdout == "4950\n 0\n"
        return "PASS" if passed else "FAIL", printed.stdout + printed.stderr, []
    finally:
        server.terminate()
        server.wait()


def wait_for(address):
    for _ in range(600):
        try:
            urllib.request.urlopen(f"http://{address}/healthz").close()
            return
        except OSError:
            time.sleep(0.1)
    raise SystemExit("the server does not answer")


def tests_of(program):
    listing = subprocess.run([program, "--list", "--format", "terse"], capture_output=True, text=True)
    listing.check_returncode()
    return [line.removesuffix(": test") for line in listing.stdout.splitlines() if line.endswith(": test")]


def run(program, test):
    """How the test ended, what it printed, and why it or a part of it was skipped."""
    if os.path.exists(SKIPS):
        os.remove(SKIPS)
    child = subprocess.Popen(
        [program, "--exact", test, "--test-threads=1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        output, _ = child.communicate(timeout=TIMEOUT)
        passed = child.returncode == 0
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        output, _ = child.communicate()
        output += f"\nnot done within {TIMEOUT} s\n"
        passed = False
    skips = open(SKIPS).read().splitlines() if os.path.exists(SKIPS) else []
    return "FAIL" if not passed else "SKIP" if skips else "PASS", output, skips


def main():
    prepare()
    counts = {"PASS": 0, "FAIL": 0, "SKIP": 0}
    wanted = os.environ.get("NESTED_TESTS", "").split(",")
    programs = {name: f"{PROGRAMS}/{name}" for name in sys.argv[1:]}
    tests = [
        (f"{name}::{test}", lambda program=program, test=test: run(program, test))
        for name, program in programs.items()
        for test in tests_of(program)
    ]
    if os.path.exists(SAMPLE):
        tests.append(("sample", sample))
    for name, test in tests:
        if not any(part in name for part in wanted):
            continue
        begin = time.monotonic()
        outcome, output, skips = test()
        counts[outcome] += 1
        say(f"{outcome} [{time.monotonic() - begin:7.1f} s] {name}")
        for skip in skips:
            say(f"     skipped: {skip}")
        if outcome == "FAIL":
            say(output)
    say(f"nested: {counts['PASS']} passed, {counts['FAIL']} failed, {counts['SKIP']} skipped")
    sys.exit(counts["FAIL"] > 0)


main()
