//! A client of QEMU's machine protocol: one JSON object a line, over an inherited socket.
//!
//! QEMU parses what the guest sends it, so it is not trusted either: lines are bounded and every
//! command has a deadline.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Interest};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Mutex, mpsc};

use crate::EngineError;
use crate::agent::AgentError;

/// Longest line accepted. `ringbuf-read` of the console is the largest answer that we ask for.
const MAX_LINE: u64 = 1 << 20;
/// Time for one command. Each takes a few milliseconds, on a busy host perhaps a second.
const DEADLINE: Duration = Duration::from_secs(20);

/// The events that are passed on; all others are dropped as they come.
const WANTED: &[&str] = &["MIGRATION", "SHUTDOWN", "STOP"];

/// Sends commands; cheap to clone. Commands of several callers go one after the other.
#[derive(Clone)]
pub(super) struct Qmp {
    session: Arc<Mutex<Session>>,
}

struct Session {
    writer: OwnedWriteHalf,
    answers: mpsc::Receiver<Value>,
}

/// The wanted events of one machine, in order. Bounded; the reader waits for room.
pub(super) type Events = mpsc::Receiver<Event>;

/// Something that QEMU tells unasked.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Event {
    /// Such as `SHUTDOWN`.
    pub name: String,
    /// Its arguments.
    pub data: Value,
}

impl Qmp {
    /// Starts a session: reads the greeting and leaves capability negotiation.
    pub async fn connect(stream: UnixStream) -> Result<(Self, Events), EngineError> {
        let (qmp, events) = Self::adopt(stream);
        let greeting = qmp.answer().await?;
        if greeting.get("QMP").is_none() {
            return Err(EngineError::Monitor(format!("unexpected greeting {greeting}")));
        }
        qmp.execute("qmp_capabilities", Value::Null).await?;
        Ok((qmp, events))
    }

    /// Takes over the session of a forked machine: its QEMU greeted and negotiated before it was
    /// copied.
    pub fn adopt(stream: UnixStream) -> (Self, Events) {
        Self::over(stream, false)
    }

    /// `amid` says that the first line may be the rest of one.
    fn over(stream: UnixStream, amid: bool) -> (Self, Events) {
        let (reader, writer) = stream.into_split();
        let (answer_tx, answers) = mpsc::channel(1);
        let (event_tx, events) = mpsc::channel(64);
        tokio::spawn(read(BufReader::new(reader), answer_tx, event_tx, amid));
        (Self { session: Arc::new(Mutex::new(Session { writer, answers })) }, events)
    }

    /// Takes over the session of another server, which may have ended between a command and its
    /// answer, or in the middle of that: everything that was meant for it is skipped. A command is
    /// one write that fits into the socket, so there is none in halves.
    pub async fn resume(stream: UnixStream) -> Result<(Self, Events), EngineError> {
        let mut mark = [0; 16];
        getrandom::fill(&mut mark).map_err(|_| AgentError::Entropy)?;
        let mark = format!("{:032x}", u128::from_ne_bytes(mark));
        let (qmp, events) = Self::over(stream, true);
        let mut session = qmp.session.lock().await;
        let request = json!({ "execute": "query-status", "id": mark });
        let line = format!("{request}\n");
        let exchange = async {
            session.writer.write_all(line.as_bytes()).await.ok()?;
            loop {
                let answer = session.answers.recv().await?;
                if answer.get("id").and_then(Value::as_str) == Some(&mark) {
                    return Some(());
                }
            }
        };
        tokio::time::timeout(DEADLINE, exchange)
            .await
            .map_err(|_| EngineError::Deadline("QEMU's monitor, to find its feet"))?
            .ok_or_else(ended)?;
        drop(session);
        Ok((qmp, events))
    }

    /// Runs one command and returns its answer.
    pub async fn execute(&self, command: &str, arguments: Value) -> Result<Value, EngineError> {
        self.exchange(command, arguments, None).await
    }

    /// Gives QEMU a descriptor and returns the number of its set: `/dev/fdset/N` is a file name
    /// from then on.
    pub async fn add_descriptor(&self, descriptor: BorrowedFd<'_>) -> Result<u64, EngineError> {
        let added = self.exchange("add-fd", Value::Null, Some(descriptor)).await?;
        added["fdset-id"]
            .as_u64()
            .ok_or_else(|| EngineError::Monitor("add-fd: an answer without a set".into()))
    }

    async fn exchange(
        &self,
        command: &str,
        arguments: Value,
        descriptor: Option<BorrowedFd<'_>>,
    ) -> Result<Value, EngineError> {
        let mut request = json!({ "execute": command });
        if !arguments.is_null() {
            request["arguments"] = arguments;
        }
        let line = format!("{request}\n");
        let mut session = self.session.lock().await;
        let exchange = async {
            match descriptor {
                None => session.writer.write_all(line.as_bytes()).await.ok()?,
                Some(fd) => send_with(session.writer.as_ref(), line.as_bytes(), fd).await.ok()?,
            }
            session.answers.recv().await
        };
        let answer = tokio::time::timeout(DEADLINE, exchange)
            .await
            .map_err(|_| EngineError::Deadline("a command of QEMU's monitor"))?
            .ok_or_else(ended)?;
        match (answer.get("return"), answer.get("error")) {
            (Some(value), _) => Ok(value.clone()),
            (None, error) => {
                let text = error.and_then(|e| e.get("desc")).and_then(Value::as_str);
                Err(EngineError::Monitor(format!("{command}: {}", text.unwrap_or("no reason"))))
            }
        }
    }

