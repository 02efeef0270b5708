//! One builder at a time per thing, across tasks and processes.
//!
//! A builder holds a lock on a file named after the thing. Whoever waits looks again once it
//! has the lock: usually the thing is there by then. If instead the build failed in this
//! process while it waited, it gets that failure rather than trying the same thing again.

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};

use crate::error::ImageError;

/// Pause between two attempts to get a lock. Builds take seconds to minutes. A blocking lock
/// would be prompt, but could not be cancelled.
const RETRY: Duration = Duration::from_millis(50);

/// The gates of one directory of locks.
pub(crate) struct Gates {
    dir: PathBuf,
    failures: Mutex<HashMap<String, Failure>>,
}

/// The latest failure of a thing, and how many there have been.
struct Failure {
    count: u64,
    error: Arc<ImageError>,
}

impl Gates {
    pub(crate) fn new(dir: PathBuf) -> Self {
        Self { dir, failures: Mutex::new(HashMap::new()) }
    }

    /// Returns `ready()`, after running `build` if that is `None`. Calls `waiting` once if
    /// another builder is at it.
    pub(crate) async fn once<T>(
        &self,
        key: &str,
        ready: impl Fn() -> Result<Option<T>, ImageError>,
        waiting: impl FnOnce(),
        build: impl Future<Output = Result<T, ImageError>>,
    ) -> Result<T, ImageError> {
        if let Some(thing) = ready()? {
            return Ok(thing);
        }
        let failures_before = self.failures(key).0;
        let _lock = acquire(&self.dir.join(format!("{key}.lock")), waiting).await?;
        if let Some(thing) = ready()? {
            return Ok(thing);
        }
        if let (count, Some(error)) = self.failures(key)
            && count != failures_before
        {
            return Err(ImageError::Shared(error));
        }
        build.await.map_err(|error| self.failed(key, error))
    }

    fn failures(&self, key: &str) -> (u64, Option<Arc<ImageError>>) {
        let failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        failures.get(key).map_or((0, None), |f| (f.count, Some(f.error.clone())))
    }

    fn failed(&self, key: &str, error: ImageError) -> ImageError {
        let error = Arc::new(error);
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        let count = failures.get(key).map_or(0, |f| f.count) + 1;
        failures.insert(key.to_owned(), Failure { count, error: error.clone() });
        ImageError::Shared(error)
    }
}

/// Opens and locks `path`. The lock ends when the file is closed.
async fn acquire(path: &Path, waiting: impl FnOnce()) -> Result<File, ImageError> {
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .map_err(ImageError::file("open", path))?;
    let mut waiting = Some(waiting);
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            Err(rustix::io::Errno::WOULDBLOCK) => {}
            Err(error) => return Err(ImageError::file("lock", path)(error.into())),
        }
        if let Some(waiting) = waiting.take() {
            waiting();
        }
        tokio::time::sleep(RETRY).await;
    }
}
