//! Which names led to which addresses: what DNS has told one sandbox.
//!
//! The invariant: **a name is at an address only while a resolver has said so to this sandbox.**
//! A pin is looked at when a flow begins. A flow that is open keeps its names, and outlives
//! its pins, since no program asks DNS again in the middle of a connection; a policy that is
//! tightened closes it all the same.
//!
//! Memory and work are bounded, because a guest can ask for names as fast as it likes. When there
//! is no room, the pin goes that would expire first; so a guest pushes out only pins of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use crate::host::Host;

/// The pins of one sandbox. Times are from any start that does not change.
#[derive(Debug, Default)]
pub struct Pins {
    /// Names of an address, with the time when they expire.
    names: BTreeMap<IpAddr, BTreeMap<Host, Duration>>,
    /// The same by time.
    queue: BTreeSet<(Duration, IpAddr, Host)>,
}

impl Pins {
    /// Most pins.
    pub const MAX: usize = 4096;
    /// Most names of one address, which bounds what it takes to decide about a flow.
    pub const MAX_NAMES: usize = 32;
    /// Shortest life. Many servers say zero, and a slow guest must still get to connect.
    pub const MIN_TTL: Duration = Duration::from_secs(5);
    /// Longest life.
    pub const MAX_TTL: Duration = Duration::from_secs(3600);

    /// How long an answer with this time to live is believed. The guest is told the same.
    pub fn ttl(ttl: Duration) -> Duration {
        ttl.clamp(Self::MIN_TTL, Self::MAX_TTL)
    }

    /// Remembers that the sandbox was told that a name is at an address. An older pin of the two
    /// lives until the later of both times.
    pub fn add(&mut self, name: &Host, address: IpAddr, ttl: Duration, now: Duration) {
        let address = address.to_canonical();
        self.expire(now);
        let mut until = now.saturating_add(Self::ttl(ttl));
        if let Some(known) = self.remove(name, address) {
            until = until.max(known);
        }
        // Room first: a short pin that is new would otherwise be the first to go.
        let of_address = self.names.get(&address);
        if of_address.is_some_and(|names| names.len() >= Self::MAX_NAMES) {
            let first = of_address.into_iter().flatten().min_by_key(|(_, until)| **until);
            if let Some(name) = first.map(|(name, _)| name.clone()) {
                self.remove(&name, address);
            }
        }
        if self.len() >= Self::MAX {
            self.pop();
        }
        self.names.entry(address).or_default().insert(name.clone(), until);
        self.queue.insert((until, address, name.clone()));
    }

    /// The names that lead to an address now.
    pub fn names_of(&self, address: IpAddr, now: Duration) -> Vec<Host> {
        let names = self.names.get(&address.to_canonical()).into_iter().flatten();
        names.filter(|(_, until)| **until > now).map(|(name, _)| name.clone()).collect()
    }

    /// Forgets the names that are not to be kept. After a change of policy those are the ones that
    /// it refuses: a denied name closes every flow to an address that it leads to.
    pub fn retain(&mut self, keep: impl Fn(&Host) -> bool) {
        self.queue.retain(|(_, _, name)| keep(name));
        self.names.retain(|_, names| {
            names.retain(|name, _| keep(name));
            !names.is_empty()
        });
    }

    /// How many there are, with those that have expired since the last change.
    pub fn len(&self) -> usize {
        self.queue.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    fn expire(&mut self, now: Duration) {
        while self.queue.first().is_some_and(|(until, ..)| *until <= now) {
            self.pop();
        }
    }

    /// Removes the pin that expires first.
    fn pop(&mut self) {
        if let Some((_, address, name)) = self.queue.first().cloned() {
            self.remove(&name, address);
        }
    }

    fn remove(&mut self, name: &Host, address: IpAddr) -> Option<Duration> {
        let names = self.names.get_mut(&address)?;
        let until = names.remove(name)?;
        if names.is_empty() {
            self.names.remove(&address);
        }
        self.queue.remove(&(until, address, name.clone()));
        Some(until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::net::Ipv4Addr;

    const fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn host(number: usize) -> Host {
        format!("h{number}.test").parse().unwrap()
    }

    fn address(number: u32) -> IpAddr {
        Ipv4Addr::from_bits(number).into()
    }

    #[test]
    fn a_pin_lives_as_long_as_its_answer() {
        let mut pins = Pins::default();
        pins.add(&host(0), "::ffff:0.0.0.1".parse().unwrap(), seconds(60), seconds(100));
        assert_eq!(pins.names_of(address(1), seconds(159)), [host(0)]);
        assert!(pins.names_of(address(1), seconds(160)).is_empty());
        assert!(pins.names_of(address(2), seconds(100)).is_empty());
        // A second answer makes it longer, never shorter.
        pins.add(&host(0), address(1), seconds(10), seconds(101));
        assert_eq!((pins.names_of(address(1), seconds(159)), pins.len()), (vec![host(0)], 1));
        for (ttl, life) in [(0, 5), (5, 5), (3600, 3600), (u64::MAX, 3600)] {
            assert_eq!(Pins::ttl(seconds(ttl)), seconds(life));
        }
        pins.add(&host(1), address(1), Duration::MAX, Duration::MAX);
        assert_eq!(pins.len(), 1, "the others have expired");
    }

    #[test]
    fn the_pin_that_would_expire_first_makes_room() {
        let mut pins = Pins::default();
        for number in 0..Pins::MAX as u32 {
            pins.add(&host(0), address(number), seconds(100 + u64::from(number % 7)), seconds(0));
        }
        pins.add(&host(1), address(9), seconds(0), seconds(1));
        assert_eq!(pins.names_of(address(9), seconds(2)), [host(0), host(1)]);
        assert!(pins.names_of(address(0), seconds(2)).is_empty());
        assert_eq!(pins.len(), Pins::MAX);

        let mut pins = Pins::default();
        for number in 0..Pins::MAX_NAMES {
            pins.add(&host(number), address(1), seconds(100 - number as u64), seconds(0));
        }
        pins.add(&host(99), address(1), seconds(0), seconds(1));
        let names = pins.names_of(address(1), seconds(2));
        assert!(names.len() == Pins::MAX_NAMES && names.contains(&host(99)));
        assert!(!names.contains(&host(Pins::MAX_NAMES - 1)));
    }

    proptest! {
        /// Below the limits, a list of everything that was ever said has the same answers; the two
        /// orders agree.
        #[test]
        fn pins_are_what_was_said(
            said in proptest::collection::vec((0_usize..4, 0_u32..4, 0_u64..40, 0_u64..20), 0..40),
            forgotten in 0_usize..8,
        ) {
            let (mut pins, mut model, mut now) = (Pins::default(), Vec::new(), seconds(0));
            for (name, to, ttl, pause) in said {
                now += seconds(pause);
                pins.add(&host(name), address(to), seconds(ttl), now);
                model.push((name, to, now + seconds(ttl.max(5))));
            }
            pins.retain(|name| *name != host(forgotten));
            model.retain(|(name, ..)| *name != forgotten);
            for to in 0..4 {
                let mut names: Vec<_> = model.iter().filter(|(_, a, until)| *a == to && *until > now)
                    .map(|(name, ..)| host(*name)).collect();
                names.sort();
                names.dedup();
                prop_assert_eq!(pins.names_of(address(to), now), names);
            }
            prop_assert_eq!(pins.len(), pins.names.values().map(BTreeMap::len).sum::<usize>());
        }
    }
}
