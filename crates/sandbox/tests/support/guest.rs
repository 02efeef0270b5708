//! A guest without a machine: an agent that speaks the real protocol from inside the test.
//!
//! It has no shell. A command line is one of a few words:
//!
//! | line | does |
//! | --- | --- |
//! | `echo TEXT`, `err TEXT` | prints a line on stdout or stderr |
//! | `raw A B …` | prints each hexadecimal word as a chunk of its own |
//! | `exit N`, `sleep MS`, `hang` | ends with a status, after a while, never |
//! | `cat` | prints its input |
//! | `flood BYTES` | prints as fast as it is taken |
//! | `who` | prints the machine's name and how many commands it has run |
//! | `keep TEXT`, `kept` | keeps a text as a file, prints it |
//! | `refuse` | cannot be started |
//! | `die`, `poweroff`, `panic` | ends the machine |

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pandastack_engine::Exit;
use pandastack_proto::{
    Channel, Decoder, DirEntry, Encoder, ErrorCode, ExecSpec, ExecStatus, Failure, FileKind, Hello,
    Incoming, Kind, Outcome, RecvWindow, Reply, Request, ResumeAck, Sealed, SendWindow, VERSION,
    Welcome, parse,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::mpsc;

use super::{Memory, Shared};

/// What arrives on a stream after its request.
enum In {
    Data(Vec<u8>),
    Eof,
    Credit(u32),
    Reset,
}

type Out = mpsc::UnboundedSender<Vec<u8>>;

/// Serves one connection until it closes.
pub async fn serve(stream: UnixStream, shared: Arc<Shared>) {
    let (mut reader, mut writer) = stream.into_split();
    let (out, mut frames) = mpsc::unbounded_channel::<Vec<u8>>();
    tokio::spawn(async move {
        while let Some(frame) = frames.recv().await {
            if writer.write_all(&frame).await.is_err() {
                return;
            }
        }
    });
    let mut streams: HashMap<u32, mpsc::UnboundedSender<In>> = HashMap::new();
    let mut decoder = Decoder::for_agent();
    loop {
        match reader.read(decoder.space()).await {
            Ok(0) | Err(_) => return,
            Ok(read) => decoder.commit(read),
        }
        // A guest that stands still reads nothing; what was read meanwhile waits here.
        shared.running().await;
        while let Some(Incoming::Start | Incoming::Frame(_)) = peek(&mut decoder, |incoming| {
            let Incoming::Frame(frame) = incoming else { return };
            let input = match frame.kind {
                Kind::Hello => return welcome(&out, frame.payload),
                Kind::Request => {
                    let sealed: Sealed = parse(frame.payload, "request").unwrap();
                    let (sender, input) = mpsc::unbounded_channel();
                    streams.insert(frame.stream, sender);
                    let stream = Stream {
                        id: frame.stream,
                        out: out.clone(),
                        input,
                        early: VecDeque::new(),
                        send: SendWindow::default(),
                    };
                    tokio::spawn(stream.answer(sealed, shared.clone()));
                    return;
                }
                Kind::Data => In::Data(frame.channel().unwrap().1.to_vec()),
                Kind::Eof => In::Eof,
                Kind::Credit => In::Credit(frame.credit().unwrap()),
                Kind::Reset => In::Reset,
                Kind::Welcome | Kind::Reply | Kind::Ready => return,
            };
            if let Some(stream) = streams.get(&frame.stream) {
                let _ = stream.send(input);
            }
        }) {}
    }
}

fn peek<'a>(decoder: &'a mut Decoder, mut take: impl FnMut(Incoming<'_>)) -> Option<Incoming<'a>> {
    let incoming = decoder.next().unwrap()?;
    take(incoming);
    Some(Incoming::Start)
}

fn welcome(out: &Out, hello: &[u8]) {
    let hello: Hello = parse(hello, "hello").unwrap();
    let mut encoder = Encoder::new();
    encoder.echo(&hello.nonce);
    let welcome = Welcome { version: VERSION, init: true, kernel: "fake".to_owned() };
    encoder.message(Kind::Welcome, 0, &welcome).unwrap();
    let _ = out.send(encoder.pending().to_vec());
}

/// One request and what comes with it.
struct Stream {
    id: u32,
    out: Out,
    input: mpsc::UnboundedReceiver<In>,
    /// What came while it waited for credit.
    early: VecDeque<In>,
    send: SendWindow,
}

impl Stream {
    async fn answer(mut self, sealed: Sealed, shared: Arc<Shared>) {
        let files = &shared.memory;
        let deaf = shared.deaf || shared.knobs.deaf.load(Ordering::SeqCst);
        let known = shared.memory.lock().unwrap().token == sealed.token;
        let outcome = match sealed.request {
            _ if !known => {
                Err(Failure { code: ErrorCode::Unauthorized, message: "wrong token".into() })
            }
            Request::Resume(_) if deaf => return,
            Request::Resume(identity) => {
                shared.memory.lock().unwrap().token = identity.token;
                Ok(Reply::Resumed(ResumeAck { unix_ns: 0, took_us: 0 }))
            }
            Request::Exec(spec) => self.exec(&spec, &shared).await,
            Request::Write { path, .. } => self.write(path, files).await,
            Request::Read { path, .. } => self.read(&path, files).await,
            Request::List { path } => self.list(&path, files),
            Request::Stat { path, .. } => find(files, &path).map(Reply::Entry),
            Request::Remove { path } => {
                let removed = files.lock().unwrap().files.remove(&path);
                removed.map(|_| Reply::Done).ok_or_else(|| missing(&path))
            }
            Request::MountVolume { slot, name, read_only, .. } => {
                shared.knobs.note(&shared.name, format!("mount {slot} {name} {read_only}"));
                Ok(Reply::Done)
            }
            Request::FlushVolumes { unmount } => {
                shared.knobs.note(&shared.name, format!("flush {unmount}"));
                Ok(Reply::Done)
            }
            Request::Ports => Ok(Reply::Ports(vec![80, 8000])),
            Request::Dial { port } => self.dial(port, &shared).await,
            _ => Ok(Reply::Done),
        };
        // A machine that has ended says nothing any more.
        if !shared.ended() {
            self.reply(&outcome);
        }
    }

    /// Connects to the server that the test has put on a port.
    async fn dial(&mut self, port: u16, shared: &Shared) -> Outcome {
        let server = shared.knobs.servers.lock().unwrap().get(&port).copied();
        let refused = || Failure { code: ErrorCode::Refused, message: "nothing listens".into() };
        let server =
            TcpStream::connect(server.ok_or_else(refused)?).await.map_err(|_| refused())?;
        self.frame(|out, id| out.ready(id));
        let (mut from, mut to) = server.into_split();
        let (mut window, mut pending) = (RecvWindow::default(), VecDeque::<Vec<u8>>::new());
        let (mut ended, mut finished, mut shut, mut written) = (false, false, false, 0);
        let mut buf = vec![0; 16 << 10];
        while !(ended && shut) {
            if finished && pending.is_empty() && !shut {
                to.shutdown().await.ok();
                shut = true;
                continue;
            }
            let room = self.send.allowance().min(buf.len());
            let front = pending.front().cloned().unwrap_or_default();
            tokio::select! {
                input = self.input.recv() => match input {
                    Some(In::Data(bytes)) => pending.push_back(bytes),
                    Some(In::Eof) => finished = true,
                    Some(In::Credit(credit)) => self.send.grant(credit).unwrap(),
                    Some(In::Reset) | None => {
                        return Err(Failure { code: ErrorCode::Cancelled, message: String::new() });
                    }
                },
                read = from.read(&mut buf[..room]), if room > 0 && !ended => match read {
                    Ok(0) => {
                        ended = true;
                        self.frame(|out, id| out.eof(id, Channel::Tcp));
                    }
                    Ok(count) => {
                        self.send.spend(count);
                        self.frame(|out, id| out.data(id, Channel::Tcp, &buf[..count]).unwrap());
                    }
                    Err(_) => {
                        return Err(Failure { code: ErrorCode::Io, message: "it broke".into() });
                    }
                },
                sent = to.write(&front[written..]), if !front.is_empty() => {
                    // Whoever does not listen any more: what comes goes nowhere.
                    written += sent.unwrap_or(front.len() - written);
                    if written == front.len() {
                        self.credit(&mut window, written);
                        pending.pop_front();
                        written = 0;
                    }
                }
            }
        }
        Ok(Reply::Done)
    }

    fn frame(&self, put: impl FnOnce(&mut Encoder, u32)) {
        let mut encoder = Encoder::new();
        put(&mut encoder, self.id);
        let _ = self.out.send(encoder.pending().to_vec());
    }

    async fn exec(&mut self, spec: &ExecSpec, shared: &Shared) -> Outcome {
        let number = {
            let mut memory = shared.memory.lock().unwrap();
            memory.commands += 1;
            memory.commands
        };
        let line = spec.shell.clone().unwrap_or_else(|| spec.argv.clone().unwrap().join(" "));
        let (word, rest) = line.split_once(' ').unwrap_or((&line, ""));
        let mut code = 0;
        match word {
            "echo" => self.print(Channel::Stdout, format!("{rest}\n").as_bytes()).await,
            "err" => self.print(Channel::Stderr, format!("{rest}\n").as_bytes()).await,
            "who" => {
                let text = format!("{} {number}", shared.name);
                self.print(Channel::Stdout, text.as_bytes()).await;
            }
            "keep" => {
                shared.memory.lock().unwrap().files.insert("/kept".to_owned(), rest.into());
            }
            "kept" => {
                let kept =
                    shared.memory.lock().unwrap().files.get("/kept").cloned().unwrap_or_default();
                self.print(Channel::Stdout, &kept).await;
            }
            "raw" => {
                for chunk in rest.split(' ') {
                    let byte = |at| u8::from_str_radix(&chunk[at..at + 2], 16).unwrap();
                    let bytes: Vec<u8> = (0..chunk.len()).step_by(2).map(byte).collect();
                    self.print(Channel::Stdout, &bytes).await;
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            }
            "exit" => code = rest.parse().unwrap(),
            "sleep" => {
                let nap = Duration::from_millis(rest.parse().unwrap());
                tokio::select! {
                    () = tokio::time::sleep(nap) => shared.running().await,
                    () = self.reset() => code = 137,
                }
            }
            "hang" => {
                shared.hanging.fetch_add(1, Ordering::SeqCst);
                self.reset().await;
                shared.hanging.fetch_sub(1, Ordering::SeqCst);
                code = 137;
            }
            "cat" => code = self.cat().await,
            "flood" => {
                let mut left: usize = rest.parse().unwrap();
                while left > 0 && code == 0 {
                    let len = left.min(32 << 10);
                    code = self.send(Channel::Stdout, &vec![b'x'; len]).await;
                    left -= len;
                }
            }
            "refuse" => {
                return Err(Failure { code: ErrorCode::NotFound, message: "no user".into() });
            }
            "die" => shared.end(Exit::Died),
            "poweroff" => shared.end(Exit::GuestShutdown),
            "panic" => shared.end(Exit::GuestPanic),
            _ => code = 127,
        }
        Ok(Reply::Exited(ExecStatus { code, timed_out: false }))
    }

    async fn next(&mut self) -> Option<In> {
        match self.early.pop_front() {
            Some(early) => Some(early),
            None => self.input.recv().await,
        }
    }

    async fn cat(&mut self) -> i32 {
        let mut window = RecvWindow::default();
        loop {
            match self.next().await {
                Some(In::Data(bytes)) => {
                    self.credit(&mut window, bytes.len());
                    self.print(Channel::Stdout, &bytes).await;
                }
                Some(In::Credit(credit)) => self.send.grant(credit).unwrap(),
                Some(In::Eof) => return 0,
                Some(In::Reset) | None => return 137,
            }
        }
    }

    async fn write(&mut self, path: String, files: &Mutex<Memory>) -> Outcome {
        let mut window = RecvWindow::default();
        let mut content = Vec::new();
        loop {
            match self.input.recv().await {
                Some(In::Data(bytes)) => {
                    self.credit(&mut window, bytes.len());
                    content.extend_from_slice(&bytes);
                }
                Some(In::Credit(_)) => {}
                Some(In::Eof) => break,
                Some(In::Reset) | None => {
                    return Err(Failure { code: ErrorCode::Cancelled, message: String::new() });
                }
            }
        }
        let bytes = content.len() as u64;
        files.lock().unwrap().files.insert(path, content);
        Ok(Reply::Written { bytes })
    }

    async fn read(&mut self, path: &str, files: &Mutex<Memory>) -> Outcome {
        let content = files.lock().unwrap().files.get(path).cloned();
        let content = content.ok_or_else(|| missing(path))?;
        for piece in content.chunks(32 << 10) {
            self.send(Channel::File, piece).await;
        }
        Ok(Reply::Done)
    }

    fn list(&mut self, dir: &str, files: &Mutex<Memory>) -> Outcome {
        let entries: Vec<DirEntry> = {
            let files = &files.lock().unwrap().files;
            let below = files.iter().filter(|(path, _)| path.starts_with(dir));
            below.map(|(path, content)| entry(path, content)).collect()
        };
        let mut encoder = Encoder::new();
        encoder.data_message(self.id, Channel::Entries, &entries).unwrap();
        let _ = self.out.send(encoder.pending().to_vec());
        Ok(Reply::Done)
    }

    async fn print(&mut self, channel: Channel, bytes: &[u8]) {
        for piece in bytes.chunks(32 << 10) {
            self.send(channel, piece).await;
        }
    }

    /// Sends when there is credit; 137 when the host lost interest.
    async fn send(&mut self, channel: Channel, bytes: &[u8]) -> i32 {
        while self.send.allowance() < bytes.len() {
            match self.input.recv().await {
                Some(In::Credit(credit)) => self.send.grant(credit).unwrap(),
                Some(In::Reset) | None => return 137,
                Some(other) => self.early.push_back(other),
            }
        }
        self.send.spend(bytes.len());
        let mut encoder = Encoder::new();
        encoder.data(self.id, channel, bytes).unwrap();
        let _ = self.out.send(encoder.pending().to_vec());
        0
    }

    fn credit(&self, window: &mut RecvWindow, len: usize) {
        window.take(len).unwrap();
        if let Some(credit) = window.release(len) {
            let mut encoder = Encoder::new();
            encoder.credit(self.id, credit);
            let _ = self.out.send(encoder.pending().to_vec());
        }
    }

    async fn reset(&mut self) {
        while !matches!(self.input.recv().await, Some(In::Reset) | None) {}
    }

    fn reply(&self, outcome: &Outcome) {
        let mut encoder = Encoder::new();
        encoder.message(Kind::Reply, self.id, outcome).unwrap();
        let _ = self.out.send(encoder.pending().to_vec());
    }
}

fn find(files: &Mutex<Memory>, path: &str) -> Result<DirEntry, Failure> {
    let files = &files.lock().unwrap().files;
    files.get(path).map(|content| entry(path, content)).ok_or_else(|| missing(path))
}

fn entry(path: &str, content: &[u8]) -> DirEntry {
    DirEntry {
        name: path.rsplit('/').next().unwrap().to_owned(),
        kind: FileKind::File,
        leads_to_dir: false,
        size: content.len() as u64,
        mode: 0o100_644,
        mtime: 1,
    }
}

fn missing(path: &str) -> Failure {
    Failure { code: ErrorCode::NotFound, message: format!("{path}: not found") }
}
