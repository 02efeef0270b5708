//! Places where a test kills the server: after each step that a crash could cut off from the next.
//!
//! Invariant: without the feature `fault-points`, which only the tests' build has, a point is
//! nothing. With it, a server that reaches the point whose name is in the file `fault` of its
//! instance directory removes that file and kills itself, as `kill -9` would: nothing is flushed,
//! dropped or closed in order. So a test brings a server to any state first, then names a point, and
//! sees by the file whether the point was reached.

macro_rules! points {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// A place between two steps.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Point {
            $($(#[$doc])* $name,)*
        }

        impl Point {
            /// Every point, so that a test can tell that it has reached all of them.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The name that a file calls it by.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$name => stringify!($name),)*
                }
            }
        }
    };
}

points! {
    /// A create is in the journal, and nothing else of it exists.
    CreateJournalled,
    /// A machine is there that stands still: of a create, of a fork's child or of a wake.
    MachineObtained,
    /// Its network is attached.
    MachineAttached,
    /// Its agent has the sandbox's identity.
    MachineAdopted,
    /// The journal says that a new sandbox runs.
    ReadyJournalled,
    /// Everybody sees it, and its requester has no answer yet.
    ReadyShown,
    /// The journal says that a sandbox ends.
    EndJournalled,
    /// Its machine is gone.
    EndReleased,
    /// Its files, if it had any, are gone.
    EndCleared,
    /// The journal says that nothing of it is left.
    EndDeleted,
    /// The journal says that a machine ended by itself.
    FailJournalled,
    /// What that machine used is free.
    FailReleased,
    /// The journal says that a sandbox is paused.
    PauseJournalled,
    /// Its machine stands still.
    PauseDone,
    /// The journal says that a paused sandbox runs.
    ResumeJournalled,
    /// Its machine runs.
    ResumeDone,
    /// The journal has new limits of a sandbox.
    LimitJournalled,
    /// The directories are there that files are to be written to: of a snapshot or a hibernation.
    FilesBegun,
    /// The engine's files are written.
    FilesWritten,
    /// All of them are, with what is known of them, where nobody looks.
    FilesSettled,
    /// They are on the shelf.
    FilesPublished,
    /// They are off the shelf, and not yet removed: of a snapshot, a wake or an end.
    FilesHidden,
    /// A machine stands still that is about to be files.
    HibernatePaused,
    /// The journal says that the sandbox is files, and its machine is still there.
    HibernateJournalled,
    /// Its machine is gone.
    HibernateParted,
    /// The journal says that a woken sandbox runs, and its files are still there.
    WakeJournalled,
    /// The files are gone.
    WakeCleared,
    /// The children of a fork are in the journal.
    ForkJournalled,
    /// Their machines are there, and nobody's.
    ForkCopied,
    /// Their owners have them.
    ForkHandedOver,
    /// The winner of a tree stays, and its siblings are still there.
    PromoteKept,
    /// A server that stops takes no requests any more.
    StopClosed,
    /// Every sandbox of it has ended or is files.
    StopRested,
    /// The next server has said of a sandbox that it ends, and not yet that it has ended.
    RecoveryEnding,
    /// It has dealt with every record.
    RecoveryRecords,
    /// It has removed what machines left.
    RecoveryMachines,
    /// It obeys a machine that another server left running, whose network is not attached yet.
    AdoptTaken,
    /// The network is.
    AdoptAttached,
    /// The machine has shown that it obeys, and nobody sees it yet.
    AdoptAnswered,
    /// The files of a volume are made, where nobody looks.
    VolumeMade,
    /// They are on the shelf.
    VolumePublished,
    /// They are off the shelf, and not yet removed.
    VolumeHidden,
    /// The records say that a sandbox has volumes, and nothing else of it exists.
    VolumesReserved,
}

/// Kills the server here if a test wants that.
#[cfg(not(feature = "fault-points"))]
#[inline(always)]
pub(crate) fn point(_point: Point) {}

#[cfg(feature = "fault-points")]
pub(crate) use armed::{instance, point};

#[cfg(feature = "fault-points")]
mod armed {
    use std::fs;
    use std::path::{Path, PathBuf};
    use std::sync::OnceLock;

    use rustix::process::{Signal, getpid, kill_process};

    use super::Point;

    static INSTANCE: OnceLock<PathBuf> = OnceLock::new();

    /// Says where the server's directory is. The first one counts: a process has one server.
    pub(crate) fn instance(dir: &Path) {
        let _ = INSTANCE.set(dir.to_owned());
    }

    /// Kills the server here if a test wants that.
    pub(crate) fn point(point: Point) {
        let Some(file) = INSTANCE.get().map(|dir| dir.join("fault")) else { return };
        let wanted = fs::read_to_string(&file).is_ok_and(|name| name.trim() == point.name());
        // Two at once die once: only one of them can remove the file.
        if wanted && fs::remove_file(&file).is_ok() {
            let _ = kill_process(getpid(), Signal::KILL);
            // It takes a moment, in which nothing more may happen here.
            loop {
                std::thread::park();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_of_one_point_each() {
        let names: std::collections::BTreeSet<_> = Point::ALL.iter().map(|p| p.name()).collect();
        assert_eq!(names.len(), Point::ALL.len());
    }
}