    async fn answer(&self) -> Result<Value, EngineError> {
        let mut session = self.session.lock().await;
        tokio::time::timeout(DEADLINE, session.answers.recv())
            .await
            .map_err(|_| EngineError::Deadline("QEMU's greeting"))?
            .ok_or_else(ended)
    }
}

/// Sends a line with a descriptor attached (`SCM_RIGHTS`, unix(7)). A line this short fits into an
/// empty socket buffer whole, and the buffer is empty because answers are awaited.
async fn send_with(stream: &UnixStream, line: &[u8], fd: BorrowedFd<'_>) -> io::Result<()> {
    let send = || {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let descriptors = [fd];
        control.push(SendAncillaryMessage::ScmRights(&descriptors));
        let sent = rustix::net::sendmsg(
            stream,
            &[io::IoSlice::new(line)],
            &mut control,
            SendFlags::NOSIGNAL,
        )?;
        if sent == line.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
    };
    stream.async_io(Interest::WRITABLE, send).await
}

fn ended() -> EngineError {
    EngineError::Ended("QEMU closed its monitor".into())
}

/// Sorts lines into answers and events until QEMU goes away or breaks the protocol.
async fn read(
    mut reader: BufReader<OwnedReadHalf>,
    answers: mpsc::Sender<Value>,
    events: mpsc::Sender<Event>,
    amid: bool,
) {
    let mut line = Vec::new();
    let mut first = amid;
    loop {
        line.clear();
        match (&mut reader).take(MAX_LINE).read_until(b'\n', &mut line).await {
            Ok(n) if n > 0 && line.ends_with(b"\n") => {}
            _ => return,
        }
        let value = match serde_json::from_slice::<Value>(&line) {
            Ok(value) if value.is_object() => value,
            _ if std::mem::take(&mut first) => continue,
            _ => return,
        };
        first = false;
        match value.get("event").and_then(Value::as_str) {
            // A guest can cause events by the thousand, but only a few of those that matter.
            Some(name) if WANTED.contains(&name) => {
                let data = value.get("data").cloned().unwrap_or(Value::Null);
                let _ = events.send(Event { name: name.to_owned(), data }).await;
            }
            Some(_) => {}
            None => {
                if answers.send(value).await.is_err() {
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn scripted(lines: &'static str) -> Result<(Qmp, Events), EngineError> {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        tokio::spawn(async move {
            theirs.write_all(lines.as_bytes()).await.unwrap();
            theirs.shutdown().await.unwrap();
            let mut sink = Vec::new();
            let _ = theirs.read_to_end(&mut sink).await;
        });
        Qmp::connect(ours).await
    }

    #[tokio::test]
    async fn answers_and_events_are_told_apart() {
        let (qmp, mut events) = scripted(concat!(
            "{\"QMP\":{}}\n{\"return\":{}}\n{\"event\":\"STOP\"}\n",
            "{\"error\":{\"class\":\"GenericError\",\"desc\":\"no\"}}\n",
        ))
        .await
        .unwrap();
        let error = qmp.execute("cont", Value::Null).await.unwrap_err();
        assert_eq!(error.to_string(), "the machine's monitor failed: cont: no");
        assert_eq!(events.recv().await.unwrap().name, "STOP");
    }

    #[tokio::test]
    async fn a_session_is_taken_over_wherever_it_stands() {
        for left in ["", "{\"return\":{}}\n", "turn\":{}}\n{\"return\":{\"a\":1}}\n"] {
            let (ours, theirs) = UnixStream::pair().unwrap();
            tokio::spawn(async move {
                let mut theirs = BufReader::new(theirs);
                theirs.write_all(left.as_bytes()).await.unwrap();
                let mut line = String::new();
                while theirs.read_line(&mut line).await.unwrap() > 0 {
                    if let Ok(request) = serde_json::from_str::<Value>(&line) {
                        let answer = json!({ "return": request["execute"], "id": request["id"] });
                        theirs.write_all(format!("{answer}\n").as_bytes()).await.unwrap();
                    }
                    line.clear();
                }
            });
            let (qmp, _events) = Qmp::resume(ours).await.unwrap();
            let answer = qmp.execute("cont", Value::Null).await.unwrap();
            assert_eq!(answer, json!("cont"), "{left:?}");
        }
    }

    #[tokio::test]
    async fn garbage_ends_the_session() {
        for bad in ["hello\n", "{\"QMP\":{}}\nnonsense\n", "{\"return\":{}}\n", ""] {
            assert!(scripted(bad).await.is_err(), "{bad:?}");
        }
    }
}
