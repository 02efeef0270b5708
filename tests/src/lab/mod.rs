//! A laboratory: a host with a fake internet around it, and nothing beyond.
//!
//! ```text
//!   the test's thread ── namespace "host" ────── veth ────── namespace "internet" ── one thread
//!    ├─ pandastack serve, its gateway             │           ├─ resolver 192.0.2.53, and others
//!    └─ the test's own client                  sniffer        └─ servers at every address
//! ```
//!
//! Everything that the test's thread starts is in the namespace "host": its only way out leads
//! to the fake internet, which takes every address in the world for its own. Nothing can leave the
//! machine that the test runs on, and whatever leaves the host is seen on the cable, whoever it is
//! for. What was seen is asked with [`Lab::seen`], after which nothing is on its way any more.

mod journal;
mod link;
mod namespace;
mod resolver;
mod servers;
mod sniffer;
mod tls;
mod web;
mod zone;

use std::marker::PhantomData;
use std::net::UdpSocket;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::sync::{oneshot, watch};

pub use journal::{Connection, Datagram, Query, Seen};
pub use link::{HOST_MAC, HOST_PUBLIC, HOST_V4, HOST_V6, NEIGHBOUR_PUBLIC, ROUTER_MAC, ROUTER_V4};
pub use namespace::Namespace;
pub use sniffer::{Kind, Packet};
pub use web::Web;
pub use zone::{A, AAAA, CNAME, HTTPS, Manner, Record, SVCB, TXT, Zone, wire_name};

use crate::surroundings::skip;
use crate::{Options, Server, wait_until};
use servers::Servers;
use sniffer::{SENTINEL_PORT, Sniffer};

/// The resolver that servers in the lab are told of.
pub const RESOLVER: &str = "192.0.2.53:53";

/// A Python program for a guest: holds so many connections (its first argument) to an address (its
/// second) open, and says "there" when it has them.
pub const CROWD: &str = include_str!("crowd.py");

/// A laboratory, made for and used by one thread. Dropping it brings the thread back.
pub struct Lab {
    internet: Namespace,
    servers: Servers,
    sentinel: (UdpSocket, watch::Receiver<u64>),
    tls: Option<tls::Tls>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<Result<()>>>,
    /// The last to go.
    _home: Home,
    /// A thread's namespace is its own, so a lab stays where it is.
    _here: PhantomData<*const ()>,
}

impl Lab {
    /// Moves the calling thread into a new laboratory. Where the host has none, the running test
    /// is noted as skipped.
    pub fn start() -> Result<Option<Self>> {
        if !rustix::process::geteuid().is_root() {
            skip("a network of its own takes root")?;
            return Ok(None);
        }
        let (host, internet) = match (Namespace::new(), Namespace::new()) {
            (Ok(host), Ok(internet)) => (host, internet),
            (Err(reason), _) | (_, Err(reason)) => {
                skip(&format!("{reason:#}"))?;
                return Ok(None);
            }
        };
        let home = Home(Namespace::current()?);
        host.enter()?;
        Self::between(home, internet).map(Some)
    }

    fn between(home: Home, internet: Namespace) -> Result<Self> {
        let servers = Servers::default();
        let (seen, sentinel) = watch::channel(0);
        let (stop, stopped) = oneshot::channel();
        let (tell, told) = mpsc::channel();
        let (laid, cable) = mpsc::channel();
        let work = Internet { servers: servers.clone(), seen, stopped };
        let inside = internet.try_clone()?;
        let thread = std::thread::Builder::new().name("internet".into()).spawn(move || {
            inside.enter()?;
            work.run(&tell, &cable)
        })?;
        let thread_id = told.recv().context("the internet did not begin")?;
        link::host(thread_id)?;
        laid.send(()).context("the internet went away")?;
        if told.recv().is_err() {
            match thread.join() {
                Ok(result) => result?,
                Err(panic) => std::panic::resume_unwind(panic),
            }
            bail!("the internet ended");
        }
        let socket = UdpSocket::bind((HOST_V4, 0))?;
        let (stop, thread, sentinel) = (Some(stop), Some(thread), (socket, sentinel));
        let lab = Self {
            internet,
            servers,
            sentinel,
            tls: None,
            stop,
            thread,
            _home: home,
            _here: PhantomData,
        };
        lab.settle()?;
        Ok(lab)
    }

    /// What the resolver knows. At first: nothing.
    pub fn zone(&self) -> &Zone {
        &self.servers.zone
    }

    /// What the servers of HTTP have.
    pub fn web(&self) -> &Web {
        &self.servers.web
    }

    /// The internet's namespace.
    pub fn internet(&self) -> &Namespace {
        &self.internet
    }

    /// Lets ports 443 and 8443 do TLS with a certificate for these names; the certificate, which
    /// is its own authority.
    pub fn begin_tls(&mut self, names: &[&str]) -> Result<Vec<u8>> {
        let tls = tls::Tls::start(&self.internet, names)?;
        let certificate = tls.certificate().to_vec();
        self.tls = Some(tls);
        Ok(certificate)
    }

    /// A server on the host, which asks the lab's resolver. It takes further arguments.
    pub fn serve(&self, mut options: Options) -> Result<Server> {
        options.args.extend(["--resolver", RESOLVER].map(str::to_owned));
        Server::start(options)
    }

    /// Everything that the internet saw up to now.
    pub fn seen(&self) -> Result<Seen> {
        self.settle()?;
        Ok(self.servers.journal.seen())
    }

    /// Begins a new count.
    pub fn forget(&self) -> Result<()> {
        self.settle()?;
        self.servers.journal.forget();
        Ok(())
    }

    /// Waits until every packet that left the host has been looked at, by a packet after them.
    fn settle(&self) -> Result<()> {
        let (socket, seen) = &self.sentinel;
        let number = *seen.borrow() + 1;
        let there = || *seen.borrow() >= number;
        for _ in 0..100 {
            socket.send_to(&number.to_be_bytes(), (ROUTER_V4, SENTINEL_PORT))?;
            if wait_until(Duration::from_millis(100), there) {
                return Ok(());
            }
        }
        bail!("the sniffer is blind")
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.tls = None;
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Where the thread was before, and will be again.
struct Home(Namespace);

impl Drop for Home {
    fn drop(&mut self) {
        let _ = self.0.enter();
    }
}

/// What the thread of the internet does.
struct Internet {
    servers: Servers,
    seen: watch::Sender<u64>,
    stopped: oneshot::Receiver<()>,
}

impl Internet {
    fn run(self, tell: &mpsc::Sender<i32>, cable: &mpsc::Receiver<()>) -> Result<()> {
        let own = rustix::thread::gettid().as_raw_nonzero().get();
        tell.send(own)?;
        cable.recv().context("no cable was laid")?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            // Before the cable is of use to anybody.
            let sniffer = Sniffer::new()?;
            link::internet()?;
            self.servers.start()?;
            let journal = self.servers.journal.clone();
            let sniff = move || sniffer.run(&journal, &self.seen);
            std::thread::Builder::new().name("sniffer".into()).spawn(sniff)?;
            tell.send(own)?;
            // Ends when the lab lets go of it.
            let _ = self.stopped.await;
            Ok(())
        })
    }
}
