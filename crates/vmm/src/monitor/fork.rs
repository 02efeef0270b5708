//! Copying the machine: `fork(2)` for a virtual machine.
//!
//! ```text
//!  source                                     copy
//!  ──────                                     ────
//!  threads end, state is read
//!  birth ───────────────────────────────────▶ cgroup, no capabilities
//!  tops of disks are frozen, new ones on it   the same, with tops of its own
//!  threads again, with the same VM            its own descriptors
//!  Forked + pidfd                             Born, on its own socket; stands still
//! ```
//!
//! The stall of the source is what stands between its threads' end and their new beginning: the
//! state, a new layer, and the kernel's copy of the page tables. A fork that fails before the birth
//! has changed nothing.

use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

use pandastack_fork::birth::{self, BirthError, Fd, Side};
use pandastack_fork::thread::Announced;

use super::start::{damaged, kernel, machine_failure, take};
use super::{Answer, Monitor};
use crate::clock::Stages;
use crate::control::{DiskFork, Failure, Fork, Received, Reply, Request, Role};
use crate::disk::{Disk, DiskError};
use crate::machine::{Halted, Machine};

/// How long a process that was born a moment ago may wait for its ids.
const IDS_DEADLINE: Duration = Duration::from_secs(1);

/// What a copy gets instead of its source's.
struct Belongings {
    control: OwnedFd,
    complaints: OwnedFd,
    agent: OwnedFd,
    net: Option<OwnedFd>,
    disks: Vec<Tops>,
    groups: Vec<OwnedFd>,
    keeper_groups: Vec<OwnedFd>,
}

/// The top layers of a disk.
struct Tops {
    slot: Option<usize>,
    /// The copy's.
    top: File,
    /// The old one, read-only, and the source's own new one, if the old one is frozen.
    freeze: Option<(File, File)>,
}

impl Belongings {
    fn take(fork: &Fork, with: &mut Received<Request>) -> Result<Self, Failure> {
        let tops = with.take_all(Role::Top);
        let [frozen, new] = [Role::Frozen, Role::NewTop].map(|role| with.take_all(role));
        let freezing = fork.disks.iter().filter(|disk| disk.freezes).count();
        if tops.len() != fork.disks.len() || [frozen.len(), new.len()] != [freezing; 2] {
            return Err(Failure::Refused("another number of layers than of disks".into()));
        }
        let mut freezes = frozen.into_iter().map(File::from).zip(new.into_iter().map(File::from));
        let tops_of = |(disk, top): (&DiskFork, OwnedFd)| Tops {
            slot: disk.slot.map(usize::from),
            top: top.into(),
            freeze: if disk.freezes { freezes.next() } else { None },
        };
        let disks = fork.disks.iter().zip(tops).map(tops_of).collect();
        Ok(Self {
            control: take(with, Role::Control)?,
            complaints: take(with, Role::Complaints)?,
            agent: take(with, Role::Agent)?,
            net: with.take(Role::Net),
            disks,
            groups: with.take_all(Role::Group),
            keeper_groups: with.take_all(Role::KeeperGroup),
        })
    }
}

impl Monitor {
    /// Makes a copy. Returns in both processes: in the copy, `self` is the copy's.
    pub(super) fn fork(&mut self, fork: &Fork, mut with: Received<Request>) -> Answer {
        let own = Belongings::take(fork, &mut with)?;
        drop(with);
        let mut clock = Stages::new();
        let machine = self.machine()?;
        // One that is not named would be written to by both.
        let mut named: Vec<_> = own.disks.iter().map(|disk| disk.slot).collect();
        named.sort_unstable();
        if !named
            .into_iter()
            .eq(std::iter::once(None).chain(machine.board.devices.filled().map(Some)))
        {
            return Err(Failure::Refused("these are not the disks of the machine".into()));
        }
        birth::await_ids(IDS_DEADLINE).map_err(birth_failure)?;
        let halted = machine.halt().map_err(machine_failure)?;
        clock.lap("halt");
        let committed = own.disks.iter().try_for_each(|it| change(machine, it.slot, Disk::commit));
        let forked = committed.and_then(|()| divide(&own));
        clock.lap("clone");
        match forked {
            Ok(Side::Child) => {
                if let Some(halted) = halted {
                    machine.stand(halted);
                }
                self.become_copy(own, fork.readable)
            }
            Ok(Side::Parent(pidfd)) => {
                // SAFETY: the kernel made this descriptor for us a moment ago.
                let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
                let frozen = own.disks.into_iter().try_for_each(|disk| match disk.freeze {
                    Some((old, new)) => freeze(machine, disk.slot, old, new),
                    None => Ok(()),
                });
                clock.lap("freeze");
                go_on(machine, halted)?;
                clock.lap("resume");
                frozen?;
                Ok((Reply::Forked(clock.take()), Some(pidfd)))
            }
            Err(failure) => {
                go_on(machine, halted)?;
                Err(failure)
            }
        }
    }

