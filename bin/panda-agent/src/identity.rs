//! Becoming somebody.
//!
//! A machine wakes up as a copy of a template, and with it the generator's state, the clock, the
//! host name and the ids. This is the first thing that happens to every copy, on code that an
//! emulated machine has to translate first: so everything slow was done at [boot](Files::prepare)
//! and is inherited, and what is left is a handful of system calls.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};

use anyhow::Context;
use pandastack_proto::{ErrorCode, Failure, Identity};
use rustix::io::Errno;
use rustix::process::{WaitId, WaitIdOptions, waitid};
use rustix::time::{ClockId, Timespec, clock_gettime, clock_settime};

use crate::failure::{because, refuse};
use crate::sys;

/// Where the files that are mounted over the well-known ones live: in memory, because writing to a
/// disk's file system is the slowest thing that a copy could do first.
const HOME: &str = "/run/panda";
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// The name of a template.
const NOBODY: &str = "panda";
/// `/etc/hosts` maps this address to the host name, as in Debian.
const OWN_ADDRESS: &str = "127.0.1.1";

/// Most bytes of `/etc/hosts` that are kept.
const MAX_HOSTS: u64 = 64 * 1024;

/// What an identity is written to. All files are open and stay in place: whatever a tenant
/// removes or replaces, the next copy of its machine has its own identity where programs look.
pub struct Files {
    random: OwnedFd,
    hostname: File,
    hosts: File,
    machine_id: File,
    boot_id: File,
}

impl Files {
    /// Opens, creates and mounts what [`Files::become_somebody`] needs.
    pub fn prepare() -> anyhow::Result<Self> {
        let random = File::options().write(true).open("/dev/random").context("open /dev/random")?;
        fs::create_dir_all(HOME).context("create the identity's directory")?;
        let files = Self {
            random: random.into(),
            hostname: mounted("/etc/hostname")?,
            hosts: mounted("/etc/hosts")?,
            machine_id: mounted("/etc/machine-id")?,
            boot_id: mounted(BOOT_ID)?,
        };
        files.set_name(NOBODY).context("set the host name")?;
        replace(&files.machine_id, b"uninitialized\n").context("write the machine id")?;
        Ok(files)
    }

    /// Takes an identity over, except its token.
    pub fn become_somebody(&self, identity: &Identity) -> Result<(), Failure> {
        let step = |what: &'static str| because(move || format!("cannot set the {what}"));
        set_clock(identity.unix_ns)?;
        sys::reseed(self.random.as_fd(), &identity.entropy)
            .map_err(because(|| "cannot reseed the random generator".into()))?;
        self.set_name(&identity.hostname).map_err(step("host name"))?;
        let line = |id: &str| format!("{id}\n").into_bytes();
        replace(&self.machine_id, &line(&identity.machine_id)).map_err(step("machine id"))?;
        replace(&self.boot_id, &line(&identity.boot_id)).map_err(step("boot id"))?;
        tell_programs().map_err(because(|| "cannot tell the programs that run".into()))
    }

    fn set_name(&self, name: &str) -> rustix::io::Result<()> {
        rustix::system::sethostname(name.as_bytes())?;
        replace(&self.hostname, format!("{name}\n").as_bytes())?;
        let mut hosts = String::new();
        // A tenant's own lines are kept; a file that is not text any more is started afresh, and
        // one that is longer than anybody needs is cut.
        let mut old = (&self.hosts).take(MAX_HOSTS);
        let _ = (&self.hosts).rewind().and_then(|()| old.read_to_string(&mut hosts));
        replace(&self.hosts, with_own_name(&hosts, name).as_bytes())
    }
}

/// Tells programs that were running when their machine was copied. By default the signal is ignored;
/// one that has random numbers of its own, or talks to somebody who knows its original, handles it
/// (docs/copies.md). Comes last: what they ask for then is new.
fn tell_programs() -> rustix::io::Result<()> {
    // Every process of a tenant descends from this one. Without any, nobody is bothered: the kernel's
    // own threads would be looked at, and each look is a page of memory that a copy has to copy.
    let any = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    if matches!(waitid(WaitId::All, any), Err(Errno::CHILD)) {
        return Ok(());
    }
    match sys::signal_all(libc::SIGURG) {
        Err(Errno::SRCH) => Ok(()),
        told => told,
    }
}

/// A file in memory with the content of `path`, mounted over it.
fn mounted(path: &str) -> anyhow::Result<File> {
    let own = format!("{HOME}/{}", path.rsplit('/').next().unwrap_or(path));
    let content = fs::read(path).unwrap_or_default();
    if content.is_empty() {
        // A mount needs something to cover.
        File::options()
            .append(true)
            .create(true)
            .open(path)
            .with_context(|| format!("create {path}"))?;
    }
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o644)
        .open(&own)
        .with_context(|| format!("create {own}"))?;
    replace(&file, &content).with_context(|| format!("write {own}"))?;
    rustix::mount::mount_bind(&own, path).with_context(|| format!("mount {own}"))?;
    Ok(file)
}

