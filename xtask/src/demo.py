"""Runs the sample of the README to the letter, then times the same steps one by one."""

import runpy
import sys
import time

from pandastack import Sandbox

runpy.run_path(sys.argv[1])


def timed(action):
    begin = time.perf_counter()
    value = action()
    return value, (time.perf_counter() - begin) * 1000


sandbox, create = timed(lambda: Sandbox.create(template="code-interpreter", ttl_seconds=300))
line = "python3 -c 'print(sum(range(100)))'"
_, first = timed(lambda: sandbox.exec(line))
_, second = timed(lambda: sandbox.exec(line))
_, destroy = timed(sandbox.kill)

rows = [
    ("create", f"{create:.0f} ms"),
    ("first exec (python3)", f"{first:.0f} ms"),
    ("second exec (python3)", f"{second:.0f} ms"),
    ("destroy", f"{destroy:.0f} ms"),
    ("engine", sandbox.engine),
    ("isolation", sandbox.isolation),
    ("egress", sandbox.egress),
]
print()
for name, value in rows:
    print(f"  {name:<22} {value}")
