//! The structures inside frames.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::frame::{Nonce, Token};

/// Payload of the host's first frame.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`VERSION`](crate::VERSION) of the host.
    pub version: u16,
    /// To be echoed, so that the host knows where the new connection begins.
    pub nonce: Nonce,
}

/// Payload of the agent's first frame.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// [`VERSION`](crate::VERSION) of the agent.
    pub version: u16,
    /// Whether it is PID 1 of a guest; false in development mode.
    pub init: bool,
    /// The guest's kernel release.
    pub kernel: String,
}

/// A request with the token that authorises it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sealed {
    /// The guest's current token.
    pub token: Token,
    /// What to do.
    pub request: Request,
}

impl fmt::Debug for Sealed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sealed").field("request", &self.request).finish_non_exhaustive()
    }
}

/// What a host asks of the agent. The comment names the data that flows on the stream and the
/// successful reply.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// [`Reply::Done`].
    Ping,
    /// Become somebody: [`Reply::Resumed`].
    Resume(Identity),
    /// Set the wall clock: [`Reply::Done`].
    SetClock {
        /// Nanoseconds since the Unix epoch.
        unix_ns: u64,
    },
    /// Run a command. Stdin in; stdout and stderr out; [`Reply::Exited`].
    Exec(ExecSpec),
    /// Read a regular file. File out; [`Reply::Done`].
    Read {
        /// Absolute, or relative to `/root`, like every path.
        path: String,
        /// First byte.
        offset: u64,
        /// Most bytes; to the end when absent.
        len: Option<u64>,
    },
    /// Replace or create a regular file. File in, ended by EOF; [`Reply::Written`].
    Write {
        /// Parents are created.
        path: String,
        /// Permission bits; those of the replaced file or 0644 when absent.
        mode: Option<u32>,
    },
    /// The entries of a directory, unsorted. Entries out; [`Reply::Done`].
    List {
        /// A directory.
        path: String,
    },
    /// One entry: [`Reply::Entry`].
    Stat {
        /// Anything.
        path: String,
        /// Whether to look through a symbolic link.
        follow: bool,
    },
    /// Create a directory and its parents: [`Reply::Done`].
    Mkdir {
        /// May exist already.
        path: String,
    },
    /// Remove a file, or a directory with everything in it: [`Reply::Done`].
    Remove {
        /// Links are removed, not followed.
        path: String,
    },
    /// TCP ports that something listens on: [`Reply::Ports`].
    Ports,
    /// Connect to a TCP port of the guest's own loopback, of IPv4 or else IPv6. A READY frame once
    /// that is done, then bytes both ways, each ended by EOF; [`Reply::Done`] after both.
    Dial {
        /// Not 0.
        port: u16,
    },
    /// [`Reply::Stats`].
    Stats,
    /// Make a snapshot safe: nothing runs, everything is on disk. [`Reply::Done`].
    Quiesce,
    /// [`Reply::Done`], then the machine goes off.
    PowerOff,
    /// Mount the volume in a slot of the machine at `/volumes/NAME`: [`Reply::Done`].
    MountVolume {
        /// Number of the slot.
        slot: u8,
        /// Name of the volume, which is fit for a path.
        name: String,
        /// Bytes of its disk, so that an old size is not taken for it.
        bytes: u64,
        /// Whether nothing may be written.
        read_only: bool,
    },
    /// Write out what the volumes' file systems hold back: [`Reply::Done`].
    FlushVolumes {
        /// Whether to unmount those that nobody uses as well.
        unmount: bool,
    },
    /// What became of commands whose connection ended under them: [`Reply::Detached`].
    Detached {
        /// The last end that the host has seen: it is forgotten, with those before it.
        seen: u64,
    },
}

/// Who a guest is from now on. Everything that two copies of a snapshot must not share.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Replaces the token that this request was authorised by.
    pub token: Token,
    /// Host name.
    pub hostname: String,
    /// 32 lower-case hexadecimal digits.
    pub machine_id: String,
    /// A UUID.
    pub boot_id: String,
    /// 32 to 256 bytes for the kernel's generator.
    pub entropy: Vec<u8>,
    /// Wall clock in nanoseconds since the Unix epoch.
    pub unix_ns: u64,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Neither the token nor the entropy belongs in a log.
        f.debug_struct("Identity").field("hostname", &self.hostname).finish_non_exhaustive()
    }
}

