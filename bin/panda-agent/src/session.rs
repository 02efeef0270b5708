//! The streams of the current connection, and what their frames do.
//!
//! The host is believed here: a frame that makes no sense is ignored or fails its own stream, and
//! never more than that.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::{BorrowedFd, RawFd};
use std::time::Instant;

use pandastack_proto::{
    Channel, Detached, Encoder, Ended, ErrorCode, Failure, Frame, Kind, MAX_STREAMS, Outcome,
    Reply, Request, Sealed, parse,
};
use rustix::process::{Pid, WaitStatus};

use crate::dial::Dial;
use crate::exec::Exec;
use crate::failure::refuse;
use crate::files;
use crate::guest::Guest;
use crate::lane::{Lane, Progress};
use crate::{survey, volumes};

/// Longest text of a failure, so that it still fits in a frame with a long path in it.
const MAX_MESSAGE: usize = 1024;

/// Most ends of commands that wait for a host to ask.
const MAX_ENDS: usize = 64;

/// What is being done for a stream.
enum Job {
    Exec(Box<Exec>),
    Read(files::Read),
    Write(files::Write),
    List(files::List),
    Remove(files::Remove),
    Dial(Dial),
}

struct Stream {
    lane: Lane,
    job: Job,
}

/// What a request came to at once.
enum Opened {
    Job(Job),
    Reply(Reply),
}

/// Which command, and whether it still has a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    Stream(u32),
    Detached(Pid),
}

/// All streams.
#[derive(Default)]
pub struct Session {
    streams: BTreeMap<u32, Stream>,
    /// Commands of earlier connections.
    detached: Vec<Exec>,
    /// How they ended, until a host has seen it.
    ends: VecDeque<Ended>,
    /// How many of them have ended.
    ended: u64,
    highest: u32,
    power_off: bool,
}

impl Session {
    /// Another connection has begun: its numbers start anew. Half files disappear; commands go on
    /// without anybody who listens, and how they end can be asked.
    pub fn restart(&mut self, guest: &mut Guest) {
        self.highest = 0;
        for stream in std::mem::take(&mut self.streams).into_values() {
            if let Job::Exec(mut exec) = stream.job {
                exec.detach();
                self.detached.push(*exec);
            }
        }
        // Some have ended already, and what they printed was still to be sent.
        self.sweep(guest);
    }

    /// Notes the ends of detached commands.
    fn sweep(&mut self, guest: &mut Guest) {
        let over: Vec<_> = self.detached.extract_if(.., |exec| exec.pid().is_none()).collect();
        for exec in over {
            if let Some((command, status)) = exec.end() {
                self.ended += 1;
                let (number, command) = (self.ended, command.to_owned());
                self.ends.push_back(Ended { number, command, status });
            }
            guest.keep_tree(exec.into_tree());
        }
        let surplus = self.ends.len().saturating_sub(MAX_ENDS);
        self.ends.drain(..surplus);
    }

    /// What became of commands of earlier connections.
    fn detached(&mut self, seen: u64) -> Detached {
        self.ends.retain(|end| end.number > seen);
        let running = u32::try_from(self.detached.len()).unwrap_or(u32::MAX);
        Detached { running, ended: self.ends.iter().cloned().collect() }
    }

    /// Whether the machine is to go off once everything is sent.
    pub fn power_off(&self) -> bool {
        self.power_off
    }

    /// Takes a frame.
    pub fn frame(&mut self, frame: Frame<'_>, guest: &mut Guest, out: &mut Encoder) {
        let id = frame.stream;
        if frame.kind == Kind::Request {
            // A number that was used already can only be a mistake.
            if id > self.highest {
                self.highest = id;
                self.request(id, frame.payload, guest, out);
            }
            return;
        }
        // A stream that is gone: the frame crossed the reply.
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let progress = match frame.kind {
            Kind::Data => frame.channel().map_or_else(
                || refused("a malformed frame"),
                |(channel, bytes)| stream.data(channel, bytes, out),
            ),
            Kind::Eof => stream.eof(),
            Kind::Credit => match frame.credit().map(|credit| stream.lane.granted(credit)) {
                Some(Ok(())) => Progress::Waiting,
                _ => refused("a malformed credit"),
            },
            Kind::Reset => stream.reset(out),
            Kind::Hello | Kind::Welcome | Kind::Request | Kind::Reply | Kind::Ready => {
                Progress::Waiting
            }
        };
        if let Progress::Done(outcome) = progress {
            self.close(id, outcome, guest, out);
        }
    }

    fn request(&mut self, id: u32, payload: &[u8], guest: &mut Guest, out: &mut Encoder) {
        let opened = parse::<Sealed>(payload, "request")
            .map_err(|error| refuse(ErrorCode::InvalidArgument, error.to_string()))
            .and_then(|sealed| {
                guest.authorise(&sealed.token)?;
                self.open(sealed.request, guest)
            });
        match opened {
            Ok(Opened::Job(job)) => {
                self.streams.insert(id, Stream { lane: Lane::new(id), job });
            }
            Ok(Opened::Reply(done)) => reply(id, Ok(done), out),
            Err(failure) => reply(id, Err(failure), out),
        }
    }

