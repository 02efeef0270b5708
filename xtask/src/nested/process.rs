//! One boot of a level-1 machine, from the start of QEMU to its end.
//!
//! ```text
//! booting ──up, command──▶ running ──exit──▶ ended
//!    │ out of patience        │ timeout passed: "stop"
//!    ▼                        ▼
//!  hung                    stopping ──exit, or GRACE passed──▶ failed
//! ```
//!
//! Invariant: every wait has an end, and QEMU never outlives [`run`].

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::machine::Outcome;
use super::patience::Patience;

/// From the command's end, or from being told to stop, to the end of QEMU.
const GRACE: Duration = Duration::from_secs(60);

/// How a boot ended.
pub enum End {
    /// With the command.
    Exit(Outcome),
    /// Before the command was started.
    Hung,
    /// After that, for this reason.
    Failed(String),
}

/// Starts QEMU, which is `command` but for its standard files, and copies what its output port
/// says to `output`. The command in it may take `timeout` from its own start. What QEMU has to say
/// goes to the file `log`.
pub fn run(
    mut command: Command,
    timeout: Duration,
    log: &Path,
    output: &mut (dyn Write + Send),
) -> Result<End> {
    let start = Instant::now();
    let (control, its_control) = UnixStream::pair()?;
    let (printed, its_output) = UnixStream::pair()?;
    command.stdin(Stdio::from(OwnedFd::from(its_control)));
    command.stdout(Stdio::from(OwnedFd::from(its_output)));
    command.stderr(File::create(log)?);
    let mut qemu = Qemu(command.spawn().context("cannot start QEMU")?);
    // It holds QEMU's ends of the sockets.
    drop(command);
    let lines = BufReader::new(control.try_clone()?).lines();
    thread::scope(|scope| {
        let (sender, events) = mpsc::channel();
        scope.spawn(move || lines.map_while(Result::ok).try_for_each(|line| sender.send(line)));
        let copying = scope.spawn(move || copy(printed, output));
        let patience = Patience::with(qemu.0.id());
        let end = Watch { start, timeout, events, control, patience }.run();
        qemu.end();
        copying.join().unwrap_or(Ok(())).context("cannot write the output")?;
        end
    })
}

/// What is known of a running machine.
struct Watch {
    start: Instant,
    timeout: Duration,
    /// Lines of the control port. Disconnected when QEMU ends.
    events: Receiver<String>,
    control: UnixStream,
    patience: Patience,
}

impl Watch {
    fn run(mut self) -> Result<End> {
        let Some(boot) = self.boot() else { return Ok(End::Hung) };
        if let Some(status) = self.status(self.timeout)? {
            // It ends itself now; what it still prints is lost otherwise.
            while self.next(GRACE).is_ok() {}
            return Ok(End::Exit(Outcome { status, boot, elapsed: self.start.elapsed() }));
        }
        if self.start.elapsed() < boot + self.timeout {
            return Ok(End::Failed("level 1 died".to_owned()));
        }
        // If it is gone, the wait below is a short one.
        let _ = self.control.write_all(b"stop\n");
        self.status(GRACE)?;
        Ok(End::Failed(format!("not done within {} s", self.timeout.as_secs())))
    }

    /// Waits for the start of the command and tells how long it took. `None` if it hangs or died.
    fn boot(&mut self) -> Option<Duration> {
        loop {
            match self.next(Patience::INTERVAL) {
                Ok(line) if line == "command" => return Some(self.start.elapsed()),
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout) if !self.patience.ends() => {}
                Err(_) => return None,
            }
        }
    }

    /// Waits for the end of the command. `None` if it is too late or the machine died.
    fn status(&self, timeout: Duration) -> Result<Option<i32>> {
        let Ok(line) = self.next(timeout) else { return Ok(None) };
        let status = line.strip_prefix("exit ").and_then(|number| number.parse().ok());
        status.map(Some).with_context(|| format!("level 1 said {line:?}"))
    }

    fn next(&self, timeout: Duration) -> Result<String, RecvTimeoutError> {
        self.events.recv_timeout(timeout)
    }
}

/// A running QEMU, which ends with its value.
struct Qemu(Child);

impl Qemu {
    fn end(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        self.end();
    }
}

/// Copies as it comes, without waiting for whole lines.
fn copy(mut from: UnixStream, to: &mut (dyn Write + Send)) -> io::Result<()> {
    let mut buffer = [0; 16384];
    loop {
        // A connection that QEMU was killed on is at its end too.
        let length = from.read(&mut buffer).unwrap_or(0);
        if length == 0 {
            return to.flush();
        }
        to.write_all(&buffer[..length])?;
        to.flush()?;
    }
}