/// A command. Exactly one of `argv` and `shell` is given.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecSpec {
    /// The exact arguments; the first is looked up in `PATH` unless it has a slash.
    pub argv: Option<Vec<String>>,
    /// A line for `/bin/bash -c`, or `/bin/sh -c` where there is no bash.
    pub shell: Option<String>,
    /// Added to the default environment, the last one of a name wins.
    pub env: Vec<(String, String)>,
    /// The user's home when absent.
    pub cwd: Option<String>,
    /// `root` when absent.
    pub user: Option<String>,
    /// After this many milliseconds the whole process tree is killed.
    pub timeout_ms: Option<u64>,
    /// Whether stdin is a pipe from the host; otherwise it is `/dev/null`.
    pub stdin: bool,
}

/// The last frame of a stream.
pub type Outcome = Result<Reply, Failure>;

/// Success.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// Nothing more to say.
    Done,
    /// The guest has its identity.
    Resumed(ResumeAck),
    /// The command ended and its output was sent.
    Exited(ExecStatus),
    /// The file is in place.
    Written {
        /// Its length.
        bytes: u64,
    },
    /// One file or directory.
    Entry(DirEntry),
    /// Sorted, without duplicates.
    Ports(Vec<u16>),
    /// Measurements.
    Stats(Stats),
    /// Commands of earlier connections.
    Detached(Detached),
}

/// Commands whose connection ended under them, since the guest has its identity.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Detached {
    /// How many still run.
    pub running: u32,
    /// Those that have ended, oldest first; the last 64.
    pub ended: Vec<Ended>,
}

/// The end of a command whose connection had ended before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// Counts the ends of one guest, from 1.
    pub number: u64,
    /// The beginning of the line or the arguments, for people to know it by.
    pub command: String,
    /// How it ended.
    pub status: ExecStatus,
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecStatus {
    /// Exit status, 128 + the signal's number, 127 for not found, 126 for not executable.
    pub code: i32,
    /// Whether its time ran out; the code is then that of the kill.
    pub timed_out: bool,
}

/// The proof that a guest took its identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResumeAck {
    /// The guest's wall clock when it was done.
    pub unix_ns: u64,
    /// Microseconds that the agent worked on it.
    pub took_us: u64,
}

/// What kind of thing a path leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FileKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A device, FIFO or socket.
    Other,
}

/// A file or directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirEntry {
    /// Its name in its directory; bytes that are not UTF-8 are replaced.
    pub name: String,
    /// What it is.
    pub kind: FileKind,
    /// For a symbolic link: whether it leads to a directory.
    pub leads_to_dir: bool,
    /// Bytes.
    pub size: u64,
    /// Type and permissions, as in `st_mode`.
    pub mode: u32,
    /// Last change, Unix seconds.
    pub mtime: i64,
}

/// Measurements of a guest, by the guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// Since its kernel started.
    pub uptime_ms: u64,
    /// Bytes of memory.
    pub mem_total: u64,
    /// Bytes that new programs could use.
    pub mem_available: u64,
    /// Hundredths of the one-minute load average.
    pub load_percent: u32,
    /// Processes and threads.
    pub tasks: u32,
}

/// Failure, with a text for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// For programs.
    pub code: ErrorCode,
    /// For people.
    pub message: String,
}

/// Why a request failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ErrorCode {
    /// No such file, directory or user.
    NotFound,
    /// A file was expected.
    IsDirectory,
    /// A directory was expected.
    NotDirectory,
    /// Not permitted, or a read-only file system.
    Permission,
    /// Something else is there already.
    Exists,
    /// Disk full or quota reached.
    NoSpace,
    /// A request that can never succeed as it is.
    InvalidArgument,
    /// The token is not the current one.
    Unauthorized,
    /// Too many streams, processes or descriptors.
    TooMany,
    /// The host reset the stream.
    Cancelled,
    /// Nothing listens on the port.
    Refused,
    /// What should have happened did not happen in time.
    TimedOut,
    /// Anything else.
    Io,
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotFound => "not found",
            Self::IsDirectory => "is a directory",
            Self::NotDirectory => "not a directory",
            Self::Permission => "not permitted",
            Self::Exists => "exists already",
            Self::NoSpace => "no space left",
            Self::InvalidArgument => "invalid argument",
            Self::Unauthorized => "wrong token",
            Self::TooMany => "too many at once",
            Self::Cancelled => "cancelled",
            Self::Refused => "nothing listens",
            Self::TimedOut => "took too long",
            Self::Io => "failed",
        })
    }
}
