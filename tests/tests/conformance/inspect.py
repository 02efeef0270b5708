"""Stops the writer whose process id is given, and looks at what it left, from the disk itself.

Prints the number in memory, and the last one on disk.
"""

import mmap
import os
import signal
import sys

BLOCK = 4096
CHUNK = 256 * BLOCK

if os.path.exists("/dev/shm/bad"):
    sys.exit(open("/dev/shm/bad").read())
pid = int(sys.argv[1])
os.kill(pid, signal.SIGSTOP)
while True:
    with open(f"/proc/{pid}/stat") as stat:
        state = stat.read().rpartition(") ")[2][0]
    # Not before its last write is over.
    if state == "T":
        break
    assert state in "RSD", f"the writer is {state}"

with open("/proc/sys/vm/drop_caches", "w") as caches:
    caches.write("3")
with open("/dev/shm/count", "rb") as memory:
    counted = int.from_bytes(memory.read(8), "little")

disk = os.open("/var/counts", os.O_RDONLY | os.O_DIRECT)
chunk = mmap.mmap(-1, CHUNK)
last = 0
ended = False
for offset in range(0, (counted + 512) * BLOCK, CHUNK):
    chunk[:] = bytes(CHUNK)
    os.preadv(disk, [chunk], offset)
    for at in range(0, CHUNK, BLOCK):
        n = (offset + at) // BLOCK
        found = chunk[at : at + BLOCK]
        if found == bytes(BLOCK):
            ended = ended or n > 0
        elif ended or found != n.to_bytes(8, "little") * (BLOCK // 8):
            sys.exit(f"block {n} holds {int.from_bytes(found[:8], 'little')}, memory {counted}")
        else:
            last = n
print(counted, last)