    /// In the new process. One that cannot be a copy ends: nobody uses it yet, and its supervisor
    /// hears of the end.
    fn become_copy(&mut self, own: Belongings, readable: bool) -> Answer {
        let mut clock = Stages::new();
        match self.settle(own, readable) {
            Ok(()) => {
                clock.lap("settle");
                Ok((Reply::Born(clock.take()), None))
            }
            Err(failure) => {
                eprintln!("a copy could not settle: {failure}");
                std::process::exit(1);
            }
        }
    }

    fn settle(&mut self, own: Belongings, readable: bool) -> Result<(), Failure> {
        let groups: Vec<Fd> = own.groups.iter().map(|fd| fd.as_raw_fd()).collect();
        birth::settle(&groups, readable).map_err(birth_failure)?;
        self.control = own.control;
        // SAFETY: both are open; 2 becomes another name of the copy's own pipe.
        if unsafe { libc::dup3(own.complaints.as_raw_fd(), 2, 0) } < 0 {
            return Err(kernel("replace a descriptor", &std::io::Error::last_os_error()));
        }
        let machine = self.machine()?;
        machine.board.renew().map_err(|e| kernel("make an eventfd", &e))?;
        machine.board.devices.replace_streams(own.agent, own.net);
        for Tops { slot, top, freeze: frozen } in own.disks {
            match frozen {
                Some((old, _)) => freeze(machine, slot, old, top)?,
                None => change(machine, slot, |disk| disk.replace_top(top))?,
            }
            // What a copy writes ends with it, also to what lasts in its source.
            change(machine, slot, |disk| disk.set_lasting(false))?;
        }
        machine.is_copy = true;
        // What the source's guest said is not this one's word.
        machine.board.ports().serial.clear_output();
        Ok(())
    }
}

/// Forks the process, which has one thread.
fn divide(own: &Belongings) -> Result<Side, Failure> {
    let groups: Vec<Fd> = own.keeper_groups.iter().map(|fd| fd.as_raw_fd()).collect();
    let thread = Announced::by_this_thread();
    // SAFETY: this is the main thread, and a machine that stands still has no others.
    unsafe { birth::fork(&groups, &thread) }.map_err(birth_failure)
}

/// Makes a disk's top a layer, read through `old` from now on, with `top` over it.
fn freeze(machine: &Machine, slot: Option<usize>, old: File, top: File) -> Result<(), Failure> {
    change(machine, slot, |disk| disk.freeze(old, top))
}

fn change(
    machine: &Machine,
    slot: Option<usize>,
    how: impl FnOnce(&mut Disk) -> Result<(), DiskError>,
) -> Result<(), Failure> {
    let gone = || Failure::Refused("it has no such disk".into());
    let changed = machine.board.devices.with_disk(slot, how).ok_or_else(gone)?;
    changed.map_err(|e| damaged("disk", &e.to_string()))
}

fn go_on(machine: &mut Machine, halted: Option<Halted>) -> Result<(), Failure> {
    match halted {
        Some(halted) => machine.go_on(halted).map_err(machine_failure),
        None => Ok(()),
    }
}

fn birth_failure(error: BirthError) -> Failure {
    if matches!(error.errno, libc::ENOSPC | libc::EUSERS) {
        return Failure::TooDeep;
    }
    let what = format!("copy the process ({:?})", error.step);
    kernel(&what, &std::io::Error::from_raw_os_error(error.errno))
}
