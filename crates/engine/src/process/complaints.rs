//! What a machine's process wrote to its standard error.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::EngineError;

/// Bytes that are kept.
const MAX_BYTES: usize = 16 << 10;

/// How long to wait for the end of what a process wrote that is gone. It is in the pipe already,
/// unless a fork that is being born holds the other end a moment longer.
const LISTENING: Duration = Duration::from_millis(100);

/// The first complaints of a process. Clones are the same.
#[derive(Clone)]
pub(crate) struct Complaints {
    text: Arc<Mutex<String>>,
    /// Its sender is gone once the pipe has ended.
    open: watch::Receiver<()>,
}

impl Complaints {
    /// Keeps the first bytes of a pipe and throws the rest away, so that the writer never blocks.
    /// Must be called inside a Tokio runtime.
    pub fn collect(pipe: OwnedFd) -> Result<Self, EngineError> {
        let mut pipe = pipe::Receiver::from_owned_fd(pipe).map_err(EngineError::Spawn)?;
        let (reading, open) = watch::channel(());
        let text = Arc::default();
        let complaints = Self { text, open };
        let kept = complaints.text.clone();
        tokio::spawn(async move {
            let _reading = reading;
            let mut buffer = [0u8; 1024];
            while let Ok(read @ 1..) = pipe.read(&mut buffer).await {
                let mut text = kept.lock().expect("no panic under this lock");
                if text.len() < MAX_BYTES {
                    text.push_str(&String::from_utf8_lossy(&buffer[..read]));
                }
            }
        });
        Ok(complaints)
    }

    /// What came so far.
    pub fn text(&self) -> String {
        self.text.lock().expect("no panic under this lock").trim().to_owned()
    }

    /// Everything that came from a process that is gone.
    pub async fn last(&self) -> String {
        let _ = timeout(LISTENING, self.open.clone().changed()).await;
        self.text()
    }

    /// Those of a process that has no pipe.
    #[cfg(test)]
    pub fn none() -> Self {
        Self { text: Arc::default(), open: watch::channel(()).1 }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write;

    use super::*;

    #[tokio::test]
    async fn what_was_said_is_kept_up_to_a_limit() {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let complaints = Complaints::collect(reader).unwrap();
        let writing = tokio::task::spawn_blocking(move || {
            let mut writer = File::from(writer);
            writer.write_all(b"first\n").unwrap();
            writer.write_all(&vec![b'x'; 1 << 20]).unwrap();
        });
        writing.await.unwrap();
        let text = complaints.last().await;
        assert!(text.starts_with("first\nxxx"), "{}", &text[..20]);
        assert!(text.len() < MAX_BYTES + 1024);
    }
}
