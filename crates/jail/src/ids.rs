//! Who a jailed process is on the host.

use std::fs;
use std::io;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::child::INNER_ID;

/// Host ids that a jailed process runs as.
pub(crate) struct OuterIds {
    uid: u32,
    gid: u32,
    /// Whether we may map ids other than our own.
    pub privileged: bool,
}

/// First host id given to machines by a privileged supervisor, and how many there are. Far above
/// the ids of people, of services and of the ranges in subuid(5).
const FIRST_ID: u32 = 0x6000_0000;
const ID_COUNT: u32 = 1 << 16;

impl OuterIds {
    /// An id of its own for each machine where we may; our own id otherwise.
    pub fn choose() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let own = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        if own.0 == 0 && ids_exist(FIRST_ID + ID_COUNT) {
            let id = FIRST_ID + NEXT.fetch_add(1, Ordering::Relaxed) % ID_COUNT;
            Self { uid: id, gid: id, privileged: true }
        } else {
            Self { uid: own.0, gid: own.1, privileged: false }
        }
    }

    /// Writes the maps of the child's user namespace: one id inside, one outside.
    pub fn map(&self, pid: u32) -> io::Result<()> {
        if !self.privileged {
            // user_namespaces(7): an unprivileged gid map needs setgroups denied first.
            fs::write(format!("/proc/{pid}/setgroups"), "deny")?;
        }
        fs::write(format!("/proc/{pid}/uid_map"), format!("{INNER_ID} {} 1", self.uid))?;
        fs::write(format!("/proc/{pid}/gid_map"), format!("{INNER_ID} {} 1", self.gid))
    }
}

/// Whether `id` exists in this process's user namespace.
fn ids_exist(id: u32) -> bool {
    let Ok(map) = fs::read_to_string("/proc/self/uid_map") else { return false };
    map.lines().any(|line| {
        let mut numbers = line.split_whitespace().filter_map(|n| n.parse::<u64>().ok());
        match (numbers.next(), numbers.nth(1)) {
            (Some(first), Some(count)) => (first..first + count).contains(&u64::from(id)),
            _ => false,
        }
    })
}
