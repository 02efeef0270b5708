//! Whether the host takes another sandbox: decided before anything of it exists.
//!
//! The decision is pure; [`Admission`] only keeps the count of what was let in. A [`Permit`] is
//! held from the decision until the sandbox is registered or has failed, so that a burst of
//! creates sees each other's memory before it is really used.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use pandastack_types::Size;

use crate::error::CreateError;
use crate::sync::lock;
use crate::{Config, host};

/// Memory of the machine's process besides the guest's, in MiB.
const PROCESS_MB: u64 = 48;

/// The counters behind the decision.
pub(crate) struct Admission {
    max_sandboxes: usize,
    reserve_mb: u64,
    estimate_percent: u64,
    /// Where the disks of machines are.
    machines: PathBuf,
    disk_reserve_mb: u64,
    disk_percent: u64,
    pending: Arc<Mutex<Pending>>,
}

/// What was let in and is not registered yet.
#[derive(Debug, Default)]
struct Pending {
    sandboxes: usize,
    memory_mb: u64,
    disk_mb: u64,
}

/// What the host has and what is asked of it.
#[derive(Clone, Copy, Debug)]
struct Question {
    sandboxes: usize,
    max_sandboxes: usize,
    needed_mb: u64,
    /// Available above the reserve and the pending creates; `None` where it is not known.
    free_mb: Option<u64>,
    needed_disk_mb: u64,
    /// The same of the host's disk.
    free_disk_mb: Option<u64>,
}

fn decide(question: Question) -> Result<(), CreateError> {
    if question.sandboxes >= question.max_sandboxes {
        return Err(CreateError::Full(question.max_sandboxes));
    }
    match question.free_mb {
        Some(free_mb) if free_mb < question.needed_mb => {
            return Err(CreateError::Memory { needed_mb: question.needed_mb, free_mb });
        }
        _ => {}
    }
    match question.free_disk_mb {
        Some(free_mb) if free_mb < question.needed_disk_mb => {
            Err(CreateError::Disk { needed_mb: question.needed_disk_mb, free_mb })
        }
        _ => Ok(()),
    }
}

impl Admission {
    /// Decides by these limits; `machines` is where their disks are.
    pub(crate) fn new(config: &Config, machines: PathBuf) -> Self {
        Self {
            max_sandboxes: config.max_sandboxes,
            reserve_mb: config.memory_reserve_mb,
            estimate_percent: config.memory_estimate_percent,
            machines,
            disk_reserve_mb: config.disk_reserve_mb,
            disk_percent: config.disk_estimate_percent,
            pending: Arc::default(),
        }
    }

    /// Lets one sandbox of this size in, or says why not. `registered` is the number of those
    /// that exist already.
    pub(crate) fn admit(&self, size: Size, registered: usize) -> Result<Permit, CreateError> {
        let needed_mb = self.estimate(size);
        let needed_disk_mb = u64::from(size.disk_mb) * self.disk_percent / 100;
        let mut pending = lock(&self.pending);
        decide(Question {
            sandboxes: registered + pending.sandboxes,
            max_sandboxes: self.max_sandboxes,
            needed_mb,
            free_mb: self.free_mb().map(|free| free.saturating_sub(pending.memory_mb)),
            needed_disk_mb,
            free_disk_mb: self.free_disk_mb().map(|free| free.saturating_sub(pending.disk_mb)),
        })?;
        pending.sandboxes += 1;
        pending.memory_mb += needed_mb;
        pending.disk_mb += needed_disk_mb;
        let pending = self.pending.clone();
        Ok(Permit { memory_mb: needed_mb, disk_mb: needed_disk_mb, pending })
    }

    /// Lets a volume of this size in, as the disk of a sandbox is, or says what it needs and what
    /// there is.
    pub(crate) fn admit_volume(&self, size_mb: u32) -> Result<(), (u64, u64)> {
        let needed_mb = u64::from(size_mb) * self.disk_percent / 100;
        let pending_mb = lock(&self.pending).disk_mb;
        match self.free_disk_mb().map(|free| free.saturating_sub(pending_mb)) {
            Some(free_mb) if free_mb < needed_mb => Err((needed_mb, free_mb)),
            _ => Ok(()),
        }
    }

    /// Whether a machine that nobody asked for may be parked: only while there is room for two
    /// more of them, so that parking never makes the next create fail.
    pub(crate) fn may_park(&self, size: Size) -> bool {
        self.free_mb().is_none_or(|free| free >= 2 * self.estimate(size))
    }

    /// Whether the host is so short of memory that parked machines must go.
    pub(crate) fn is_short(&self) -> bool {
        self.free_mb() == Some(0)
    }

    fn estimate(&self, size: Size) -> u64 {
        u64::from(size.memory_mb) * self.estimate_percent / 100 + PROCESS_MB
    }

    fn free_mb(&self) -> Option<u64> {
        host::available_mb().map(|available| available.saturating_sub(self.reserve_mb))
    }

    /// `None` where it cannot be told; then a full disk shows when it is full.
    fn free_disk_mb(&self) -> Option<u64> {
        let free = host::free_disk_mb(&self.machines).ok()?;
        Some(free.saturating_sub(self.disk_reserve_mb))
    }
}

/// A place that was promised to one sandbox. Dropping it gives the place back.
#[derive(Debug)]
pub(crate) struct Permit {
    memory_mb: u64,
    disk_mb: u64,
    pending: Arc<Mutex<Pending>>,
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut pending = lock(&self.pending);
        pending.sandboxes -= 1;
        pending.memory_mb -= self.memory_mb;
        pending.disk_mb -= self.disk_mb;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOMY: Question = Question {
        sandboxes: 3,
        max_sandboxes: 4,
        needed_mb: 100,
        free_mb: Some(100),
        needed_disk_mb: 10,
        free_disk_mb: Some(10),
    };

    #[test]
    fn the_limits_are_inclusive() {
        assert!(decide(ROOMY).is_ok());
        assert!(matches!(decide(Question { sandboxes: 4, ..ROOMY }), Err(CreateError::Full(4))));
        assert!(matches!(
            decide(Question { free_mb: Some(99), ..ROOMY }),
            Err(CreateError::Memory { needed_mb: 100, free_mb: 99 })
        ));
        assert!(matches!(
            decide(Question { free_disk_mb: Some(9), ..ROOMY }),
            Err(CreateError::Disk { needed_mb: 10, free_mb: 9 })
        ));
        let unknown = Question { free_mb: None, free_disk_mb: None, ..ROOMY };
        assert!(decide(unknown).is_ok(), "unknown is not a refusal");
    }

    #[test]
    fn permits_count_until_they_are_dropped() {
        let config = Config { max_sandboxes: 2, memory_reserve_mb: 0, ..Config::new("x".into()) };
        let admission = Admission::new(&config, ".".into());
        let size = Size { cpu: 1, memory_mb: 128, disk_mb: 256 };
        let first = admission.admit(size, 0).unwrap();
        let second = admission.admit(size, 0).unwrap();
        assert!(matches!(admission.admit(size, 0), Err(CreateError::Full(2))));
        drop(first);
        assert!(matches!(admission.admit(size, 1), Err(CreateError::Full(2))));
        drop(second);
        assert!(admission.admit(size, 1).is_ok());
    }
}
