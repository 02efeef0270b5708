//! The gateway's process: requests in, a thread per network.
//!
//! ```text
//!   control socket ─▶ main thread ─┬─ Attach ──▶ a thread with a Network
//!        ▲                         ├─ Policy ──▶ order + bell, waits until it is in force
//!        │                         └─ Detach ──▶ order + bell, waits for the thread's end
//!        └───────────────── Log ── networks
//! ```
//!
//! The process ends when the control socket does: no network outlives the server that owns it.

use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender, TryRecvError};
use std::time::Duration;

use pandastack_policy::{Cidr, Policy};
use pandastack_proto::network::{NETWORK_V4, NETWORK_V6, PREFIX_V4, PREFIX_V6};
use rustix::io::Errno;
use rustix::net::SendFlags;

use crate::control::{self, Ask, NetworkId, Reply, Request, Settings, WireError};
use crate::network::{Network, Order};
use crate::relay::poller::Bell;

/// Stack of a network's thread. Deep enough for a frame and a list of events, many times over.
const STACK: usize = 256 << 10;
/// How long a network may take to obey. It looks for orders between any two turns, which take
/// milliseconds.
const OBEYED: Duration = Duration::from_secs(2);

/// A network that is being served.
struct Served {
    orders: Sender<Order>,
    bell: Arc<Bell>,
    /// Its sender is the thread's, and is gone when the network is.
    over: Receiver<Infallible>,
}

impl Served {
    /// An order to a network that is over is nobody's.
    fn order(&self, order: Order) {
        let _ = self.orders.send(order);
        self.bell.ring();
    }

    fn is_over(&self) -> bool {
        self.over.try_recv() == Err(TryRecvError::Disconnected)
    }

    /// Ends the network. When this returns nothing is let through under its policy, so that the
    /// same frames can be served under another one.
    fn end(self) -> Result<(), String> {
        self.order(Order::End);
        match self.over.recv_timeout(OBEYED) {
            Err(RecvTimeoutError::Disconnected) => Ok(()),
            Err(RecvTimeoutError::Timeout) => Err("the network does not end".into()),
        }
    }
}

/// Serves networks until the control socket ends.
pub fn run(control: OwnedFd) -> Result<(), WireError> {
    let mut gateway = Gateway {
        control: Arc::new(control),
        settings: Arc::new(Settings::default()),
        networks: HashMap::new(),
    };
    loop {
        let (Ask { number, request }, attached) = match control::receive(&*gateway.control) {
            Ok(asked) => asked,
            Err(WireError::Closed) => return Ok(()),
            Err(error) => return Err(error),
        };
        let reply = match gateway.obey(request, attached) {
            Ok(()) => Reply::Done { number },
            Err(why) => Reply::Refused { number, why },
        };
        match control::send(&*gateway.control, &reply, None) {
            Ok(()) => {}
            Err(WireError::Closed) => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

/// The network of every sandbox. Beyond the gateway its addresses are somebody else's, whom nobody
/// inside can mean.
fn inside() -> [Cidr; 2] {
    let v4 = Cidr::new(NETWORK_V4.into(), PREFIX_V4);
    let v6 = Cidr::new(NETWORK_V6.into(), PREFIX_V6);
    [v4, v6].map(|network| network.expect("no bits beyond the prefix"))
}

struct Gateway {
    control: Arc<OwnedFd>,
    settings: Arc<Settings>,
    networks: HashMap<NetworkId, Served>,
}

impl Gateway {
    fn obey(&mut self, request: Request, attached: Option<OwnedFd>) -> Result<(), String> {
        self.networks.retain(|_, network| !network.is_over());
        match request {
            Request::Settings(mut settings) => {
                settings.site.own.extend(inside());
                self.settings = Arc::new(settings);
                for network in self.networks.values() {
                    network.order(Order::Settings(self.settings.clone()));
                }
                Ok(())
            }
            Request::Attach { network, policy } => {
                let frames = attached.ok_or("an Attach without a socket")?;
                self.attach(network, policy, frames)
            }
            Request::Policy { network, policy } => {
                let served = self.networks.get(&network).ok_or("there is no such network")?;
                let (done, in_force) = mpsc::sync_channel(1);
                // A network that is over lets nothing through, whatever its policy.
                served.order(Order::Policy(policy, done));
                match in_force.recv_timeout(OBEYED) {
                    Ok(()) | Err(RecvTimeoutError::Disconnected) => Ok(()),
                    Err(RecvTimeoutError::Timeout) => Err("the network does not answer".into()),
                }
            }
            Request::Detach { network } => {
                self.networks.remove(&network).map_or(Ok(()), Served::end)
            }
        }
    }

    fn attach(&mut self, id: NetworkId, policy: Policy, frames: OwnedFd) -> Result<(), String> {
        if self.networks.contains_key(&id) {
            return Err("there is such a network already".into());
        }
        let served = || -> io::Result<Served> {
            let bell = Arc::new(Bell::new()?);
            let (orders, queue) = mpsc::channel();
            let sink = sink(self.control.clone(), id);
            let settings = self.settings.clone();
            let network = Network::new(frames, policy, settings, (bell.clone(), queue), sink)?;
            let (alive, over) = mpsc::channel();
            let serve = move || {
                let _alive = alive;
                if let Err(error) = network.run() {
                    eprintln!("a network failed: {error}");
                }
            };
            let thread = std::thread::Builder::new();
            thread.name(format!("net-{id}")).stack_size(STACK).spawn(serve)?;
            Ok(Served { orders, bell, over })
        };
        let served = served().map_err(|error| format!("cannot serve the network: {error}"))?;
        self.networks.insert(id, served);
        Ok(())
    }
}

/// Sends lines of a network's log, as long as the server keeps up with them.
fn sink(control: Arc<OwnedFd>, network: NetworkId) -> crate::network::Sink {
    Box::new(move |entries| {
        let reply = Reply::Log { network, entries: entries.to_vec() };
        let Ok(bytes) = serde_json::to_vec(&reply) else { return true };
        let sent = rustix::net::send(&*control, &bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
        !matches!(sent, Err(Errno::AGAIN | Errno::INTR | Errno::NOBUFS))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_inside_is_what_guests_have() {
        assert_eq!(inside().map(|n| n.to_string()), ["198.18.0.0/24", "fd50:616e:6461::/64"]);
    }
}