/// Replaces the whole content of a file; a change of length is the exception.
fn replace(file: &File, content: &[u8]) -> rustix::io::Result<()> {
    let write = || {
        file.write_all_at(content, 0)?;
        if file.metadata()?.len() != content.len() as u64 {
            file.set_len(content.len() as u64)?;
        }
        Ok(())
    };
    write().map_err(errno)
}

/// `/etc/hosts` with the line of our own name replaced or added.
fn with_own_name(hosts: &str, name: &str) -> String {
    let mut lines: Vec<&str> =
        hosts.lines().filter(|line| line.split_whitespace().next() != Some(OWN_ADDRESS)).collect();
    if !lines.iter().any(|line| line.starts_with("127.0.0.1")) {
        lines.insert(0, "127.0.0.1 localhost");
    }
    let own = format!("{OWN_ADDRESS} {name}");
    lines.push(&own);
    lines.join("\n") + "\n"
}

/// Sets the wall clock.
pub fn set_clock(unix_ns: u64) -> Result<(), Failure> {
    const SECOND: u64 = 1_000_000_000;
    let time = Timespec { tv_sec: (unix_ns / SECOND) as i64, tv_nsec: (unix_ns % SECOND) as i64 };
    clock_settime(ClockId::Realtime, time).map_err(because(|| "cannot set the clock".into()))
}

/// The wall clock in nanoseconds since the Unix epoch.
pub fn unix_ns() -> u64 {
    let now = clock_gettime(ClockId::Realtime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    seconds.saturating_mul(1_000_000_000).saturating_add(u64::try_from(now.tv_nsec).unwrap_or(0))
}

/// Refuses an identity with parts that would not work, or that would end up as something else in
/// a file.
pub fn check(identity: &Identity) -> Result<(), Failure> {
    let hostname = !identity.hostname.is_empty()
        && identity.hostname.len() <= 63
        && identity.hostname.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'.');
    let hex = |text: &str| text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let machine_id = identity.machine_id.len() == 32 && hex(&identity.machine_id);
    let groups = identity.boot_id.split('-').map(str::len);
    let boot_id = groups.eq([8, 4, 4, 4, 12]) && hex(&identity.boot_id.replace('-', ""));
    let entropy = (32..=256).contains(&identity.entropy.len());
    let token = identity.token != [0; _];
    let checks = [
        (hostname, "host name"),
        (machine_id, "machine id"),
        (boot_id, "boot id"),
        (entropy, "entropy"),
        (token, "token"),
    ];
    match checks.iter().find(|(good, _)| !good) {
        Some((_, what)) => {
            Err(refuse(ErrorCode::InvalidArgument, format!("the {what} is malformed")))
        }
        None => Ok(()),
    }
}

fn errno(error: std::io::Error) -> Errno {
    Errno::from_io_error(&error).unwrap_or(Errno::IO)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_keep_what_others_wrote() {
        assert_eq!(with_own_name("", "a"), "127.0.0.1 localhost\n127.0.1.1 a\n");
        let debian = "127.0.0.1\tlocalhost\n127.0.1.1\told\n::1 ip6-localhost\n10.0.0.1 db\n";
        assert_eq!(
            with_own_name(debian, "new"),
            "127.0.0.1\tlocalhost\n::1 ip6-localhost\n10.0.0.1 db\n127.0.1.1 new\n"
        );
    }

    #[test]
    fn malformed_identities_are_refused() {
        let good = Identity {
            token: [1; 16],
            hostname: "sandbox-1".into(),
            machine_id: "0123456789abcdef0123456789abcdef".into(),
            boot_id: "01234567-89ab-4cde-8f01-23456789abcd".into(),
            entropy: vec![0; 32],
            unix_ns: 1,
        };
        assert_eq!(check(&good), Ok(()));
        let bad = [
            Identity { token: [0; 16], ..good.clone() },
            Identity { hostname: "a b".into(), ..good.clone() },
            Identity { hostname: "a\nb".into(), ..good.clone() },
            Identity { hostname: String::new(), ..good.clone() },
            Identity { machine_id: "x".repeat(32), ..good.clone() },
            Identity { boot_id: "0123456789ab-4cde-8f01-23456789abcd-1".into(), ..good.clone() },
            Identity { entropy: vec![0; 31], ..good.clone() },
            Identity { entropy: vec![0; 257], ..good.clone() },
        ];
        for identity in bad {
            assert!(check(&identity).is_err());
        }
    }
}
