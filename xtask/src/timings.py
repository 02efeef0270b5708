"""Times the steps of the sample one by one."""

import time

from pandastack import Sandbox


def timed(action):
    begin = time.perf_counter()
    value = action()
    return value, (time.perf_counter() - begin) * 1000


LINE = "python3 -c 'print(sum(range(100)))'"

sandbox, create = timed(lambda: Sandbox.create(template="code-interpreter", ttl_seconds=300))
_, first = timed(lambda: sandbox.exec(LINE))
_, second = timed(lambda: sandbox.exec(LINE))
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
