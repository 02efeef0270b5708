"""Counts in memory and on disk, one step at a time, and never the same block twice.

    memory n  ->  disk n  ->  memory n+1  ->  disk n+1  ...

The number in memory is in a file system that is memory. A block of the disk is written past the
page cache and flushed, so it is on the device before the next step begins. Blocks are never
written again: before n is written its place must be empty, which it is not if the disk is from a
later instant than the memory; and n-1 must be there, which it is not if it is from an earlier one.
"""

import mmap
import os

BLOCK = 4096
NOTHING = bytes(BLOCK)

memory = mmap.mmap(os.open("/dev/shm/count", os.O_RDWR | os.O_CREAT), 0)
disk = os.open("/var/counts", os.O_RDWR | os.O_CREAT | os.O_DIRECT | os.O_DSYNC, 0o600)
block = mmap.mmap(-1, BLOCK)  # direct I/O wants whole pages


def record(n):
    return n.to_bytes(8, "little") * (BLOCK // 8)


def load(n):
    block[:] = NOTHING  # beyond the end of the file nothing is read
    os.preadv(disk, [block], n * BLOCK)
    return block[:]


def fail(text):
    with open("/dev/shm/bad", "w") as bad:
        bad.write(text)
    raise SystemExit(text)


def churn(n):
    """Keeps the file system's own structures in motion, with and without a flush."""
    name = f"/var/churn/{n}"
    with open(name, "w") as file:
        file.write("x" * (n % 9000))
        if n % 3 == 0:
            file.flush()
            os.fsync(file.fileno())
    os.rename(name, name + ".new")
    if n > 32:
        os.unlink(f"/var/churn/{n - 32}.new")


n = 0
while True:
    n += 1
    memory[:] = n.to_bytes(8, "little")
    if load(n) != NOTHING:
        fail(f"block {n} is on disk before it was written")
    if n > 1 and load(n - 1) != record(n - 1):
        fail(f"block {n - 1} was written and is not on disk")
    block[:] = record(n)
    os.pwritev(disk, [block], n * BLOCK)
    churn(n)