    fn open(&mut self, request: Request, guest: &mut Guest) -> Result<Opened, Failure> {
        if self.streams.len() >= MAX_STREAMS {
            return Err(refuse(ErrorCode::TooMany, "too many requests at once"));
        }
        let done = |()| Opened::Reply(Reply::Done);
        match request {
            Request::Ping => Ok(done(())),
            Request::Resume(identity) => {
                // Those of the guest that this one is a copy of are not its own.
                self.ends.clear();
                guest.resume(&identity).map(|ack| Opened::Reply(Reply::Resumed(ack)))
            }
            Request::Detached { seen } => Ok(Opened::Reply(Reply::Detached(self.detached(seen)))),
            Request::SetClock { unix_ns } => guest.set_clock(unix_ns).map(done),
            Request::Exec(spec) => {
                Exec::start(&spec, guest).map(|exec| Opened::Job(Job::Exec(Box::new(exec))))
            }
            Request::Read { path, offset, len } => {
                files::Read::open(&path, offset, len).map(|read| Opened::Job(Job::Read(read)))
            }
            Request::Write { path, mode } => {
                files::Write::open(&path, mode).map(|write| Opened::Job(Job::Write(write)))
            }
            Request::List { path } => {
                files::List::open(&path).map(|list| Opened::Job(Job::List(list)))
            }
            Request::Stat { path, follow } => {
                files::stat(&path, follow).map(|entry| Opened::Reply(Reply::Entry(entry)))
            }
            Request::Mkdir { path } => files::make_dir(&path).map(done),
            Request::Remove { path } => Ok(match files::Remove::start(&path)? {
                Some(remove) => Opened::Job(Job::Remove(remove)),
                None => done(()),
            }),
            Request::Ports => survey::ports().map(|ports| Opened::Reply(Reply::Ports(ports))),
            Request::Dial { port } => Dial::start(port).map(|dial| Opened::Job(Job::Dial(dial))),
            Request::Stats => survey::stats().map(|stats| Opened::Reply(Reply::Stats(stats))),
            Request::Quiesce => self.quiesce().map(done),
            Request::MountVolume { slot, name, bytes, read_only } => {
                guest.must_be_init()?;
                volumes::mount_at(slot, &name, bytes, read_only).map(done)
            }
            Request::FlushVolumes { unmount } => {
                guest.must_be_init()?;
                volumes::flush(unmount).map(done)
            }
            Request::PowerOff => {
                self.power_off = true;
                Ok(done(()))
            }
        }
    }

    fn quiesce(&self) -> Result<(), Failure> {
        if !self.streams.is_empty() {
            return Err(refuse(ErrorCode::TooMany, "other requests are still running"));
        }
        rustix::fs::sync();
        Ok(())
    }

    /// Lets every stream do a piece of work. True if some could go on at once.
    pub fn work(&mut self, guest: &mut Guest, out: &mut Encoder) -> bool {
        let mut ready = false;
        let mut over = Vec::new();
        for (&id, stream) in &mut self.streams {
            match stream.work(out) {
                Progress::Waiting => {}
                Progress::Ready => ready = true,
                Progress::Done(outcome) => over.push((id, outcome)),
            }
        }
        for (id, outcome) in over {
            self.close(id, outcome, guest, out);
        }
        ready
    }

    fn close(&mut self, id: u32, outcome: Outcome, guest: &mut Guest, out: &mut Encoder) {
        if let Some(stream) = self.streams.remove(&id) {
            reply(id, outcome, out);
            if let Job::Exec(exec) = stream.job {
                guest.keep_tree(exec.into_tree());
            }
        }
    }

    /// Ends the commands whose time is up.
    pub fn expire(&mut self, now: Instant) {
        self.execs_mut().for_each(|exec| exec.expire(now));
    }

    /// When the next job has something to do that no descriptor tells of.
    pub fn next_deadline(&self) -> Option<Instant> {
        let streams = self.streams.values().filter_map(|stream| match &stream.job {
            Job::Exec(exec) => exec.deadline(),
            Job::Dial(dial) => dial.deadline(),
            _ => None,
        });
        streams.chain(self.detached.iter().filter_map(Exec::deadline)).min()
    }

