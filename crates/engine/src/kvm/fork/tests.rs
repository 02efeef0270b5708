//! Forks of a monitor that only speaks the wire: which descriptors it gets, and what becomes of
//! the files.

use std::fs;
use std::os::fd::OwnedFd;
use std::process::{Child as Sleeper, Command};
use std::sync::mpsc;
use std::thread;

use pandastack_jail::{Cgroups, Filter};
use pandastack_types::Size;
use pandastack_vmm::control::{Attach, Failure, Received, receive, send};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tempfile::TempDir;

use super::super::manifest::Manifest;
use super::super::runtime::Runtime;
use super::*;
use crate::disk::{DISK, Place};
use crate::files::{MEMORY, STATE};
use crate::generations::Generations;
use crate::{After, GuestImage};

const BYTES: u64 = 1 << 30;

/// A bake that is sound, and nothing more.
fn family(dir: &Path) -> Family {
    for name in [STATE, DISK] {
        fs::write(dir.join(name), name).unwrap();
    }
    let size = Size { cpu: 1, memory_mb: 128, disk_mb: (BYTES >> 20) as u32 };
    File::create(dir.join(MEMORY)).unwrap().set_len(size.memory_bytes()).unwrap();
    Manifest::new("monitor", "processor", size).complete(dir).unwrap();
    let path = |name| dir.join(name);
    let image = GuestImage {
        kernel: path(STATE),
        initrd: path(STATE),
        root: path(DISK),
        preload: Vec::new(),
        warm_up: Vec::new(),
        digest: String::new(),
    };
    let bake = Bake { dir: dir.to_owned(), image, size, key: "key".into() };
    let host = Host {
        runtime: Runtime { root: dir.to_owned(), digest: "monitor".into() },
        filter: Arc::new(Filter::machine()),
        cgroups: Cgroups::None,
        kvm: File::open("/dev/null").unwrap(),
        generations: Generations::new(),
    };
    let files = Files::open(&bake).unwrap();
    Family { host: Arc::new(host), bake, files }
}

/// A machine, a monitor that answers as `script` says, and room for its copies.
struct Bench {
    family: Family,
    body: Body,
    client: Client,
    own: TempDir,
    _bake: TempDir,
}

impl Bench {
    fn new(script: impl FnOnce(&OwnedFd) + Send + 'static) -> Self {
        let (bake, own) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let family = family(bake.path());
        let (disk, _top) =
            Disk::create(&Place::root(bake.path()), &Place::root(own.path()), BYTES).unwrap();
        let (ours, theirs) = channels::control().unwrap();
        thread::spawn(move || script(&theirs));
        let client = Client::new(ours).unwrap();
        // One that has its ids, like this process, needs no attention before it is copied.
        let pid = Pid::from_raw(std::process::id() as i32).unwrap();
        let child = Child::from_pidfd(pidfd_open(pid, PidfdFlags::empty()).unwrap()).unwrap();
        let body = Body::new(own.path(), disk, Arc::new(child));
        Self { family, body, client, own, _bake: bake }
    }

    async fn fork(&mut self) -> (TempDir, Result<(Copy, Duration), EngineError>) {
        let dir = tempfile::tempdir().unwrap();
        let cradle = Cradle::make(&self.family, dir.path(), &self.body).unwrap();
        let forked = self.body.fork(&self.client, cradle, After::GoesOn, &mut Laps::new()).await;
        (dir, forked)
    }
}

/// A process that stands for a copy.
fn sleeper() -> (Sleeper, OwnedFd) {
    let sleeper = Command::new("sleep").arg("1000").spawn().unwrap();
    let pid = Pid::from_raw(sleeper.id() as i32).unwrap();
    (sleeper, pidfd_open(pid, PidfdFlags::empty()).unwrap())
}

fn roles(request: &Received<Request>) -> Vec<Role> {
    request.descriptors.iter().map(|(role, _)| *role).collect()
}

