//! How far forks of forks go.
//!
//! ```text
//!   started ─▶ fork ─▶ fork ─▶ … ─▶ fork         copy
//!      0         1       2           ends - 1    ends: handed to nobody
//! ```
//!
//! A fork is in namespaces inside those of its source, and the kernel nests 32 (`MAX_PID_NS_LEVEL`
//! of `kernel/pid_namespace.c`). The invariant: **whatever is handed out can still be copied**, for
//! without that it could be neither kept as a snapshot nor hibernated. So the last generation is for
//! copies that are written to disk; whoever is made of such files is of generation 0 again.

use std::sync::atomic::{AtomicU32, Ordering};

use crate::EngineError;

/// The last generation where the server is in no namespace itself: the namespaces of a machine that
/// was started are the first.
const LAST: u32 = 31;

/// Nobody runs a server in so many namespaces that fewer generations than these were possible: what
/// is refused before has another cause.
const SHALLOW: u32 = 16;

/// What is known of it on this host.
#[derive(Debug)]
pub(crate) struct Generations {
    last: AtomicU32,
}

impl Generations {
    pub fn new() -> Self {
        Self { last: AtomicU32::new(LAST) }
    }

    /// Whether a machine of this generation may have so many children at once.
    pub fn allow(&self, generation: u32, children: usize) -> Result<(), EngineError> {
        // The first is a fork of the machine, and the others are forks of the first.
        let youngest = generation + if children > 1 { 2 } else { 1 };
        match youngest < self.last.load(Ordering::Relaxed) {
            true => Ok(()),
            false => Err(too_deep()),
        }
    }

    /// The kernel made no namespaces inside those of a machine of this generation. Says why, and
    /// remembers it if that is their depth: the server's own are nested then.
    pub fn refused(&self, generation: u32) -> EngineError {
        if generation < SHALLOW {
            let why = "the kernel makes no more namespaces; see user.max_user_namespaces";
            return EngineError::NoFork(why.into());
        }
        self.last.fetch_min(generation, Ordering::Relaxed);
        too_deep()
    }
}

/// The chain of forks is as long as can be.
fn too_deep() -> EngineError {
    EngineError::NoFork(
        "a chain of forks of forks ends at about 30 generations, as the kernel nests no more \
         namespaces; hibernate this sandbox once, or make others of a snapshot of it: those begin \
         a chain of their own"
            .into(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_generation_is_kept_back() {
        let generations = Generations::new();
        assert!(generations.allow(0, 100).is_ok());
        assert!(generations.allow(LAST - 2, 1).is_ok());
        assert!(generations.allow(LAST - 2, 2).is_err());
        assert!(generations.allow(LAST - 1, 1).is_err());
    }

    #[test]
    fn a_host_that_nests_fewer_is_found_out() {
        let generations = Generations::new();
        generations.refused(27);
        generations.refused(29);
        assert!(generations.allow(25, 1).is_ok());
        assert!(generations.allow(26, 1).is_err());
        let other = generations.refused(3).to_string();
        assert!(other.contains("max_user_namespaces"), "{other}");
        assert!(generations.allow(3, 1).is_ok());
    }
}
