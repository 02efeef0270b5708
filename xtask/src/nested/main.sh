# Process 1 of level 1, second half: in the root. Finishes the machine, runs the command and tells
# the host on the control port, descriptor 3, how it went:
#
#   up → command → exit STATUS          and the host may say: stop
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8

mkdir -p /dev/shm /dev/pts
mount -t tmpfs -o mode=1777 shm /dev/shm
mount -t devpts -o gid=5,mode=620,ptmxmode=666 devpts /dev/pts
ln -sf /proc/self/fd /dev/fd
ln -sf /proc/self/fd/0 /dev/stdin
ln -sf /proc/self/fd/1 /dev/stdout
ln -sf /proc/self/fd/2 /dev/stderr
chmod 666 /dev/kvm /dev/fuse /dev/net/tun /dev/vhost-vsock
mount -t securityfs securityfs /sys/kernel/security
mount -t debugfs debugfs /sys/kernel/debug
mount -t cgroup2 -o favordynmods -o nsdelegate cgroup /sys/fs/cgroup
echo "+cpu +memory +pids" > /sys/fs/cgroup/cgroup.subtree_control
echo level1 > /proc/sys/kernel/hostname
echo "127.0.0.1 localhost level1" > /etc/hosts
ip link set lo up
ulimit -Hn 524288

# One virtual machine stays, with a processor whose local APIC nobody enables. KVM patches branches of
# its own code when the first machine comes, when the last one goes, and whenever the number of such
# APICs becomes 0 or 1, which is at every start of a machine. With two processors level 1 once panicked
# there ("Oops: int3" in __apic_accept_irq): QEMU's translator seems to go on with code that another
# processor has just patched. Guests that crashed without a word may have been the same.
setsid python3 -c '
import fcntl, os, signal
CREATE_VM, CREATE_IRQCHIP, CREATE_VCPU = 0xAE01, 0xAE60, 0xAE41  # linux/kvm.h
machine = fcntl.ioctl(os.open("/dev/kvm", os.O_RDWR), CREATE_VM)
fcntl.ioctl(machine, CREATE_IRQCHIP)
fcntl.ioctl(machine, CREATE_VCPU)
open("/run/job/pinned", "w").close()
signal.pause()
' < /dev/null > /dev/null 2>&1 3>&- &
for _ in $(seq 200); do [ -e /run/job/pinned ] && break; sleep 0.05; done

# Through a pipe, because a port can be opened once only.
mkfifo /run/job/output
cat < /run/job/output > /dev/ports/output 3>&- &
output=$!

echo command >&3
cd /scratch
setsid bash /run/job/command.sh < /dev/null > /run/job/output 2>&1 3>&- &
command=$!

# The host's deadline passed: say what hangs, then end it.
{
    read -r _ <&3
    {
        echo "--- level 1 is stopped; it runs:"
        ps -p 2 --ppid 2 --deselect --forest -o pid,stat,wchan:20,args
    } > /run/job/output
    kill -KILL $command
} &

wait $command
status=$?
# What the command left running, in sessions other than ours, must not keep its output open.
killall5 -9
wait $output
cd /
mountpoint -q /out && umount /out
sync
echo "exit $status" >&3
echo b > /proc/sysrq-trigger