/// Makes a copy, as far as the supervisor can tell. Returns what the request came with.
fn give_birth(socket: &OwnedFd) -> (Vec<Role>, Sleeper) {
    let mut got = receive::<Request>(socket).unwrap();
    let roles = roles(&got);
    let freezes = roles.contains(&Role::Frozen);
    let disks = vec![DiskFork { slot: None, freezes }];
    assert_eq!(got.body, Request::Fork(Fork { readable: false, disks }));
    let control = got.take(Role::Control).unwrap();
    let (sleeper, pidfd) = sleeper();
    let stages = vec![("halt".into(), 2), ("clone".into(), 1)];
    send(socket, Reply::Forked(stages), &[(Role::Process, pidfd.as_fd())]).unwrap();
    send(&control, Reply::Born(Vec::new()), &[]).unwrap();
    (roles, sleeper)
}

fn names(dir: &TempDir) -> Vec<String> {
    let entries = fs::read_dir(dir.path()).unwrap().flatten();
    let mut names: Vec<_> = entries.map(|entry| entry.file_name().into_string().unwrap()).collect();
    names.sort_unstable();
    names
}

const OWN: [Role; 5] = [Role::Control, Role::Complaints, Role::Agent, Role::Net, Role::Top];

#[tokio::test]
async fn the_disk_is_frozen_once_for_every_time_that_the_machine_ran() {
    let (tell, told) = mpsc::channel();
    let mut bench = Bench::new(move |socket| {
        for _ in 0..4 {
            let (roles, mut sleeper) = give_birth(socket);
            let _ = tell.send(roles);
            sleeper.wait().unwrap(); // its handle kills it when the test drops the copy
        }
    });
    let freezing = OWN.iter().copied().chain([Role::Frozen, Role::NewTop]).collect::<Vec<_>>();

    // Never ran: there is nothing in its own layer.
    let (dir, forked) = bench.fork().await;
    let (copy, pause) = forked.unwrap();
    assert_eq!(pause, Duration::from_micros(3), "what the monitor says, if it can be");
    assert_eq!(told.recv().unwrap(), OWN);
    assert_eq!(names(&dir), ["disk", "disk.qcow2", "pid"]);
    drop(copy);

    bench.body.runs();
    let (dir, forked) = bench.fork().await;
    assert_eq!(told.recv().unwrap(), freezing);
    assert_eq!(names(&dir), ["disk", "disk.qcow2", "layer-0", "pid"]);
    assert_eq!(names(&bench.own), ["disk", "disk.qcow2", "layer-0"]);
    drop(forked);

    // It has run on since.
    let (_dir, forked) = bench.fork().await;
    assert_eq!(told.recv().unwrap(), freezing);
    bench.body.stands();
    drop(forked);

    // Frozen a last time, and never again while it stands.
    let (_dir, forked) = bench.fork().await;
    assert_eq!(told.recv().unwrap(), freezing);
    assert_eq!(names(&bench.own), ["disk", "disk.qcow2", "layer-0", "layer-1", "layer-2"]);
    assert!(!bench.body.has_run);
    drop(forked);
}

#[tokio::test]
async fn a_fork_that_fails_costs_the_machine_nothing_unless_its_disk_was_at_stake() {
    let mut bench = Bench::new(|socket| {
        for _ in 0..2 {
            let got = receive::<Request>(socket).unwrap();
            let why = Failure::Kernel { what: "copy the process".into(), why: "no memory".into() };
            send(socket, Reply::Failed(why), &[]).unwrap();
            drop(got);
        }
        let _ = receive::<Request>(socket);
    });
    for broken in [false, true] {
        if broken {
            bench.body.runs();
        }
        let (_dir, forked) = bench.fork().await;
        let error = forked.err().unwrap();
        assert!(error.to_string().contains("no memory"), "{error}");
        assert_eq!(bench.body.broken.is_some(), broken);
    }
    let (_dir, forked) = bench.fork().await;
    assert!(matches!(forked.err(), Some(EngineError::NoFork(_))));
}

