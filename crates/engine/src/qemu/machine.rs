//! A machine and its end, which is watched over by its [`Life`].
//!
//! What changes it meanwhile is in [`Controls`].

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use serde_json::json;

use super::controls::Controls;
use super::fork::{Copy, Family};
use super::qmp::{Events, Qmp};
use crate::agent::AgentClient;
use crate::process::Life;
use crate::{After, EngineError, Exit, Forked, Kept, Machine, Stages, Usage, VolumeSource};

/// A machine of the qemu engine.
pub(super) struct QemuMachine {
    controls: Arc<Controls>,
    life: Life,
    /// The gateway's end of the network device.
    net: OwnedFd,
    /// Copies of the channels, for another server.
    copies: Vec<OwnedFd>,
}

impl QemuMachine {
    /// Takes over a started process and watches it from now on. `original` is the agent of the
    /// machine that it was copied from.
    pub fn adopt(
        family: Arc<Family>,
        copy: Copy,
        original: Option<&AgentClient>,
    ) -> Result<Self, EngineError> {
        let Copy { emulator, body } = copy;
        let missing = || EngineError::Ended("its channels were taken twice".into());
        let stream = emulator.agent.ok_or_else(missing)?;
        let agent = match original {
            Some(original) => AgentClient::connect_copy(stream, original),
            None => AgentClient::connect(stream),
        };
        let events = emulator.events.ok_or_else(missing)?;
        let qmp = emulator.qmp;
        let life = Life::watch(emulator.process, guest_end(qmp.clone(), events));
        let (net, copies) = (emulator.net, emulator.copies);
        let controls = Controls::new(family, qmp, agent, body);
        Ok(Self { controls: Arc::new(controls), life, net, copies })
    }
}

#[async_trait]
impl Machine for QemuMachine {
    fn agent(&self) -> &AgentClient {
        &self.controls.agent
    }

    fn pid(&self) -> u32 {
        self.life.pid()
    }

    fn network(&self) -> io::Result<OwnedFd> {
        self.net.try_clone()
    }

    fn set_background(&self, background: bool) {
        self.life.set_background(background);
    }

    async fn attach(&self, slot: usize, volume: VolumeSource) -> Result<u64, EngineError> {
        self.controls.clone().attach(slot, volume).await
    }

    async fn run(&self) -> Result<Stages, EngineError> {
        self.controls.clone().set_running(true).await?;
        Ok(Stages::new())
    }

    async fn pause(&self) -> Result<(), EngineError> {
        self.controls.clone().set_running(false).await
    }

    async fn fork(&self, dirs: &[&Path]) -> Result<Forked, EngineError> {
        let dirs = dirs.iter().map(|dir| (*dir).to_owned()).collect();
        self.controls.clone().fork(dirs).await
    }

    async fn snapshot(&self, scratch: &Path, out: &Path, then: After) -> Result<(), EngineError> {
        self.controls.clone().snapshot(scratch.to_owned(), out.to_owned(), then).await
    }

    async fn kill(&self) {
        self.life.kill().await;
    }

    async fn exited(&self) -> Exit {
        self.life.exited().await
    }

    fn usage(&self) -> Option<Usage> {
        self.life.usage()
    }

    fn kept(&self) -> io::Result<Option<Kept>> {
        let family = &self.controls.family;
        let pidfd = self.life.child().pidfd();
        let all = [pidfd, &family.lifeline, &family.memory].into_iter().chain(&self.copies);
        let descriptors = all.map(OwnedFd::try_clone).collect::<io::Result<_>>()?;
        Ok(Some(Kept { note: self.controls.note(), descriptors }))
    }
}

/// Resolves when the guest ended itself, with the reason; to nothing when the monitor closes: then
/// the process is ending too, and its end is what counts.
async fn guest_end(qmp: Qmp, mut events: Events) -> Option<Exit> {
    while let Some(event) = events.recv().await {
        if event.name == "SHUTDOWN" && event.data["guest"] == json!(true) {
            // A kernel panic is a reset like any other to QEMU; the console tells them apart.
            let console = console(&qmp).await.unwrap_or_default();
            if !console.contains("Kernel panic") {
                return Some(Exit::GuestShutdown);
            }
            tracing::warn!(console = last_words(&console), "the kernel of a guest panicked");
            return Some(Exit::GuestPanic);
        }
    }
    None
}

/// The end of a console, for the log: a guest's text, so bounded and on one line.
fn last_words(console: &str) -> String {
    const CHARS: usize = 4096;
    let skipped = console.chars().count().saturating_sub(CHARS);
    console.chars().skip(skipped).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// What the guest's kernel wrote to its console: the last 64 KiB.
pub(super) async fn console(qmp: &Qmp) -> Result<String, EngineError> {
    let arguments = json!({ "device": "console", "size": 65536 });
    let text = qmp.execute("ringbuf-read", arguments).await?;
    Ok(text.as_str().unwrap_or_default().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_words_of_a_guest_are_one_bounded_line() {
        let console = format!("{}\r\n\x1b[31mKernel panic: é", "x".repeat(9000));
        let words = last_words(&console);
        assert_eq!(words.chars().count(), 4096);
        assert!(words.ends_with("   [31mKernel panic: é"), "{words}");
        assert!(!words.contains(char::is_control));
        assert_eq!(last_words("short"), "short");
    }
}
