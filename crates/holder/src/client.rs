//! The server's side: what it has held, and another holder whenever one dies.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SendFlags, Shutdown, SocketFlags, SocketType};

use crate::place;
use crate::wire::{self, Held, Message, Until, VERSION};

/// How long a holder may take to say what it has.
const PATIENCE: Duration = Duration::from_secs(5);
/// Pause before another holder is started after one that could not be.
const PAUSE: Duration = Duration::from_secs(1);

/// Starts a process for a directory that calls [`serve`](crate::serve) with a server's socket and a
/// listener.
pub type Launch = Box<dyn Fn(&Path, OwnedFd, OwnedFd) -> io::Result<Child> + Send + Sync>;

/// For a holder that holds nothing to end.
const LAST_WAIT: Duration = Duration::from_millis(500);

/// The holder of a server. Dropping the last clone lets it know that there is no server any more.
#[derive(Clone)]
pub struct Holder(Arc<Shared>);

struct Shared {
    dir: PathBuf,
    launch: Launch,
    state: Mutex<State>,
}

struct State {
    link: OwnedFd,
    /// Whoever was started by this server: to be collected when it has ended.
    child: Option<Child>,
    machines: HashMap<String, Kept>,
}

struct Kept {
    note: String,
    until: Until,
    descriptors: Vec<OwnedFd>,
}

impl Drop for Shared {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        // Also ends the watcher's wait, which has a copy of the link.
        let _ = rustix::net::shutdown(&state.link, Shutdown::Both);
        let holds_nothing = state.machines.is_empty();
        if holds_nothing {
            let _ = place::remove(&self.dir);
        }
        if let Some(child) = &mut state.child {
            // One that holds nothing ends with its server, which collects it.
            let until = Instant::now() + LAST_WAIT;
            while holds_nothing && matches!(child.try_wait(), Ok(None)) && Instant::now() < until {
                std::thread::sleep(Duration::from_millis(2));
            }
        }
    }
}

impl Holder {
    /// Finds the holder of `dir`, which this process must have locked, or starts one. Also says
    /// what the last server had held; it stays held until it is released.
    pub fn open(dir: &Path, launch: Launch) -> io::Result<(Self, Vec<Held>)> {
        let (link, child, found) = match find(dir)? {
            Some((link, found)) => (link, None, found),
            None => {
                let (link, child) = start(dir, &launch)?;
                (link, Some(child), Vec::new())
            }
        };
        let mut machines = HashMap::new();
        let mut held = Vec::new();
        for (machine, until) in found {
            let descriptors = copies(&machine.descriptors)?;
            let kept = Kept { note: machine.note.clone(), until, descriptors };
            machines.insert(machine.name.clone(), kept);
            held.push(machine);
        }
        let watched = link.try_clone()?;
        let state = Mutex::new(State { link, child, machines });
        let shared = Arc::new(Shared { dir: dir.to_owned(), launch, state });
        let weak = Arc::downgrade(&shared);
        let watcher = std::thread::Builder::new().name("holder-watch".into());
        watcher.spawn(move || watch(&weak, watched))?;
        Ok((Self(shared), held))
    }

    /// Has a machine held, whose pidfd is the first of its descriptors.
    pub fn hold(
        &self,
        name: &str,
        note: String,
        descriptors: Vec<OwnedFd>,
        until: Until,
    ) -> io::Result<Hold> {
        let mut state = self.0.lock();
        let kept = Kept { note, until, descriptors };
        // One that has died is given this with all the others.
        tell(&state.link, name, &kept).or_else(gone)?;
        state.machines.insert(name.to_owned(), kept);
        Ok(Hold { holder: Arc::downgrade(&self.0), name: name.to_owned() })
    }