#[tokio::test]
async fn a_copy_that_dies_at_birth_is_an_error() {
    let mut bench = Bench::new(|socket| {
        let mut got = receive::<Request>(socket).unwrap();
        let complaints = got.take(Role::Complaints).unwrap();
        rustix::io::write(&complaints, b"a copy could not settle").unwrap();
        let (mut sleeper, pidfd) = sleeper();
        send(socket, Reply::Forked(Vec::new()), &[(Role::Process, pidfd.as_fd())]).unwrap();
        drop((got, complaints));
        sleeper.wait().unwrap();
    });
    let (_dir, forked) = bench.fork().await;
    let error = forked.err().unwrap();
    assert!(error.to_string().contains("could not settle"), "{error}");
}

#[tokio::test]
async fn a_fork_without_a_process_is_an_error() {
    let mut bench = Bench::new(|socket| {
        let got = receive::<Request>(socket).unwrap();
        send(socket, Reply::Forked(Vec::new()), &[]).unwrap();
        drop(got);
    });
    let (_dir, forked) = bench.fork().await;
    assert!(matches!(forked.err(), Some(EngineError::Monitor(_))));
}

/// The roles of what a machine with a volume is forked with, after those of every fork.
#[tokio::test]
async fn a_fork_has_a_copy_of_every_volume_and_holds_none() {
    let (tell, told) = mpsc::channel();
    let mut bench = Bench::new(move |socket| {
        let got = receive::<Request>(socket).unwrap();
        assert_eq!(got.body, Request::Attach(Attach { slot: 3, lasting: true }));
        assert_eq!(roles(&got), [Role::Disk, Role::Top]);
        send(socket, Reply::Done, &[]).unwrap();
        for _ in 0..2 {
            let mut got = receive::<Request>(socket).unwrap();
            let _ = tell.send((got.body.clone(), roles(&got)));
            let control = got.take(Role::Control).unwrap();
            let (mut sleeper, pidfd) = sleeper();
            send(socket, Reply::Forked(Vec::new()), &[(Role::Process, pidfd.as_fd())]).unwrap();
            send(&control, Reply::Born(Vec::new()), &[]).unwrap();
            sleeper.wait().unwrap();
        }
    });
    let volume = tempfile::tempdir().unwrap();
    crate::make_volume(volume.path(), 16).await.unwrap();
    let source = || VolumeSource::Write { dir: volume.path().to_owned(), rewind: false };
    for slot in [VOLUME_SLOTS, usize::MAX] {
        assert!(bench.body.attach(&bench.client, slot, source()).await.is_err());
    }
    assert_eq!(bench.body.attach(&bench.client, 3, source()).await.unwrap(), 16 << 20);
    assert!(bench.body.attach(&bench.client, 3, source()).await.is_err(), "it is full");

    let fork = |freezes| {
        let disk = |slot| DiskFork { slot, freezes };
        Request::Fork(Fork { readable: false, disks: vec![disk(None), disk(Some(3))] })
    };
    let tops = [&OWN[..], &[Role::Top]].concat();
    let (dir, forked) = bench.fork().await;
    assert_eq!(told.recv().unwrap(), (fork(false), tops.clone()));
    assert_eq!(names(&dir), ["disk", "disk.qcow2", "pid", "volume-3-disk", "volume-3-disk.qcow2"]);
    drop(forked);

    bench.body.runs();
    assert!(bench.body.attach(&bench.client, 4, source()).await.is_err(), "it runs");
    let (dir, forked) = bench.fork().await;
    let layers = [Role::Frozen, Role::NewTop].repeat(2);
    assert_eq!(told.recv().unwrap(), (fork(true), [&tops[..], &layers].concat()));
    assert!(names(&dir).contains(&"volume-3-layer-0".to_owned()));
    assert_eq!(names(&volume), ["disk", "disk.qcow2", "layer-0"]);
    let (copy, _) = forked.unwrap();
    let lasting = copy.body.disks.iter().map(|disk| disk.lasts).collect::<Vec<_>>();
    assert_eq!(lasting, [false, false]);
}
