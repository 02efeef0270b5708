//! A holder as a process would be it, in a thread, with machines that are `sleep`.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::os::fd::OwnedFd;
use std::process::{Child, Command};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use pandastack_holder::{Held, Holder, Launch, Until, look, serve};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// Serves in a thread; the process that is returned is nothing but a stand-in to be waited for.
fn launch() -> Launch {
    Box::new(|_, server, listener| {
        std::thread::spawn(move || serve(server, listener));
        Command::new("true").spawn()
    })
}

struct Sleeper(Child);

impl Sleeper {
    fn new() -> Self {
        Self(Command::new("sleep").arg("600").spawn().unwrap())
    }

    fn descriptors(&self) -> Vec<OwnedFd> {
        let pid = Pid::from_raw(self.0.id() as i32).unwrap();
        vec![pidfd_open(pid, PidfdFlags::empty()).unwrap()]
    }

    fn lives(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }

    fn ends_within(&mut self, time: Duration) -> bool {
        let begin = Instant::now();
        while self.lives() && begin.elapsed() < time {
            std::thread::sleep(Duration::from_millis(5));
        }
        !self.lives()
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

const LONG: Until = Until::After(Duration::from_secs(600));

fn names(held: &[Held]) -> Vec<&str> {
    held.iter().map(|held| &*held.name).collect()
}

#[test]
fn the_next_server_finds_what_the_last_one_had_held() {
    let dir = tempfile::tempdir().unwrap();
    let (mut kept, mut released) = (Sleeper::new(), Sleeper::new());
    let (holder, found) = Holder::open(dir.path(), launch()).unwrap();
    assert!(found.is_empty());
    let hold = holder.hold("kept", "a note".into(), kept.descriptors(), LONG).unwrap();
    drop(holder.hold("released", "b".into(), released.descriptors(), LONG).unwrap());
    drop(holder); // as a kill does: nobody says a word, and the sockets close
    drop(hold);

    assert_eq!(names(&look(dir.path()).unwrap()), ["kept"]);
    let (holder, found) = Holder::open(dir.path(), launch()).unwrap();
    assert_eq!((names(&found), &*found[0].note), (vec!["kept"], "a note"));
    assert_eq!(found[0].descriptors.len(), 1);
    drop(holder.found("kept"));
    drop(holder);
    assert!(wait_for(|| look(dir.path()).is_ok_and(|held| held.is_empty())));
    assert!(kept.lives() && released.lives(), "to release is not to end");
}

#[test]
fn machines_end_in_time_but_only_without_a_server() {
    let dir = tempfile::tempdir().unwrap();
    let (mut soon, mut later, mut over) = (Sleeper::new(), Sleeper::new(), Sleeper::new());
    let (holder, _) = Holder::open(dir.path(), launch()).unwrap();
    let grace = Until::After(Duration::from_millis(300));
    let hold = |name, sleeper: &Sleeper, until| {
        holder.hold(name, String::new(), sleeper.descriptors(), until).unwrap()
    };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64;
    let holds = [
        hold("soon", &soon, grace),
        hold("later", &later, grace),
        hold("over", &over, Until::Time(now - 1000)),
    ];
    holds[1].set_until(LONG).unwrap();
    assert!(!over.ends_within(Duration::from_millis(400)), "its server is there");
    drop(holder);
    drop(holds);
    assert!(over.ends_within(Duration::from_secs(2)));
    assert!(soon.ends_within(Duration::from_secs(2)));
    assert!(later.lives());
    assert_eq!(names(&look(dir.path()).unwrap()), ["later"]);
}

fn wait_for(mut happened: impl FnMut() -> bool) -> bool {
    let begin = Instant::now();
    while !happened() {
        if begin.elapsed() > Duration::from_secs(5) {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    true
}
