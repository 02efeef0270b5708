"""What level 1 promises, each tried: one line per promise, and a status of 1 if one is broken."""

import ctypes
import errno
import fcntl
import mmap
import os
import struct
import subprocess
import sys
import tempfile

# linux/kvm.h, for x86-64.
KVM_GET_API_VERSION = 0xAE00
KVM_CREATE_VM = 0xAE01
KVM_GET_VCPU_MMAP_SIZE = 0xAE04
KVM_CREATE_VCPU = 0xAE41
KVM_SET_USER_MEMORY_REGION = 0x4020AE46
KVM_RUN = 0xAE80
KVM_SET_REGS = 0x4090AE82
KVM_GET_SREGS = 0x8138AE83
KVM_SET_SREGS = 0x4138AE84
KVM_EXIT_IO = 2
KVM_EXIT_HLT = 5
# linux/fs.h
PAGEMAP_SCAN = 0xC0606610
PAGE_IS_PRESENT = 1 << 3

# mov dx, 0x3f8; add al, bl; out dx, al; hlt
GUEST = bytes.fromhex("ba f803 00d8 ee f4")


def address(memory):
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


def kvm():
    """A guest adds 40 and 2, tells the sum with an I/O exit, and halts."""
    device = os.open("/dev/kvm", os.O_RDWR)
    version = fcntl.ioctl(device, KVM_GET_API_VERSION)
    vm = fcntl.ioctl(device, KVM_CREATE_VM)
    memory = mmap.mmap(-1, 4096)
    memory[: len(GUEST)] = GUEST
    slot = struct.pack("=IIQQQ", 0, 0, 0x1000, 4096, address(memory))
    fcntl.ioctl(vm, KVM_SET_USER_MEMORY_REGION, slot)
    vcpu = fcntl.ioctl(vm, KVM_CREATE_VCPU)
    run = mmap.mmap(vcpu, fcntl.ioctl(device, KVM_GET_VCPU_MMAP_SIZE))
    special = bytearray(fcntl.ioctl(vcpu, KVM_GET_SREGS, bytes(312)))
    special[0:8] = bytes(8)  # cs.base
    special[12:14] = bytes(2)  # cs.selector
    fcntl.ioctl(vcpu, KVM_SET_SREGS, bytes(special))
    general = [0] * 18
    general[0], general[1], general[16], general[17] = 40, 2, 0x1000, 2  # rax rbx rip rflags
    fcntl.ioctl(vcpu, KVM_SET_REGS, struct.pack("=18Q", *general))
    fcntl.ioctl(vcpu, KVM_RUN)
    (reason,) = struct.unpack_from("=I", run, 8)
    assert reason == KVM_EXIT_IO, f"exit reason {reason}"
    _, _, port, _, offset = struct.unpack_from("=BBHIQ", run, 32)
    assert (port, run[offset]) == (0x3F8, 42), f"{run[offset]} to port {port:#x}"
    fcntl.ioctl(vcpu, KVM_RUN)
    (reason,) = struct.unpack_from("=I", run, 8)
    assert reason == KVM_EXIT_HLT, f"exit reason {reason}"
    return f"API {version}, a guest ran"


def pagemap_scan():
    """One of two pages was written: struct pm_scan_arg of linux/fs.h."""
    memory = mmap.mmap(-1, 8192, flags=mmap.MAP_PRIVATE)
    memory[0] = 1
    start, present = address(memory), PAGE_IS_PRESENT
    regions = (ctypes.c_uint64 * 6)()
    argument = struct.pack(
        "=12Q", 96, 0, start, start + 8192, 0, ctypes.addressof(regions), 2, 0, 0, present, 0, present
    )
    pagemap = os.open("/proc/self/pagemap", os.O_RDONLY)
    fcntl.ioctl(pagemap, PAGEMAP_SCAN, argument)
    assert list(regions[:2]) == [start, start + 4096], list(regions)
    return "one page of two"


def landlock():
    """landlock_create_ruleset(NULL, 0, LANDLOCK_CREATE_RULESET_VERSION)"""
    version = ctypes.CDLL(None, use_errno=True).syscall(444, None, 0, 1)
    assert version >= 1, errno.errorcode[ctypes.get_errno()]
    return f"ABI {version}"


def cgroups():
    """A group below ours has the files of every controller that a jail sets."""
    group = tempfile.mkdtemp(dir="/sys/fs/cgroup")
    missing = {"memory.max", "pids.max", "cpu.weight", "cgroup.kill"} - set(os.listdir(group))
    os.rmdir(group)
    assert not missing, missing
    return "v2 with memory, pids, cpu"


def shell(script):
    done = subprocess.run(["bash", "-euc", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().replace("\n", ", ")


PROMISES = {
    "kernel": "uname -r",
    "python": "python3 --version",
    "KVM": kvm,
    "PAGEMAP_SCAN": pagemap_scan,
    "Landlock": landlock,
    "control groups": cgroups,
    "namespaces": "unshare --user --map-root-user --mount --pid --net --ipc --uts --cgroup --fork "
    "--mount-proc true",
    "namespaces of somebody else": "setpriv --reuid 65534 --regid 65534 --clear-groups "
    "unshare --user --map-root-user --mount --pid --net --fork --mount-proc true",
    "scratch": "test $(df --output=avail -BG /scratch | tail -n 1 | tr -d ' G') -ge 8",
    "file systems": "cd /scratch && truncate -s 64M disk && mkfs.ext4 -q disk && mkdir -p mounted && "
    "mount disk mounted && touch mounted/x && umount mounted && fsck.ext4 -fn disk 2>&1 >/dev/null",
    "loopback": "ip -brief address show lo",
    "devices": "test -w /dev/kvm -a -w /dev/fuse -a -w /dev/vhost-vsock -a -w /dev/net/tun",
    "memory": "test -w /dev/shm -a -w /tmp -a -w /run -a -e /dev/pts/ptmx; free -m | sed -n 's/Mem: *//p'",
}


def main():
    broken = 0
    for name, promise in PROMISES.items():
        try:
            print(f"ok      {name}: {shell(promise) if isinstance(promise, str) else promise()}")
        except Exception as error:
            broken += 1
            print(f"BROKEN  {name}: {error}")
    sys.exit(broken > 0)


main()