    /// Descriptors to wait for, and whether it is for writing.
    pub fn interests<'a>(
        &'a self,
        out: &'a Encoder,
    ) -> impl Iterator<Item = (Owner, BorrowedFd<'a>, bool)> {
        let streams = self.streams.iter().flat_map(|(&id, stream)| {
            let room = stream.lane.room(out);
            let exec = stream.exec().into_iter().flat_map(move |exec| exec.interests(room));
            let dial = stream.dial().into_iter().flat_map(move |dial| dial.interests(room));
            exec.chain(dial).map(move |(fd, write)| (Owner::Stream(id), fd, write))
        });
        let detached = self.detached.iter().filter_map(|e| Some((Owner::Detached(e.pid()?), e)));
        let detached = detached
            .flat_map(|(owner, exec)| exec.interests(0).map(move |(fd, write)| (owner, fd, write)));
        streams.chain(detached)
    }

    /// A descriptor has something to read. Writable ones are tried by [`Session::work`].
    pub fn readable(&mut self, owner: Owner, fd: RawFd, out: &mut Encoder) {
        match owner {
            Owner::Stream(id) => match self.streams.get_mut(&id) {
                Some(Stream { lane, job: Job::Exec(exec) }) => exec.readable(fd, lane, out),
                Some(Stream { lane, job: Job::Dial(dial) }) => dial.readable(lane, out),
                _ => {}
            },
            Owner::Detached(pid) => {
                if let Some(exec) = self.detached.iter_mut().find(|e| e.pid() == Some(pid)) {
                    exec.readable(fd, &mut Lane::new(0), out);
                }
            }
        }
    }

    /// A process was waited for: the main process of a command, or any orphan of the guest.
    pub fn reaped(&mut self, pid: Pid, status: WaitStatus, guest: &mut Guest) {
        if let Some(exec) = self.execs_mut().find(|exec| exec.pid() == Some(pid)) {
            exec.ended(status);
        }
        self.sweep(guest);
    }

    /// Kills every command: the agent is about to end.
    pub fn kill_all(&mut self) {
        self.execs_mut().for_each(Exec::kill);
    }

    fn execs_mut(&mut self) -> impl Iterator<Item = &mut Exec> {
        let streams = self.streams.values_mut().filter_map(|stream| match &mut stream.job {
            Job::Exec(exec) => Some(&mut **exec),
            _ => None,
        });
        streams.chain(&mut self.detached)
    }
}

impl Stream {
    fn exec(&self) -> Option<&Exec> {
        match &self.job {
            Job::Exec(exec) => Some(exec),
            _ => None,
        }
    }

    fn dial(&self) -> Option<&Dial> {
        match &self.job {
            Job::Dial(dial) => Some(dial),
            _ => None,
        }
    }

    fn data(&mut self, channel: Channel, bytes: &[u8], out: &mut Encoder) -> Progress {
        if self.lane.arrived(bytes.len()).is_err() {
            return refused("more data than was granted");
        }
        match (&mut self.job, channel) {
            (Job::Exec(exec), Channel::Stdin) => {
                exec.data(bytes, &mut self.lane, out);
                Progress::Waiting
            }
            (Job::Write(write), Channel::File) => write.data(bytes, &mut self.lane, out),
            (Job::Dial(dial), Channel::Tcp) => dial.data(bytes, &mut self.lane, out),
            _ => refused("data that nobody waits for"),
        }
    }

    fn eof(&mut self) -> Progress {
        match &mut self.job {
            Job::Exec(exec) => {
                exec.eof();
                Progress::Waiting
            }
            Job::Write(write) => write.finish(),
            Job::Dial(dial) => {
                dial.eof();
                Progress::Waiting
            }
            _ => refused("an end that nobody waits for"),
        }
    }

    fn reset(&mut self, out: &mut Encoder) -> Progress {
        match &mut self.job {
            Job::Exec(exec) => {
                exec.cancel();
                exec.work(&mut self.lane, out)
            }
            _ => Progress::Done(Err(refuse(ErrorCode::Cancelled, "the request was cancelled"))),
        }
    }

    fn work(&mut self, out: &mut Encoder) -> Progress {
        let lane = &mut self.lane;
        match &mut self.job {
            Job::Exec(exec) => exec.work(lane, out),
            Job::Read(read) => read.step(lane, out),
            Job::List(list) => list.step(lane, out),
            Job::Remove(remove) => remove.step(),
            Job::Dial(dial) => dial.work(lane, out),
            Job::Write(_) => Progress::Waiting,
        }
    }
}

fn refused(why: &str) -> Progress {
    Progress::Done(Err(refuse(ErrorCode::InvalidArgument, why)))
}

fn reply(id: u32, mut outcome: Outcome, out: &mut Encoder) {
    if let Err(failure) = &mut outcome {
        let end = failure.message.floor_char_boundary(MAX_MESSAGE);
        failure.message.truncate(end);
    }
    if out.message(Kind::Reply, id, &outcome).is_err() {
        let failure = refuse(ErrorCode::Io, "the answer is longer than a frame");
        // A constant that fits.
        let _ = out.message(Kind::Reply, id, &Outcome::Err(failure));
    }
}