    /// A machine that was found held.
    pub fn found(&self, name: &str) -> Hold {
        Hold { holder: Arc::downgrade(&self.0), name: name.to_owned() }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A machine that is held. Dropping it releases the machine, unless the [`Holder`] is gone: then
/// there is no server any more, and what is held stays.
pub struct Hold {
    holder: Weak<Shared>,
    name: String,
}

impl Hold {
    /// Changes how long it may live without a server.
    pub fn set_until(&self, until: Until) -> io::Result<()> {
        let Some(holder) = self.holder.upgrade() else { return Ok(()) };
        let mut state = holder.lock();
        if let Some(kept) = state.machines.get_mut(&self.name) {
            kept.until = until;
        }
        let message = Message::Until { name: self.name.clone(), until };
        wire::send(&state.link, &message, &[], SendFlags::DONTWAIT).or_else(gone)
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let Some(holder) = self.holder.upgrade() else { return };
        let mut state = holder.lock();
        state.machines.remove(&self.name);
        let message = Message::Release { name: self.name.clone() };
        let told = wire::send(&state.link, &message, &[], SendFlags::DONTWAIT).or_else(gone);
        if let Err(error) = told {
            tracing::warn!(machine = self.name, %error, "a holder was not told of a machine's end");
        }
    }
}

/// What the last server of `dir` had held, for somebody who looks and leaves it there.
pub fn look(dir: &Path) -> io::Result<Vec<Held>> {
    let found = find(dir)?.map(|(_, found)| found).unwrap_or_default();
    Ok(found.into_iter().map(|(held, _)| held).collect())
}

/// A holder that is gone is replaced, and the next one told.
fn gone(error: io::Error) -> io::Result<()> {
    match error.kind() {
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => Ok(()),
        _ => Err(error),
    }
}

fn tell(link: &OwnedFd, name: &str, kept: &Kept) -> io::Result<()> {
    let Kept { note, until, descriptors } = kept;
    let message = Message::Hold { name: name.to_owned(), note: note.clone(), until: *until };
    let attached: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
    wire::send(link, &message, &attached, SendFlags::DONTWAIT)
}

fn copies(descriptors: &[OwnedFd]) -> io::Result<Vec<OwnedFd>> {
    descriptors.iter().map(OwnedFd::try_clone).collect()
}

/// What a holder has, and until when.
type Found = Vec<(Held, Until)>;

/// Connects to a holder that an earlier server started, and asks it what it has.
fn find(dir: &Path) -> io::Result<Option<(OwnedFd, Found)>> {
    let Some(link) = place::connect(dir)? else { return Ok(None) };
    set_socket_timeout(&link, Timeout::Recv, Some(PATIENCE))?;
    wire::send(&link, &Message::Take { version: VERSION }, &[], SendFlags::DONTWAIT)?;
    let mut found = Vec::new();
    loop {
        match wire::receive(&link) {
            Ok(Some((Message::Hold { name, note, until }, descriptors))) => {
                found.push((Held { name, note, descriptors }, until));
            }
            Ok(Some((Message::Everything { version }, _))) if version == VERSION => {
                set_socket_timeout(&link, Timeout::Recv, None)?;
                return Ok(Some((link, found)));
            }
            // It ended while it was asked, or is another version, and has ended what it held.
            Ok(_) => return Ok(None),
            Err(error) => return Err(error),
        }
    }
}

fn start(dir: &Path, launch: &Launch) -> io::Result<(OwnedFd, Child)> {
    let listener = place::listen(dir)?;
    let (family, kind) = (AddressFamily::UNIX, SocketType::SEQPACKET);
    let (ours, theirs) = rustix::net::socketpair(family, kind, SocketFlags::CLOEXEC, None)?;
    let child = launch(dir, theirs, listener)?;
    Ok((ours, child))
}

/// Starts another holder whenever one dies, until there is no server any more. While the holder
/// lives, this keeps nothing of the server's: what it drops last is dropped.
fn watch(shared: &Weak<Shared>, mut link: OwnedFd) {
    loop {
        // A hang-up is told without being asked for; nothing else comes on this socket.
        let _ = rustix::event::poll(&mut [PollFd::new(&link, PollFlags::RDHUP)], None);
        let Some(shared) = shared.upgrade() else { return };
        match shared.start_again() {
            Ok(next) => link = next,
            Err(error) => {
                tracing::error!(%error, "nothing holds the machines if this server is killed");
                drop(shared);
                std::thread::sleep(PAUSE);
            }
        }
    }
}

impl Shared {
    /// Another holder with all machines, and the link to it.
    fn start_again(&self) -> io::Result<OwnedFd> {
        let mut state = self.lock();
        tracing::warn!("the holder of the machines ended; another one is started");
        if let Some(child) = &mut state.child {
            let _ = child.kill();
            let _ = child.wait();
        }
        let (link, child) = start(&self.dir, &self.launch)?;
        state.link = link;
        state.child = Some(child);
        let State { link, machines, .. } = &*state;
        for (name, kept) in machines {
            // The queue is short; a holder that was just started is about to read it.
            while let Err(error) = tell(link, name, kept) {
                if error.kind() != io::ErrorKind::WouldBlock {
                    return Err(error);
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        link.try_clone()
    }
}
