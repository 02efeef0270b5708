//! What went wrong at others and must not here, where no other file has it: secrets of copies (T45),
//! snapshots of elsewhere and damaged ones (T49, T50), what of the host and of other tenants is in a
//! guest's memory and disk (T51, T66), and keys (T60, T62). docs/threats.md has the whole list.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use memchr::memmem::Finder;
use pandastack_tests::{Client, Options, Server, engine, program};
use rustix::fs::SeekFrom;
use serde_json::{Value, json};

/// A snapshot's files, which a test may do anything to.
struct Kept {
    id: String,
    dir: PathBuf,
}

impl Kept {
    fn new(server: &Server, id: String) -> Self {
        let dir = server.data().join("snapshots").join(&id);
        Self { id, dir }
    }

    fn manifest(&self) -> Result<Value> {
        Ok(serde_json::from_slice(&fs::read(self.dir.join("snapshot.json"))?)?)
    }

    /// With a member of its manifest replaced, for as long as it is looked at.
    fn with<T>(&self, member: &str, value: Value, look: impl FnOnce() -> Result<T>) -> Result<T> {
        let (path, whole) = (self.dir.join("snapshot.json"), self.manifest()?);
        let mut changed = whole.clone();
        ensure!(changed[member] != value, "{member} is that already");
        changed[member] = value;
        fs::write(&path, changed.to_string())?;
        let looked = look();
        fs::write(&path, whole.to_string())?;
        looked
    }

    /// With a byte of a file replaced, for as long as it is looked at.
    fn flipped<T>(&self, name: &str, at: u64, look: impl FnOnce() -> Result<T>) -> Result<T> {
        let path = self.dir.join(name);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
        let file = File::options().read(true).write(true).open(&path)?;
        let mut byte = [0];
        file.read_exact_at(&mut byte, at)?;
        file.write_all_at(&[byte[0] ^ 0x40], at)?;
        let looked = look();
        file.write_all_at(&byte, at)?;
        looked
    }

    /// What the guest in it obeys.
    fn token(&self) -> Result<Vec<u8>> {
        Ok(serde_json::from_value(self.manifest()?["token"].clone())?)
    }

    /// Which of these are in its files, but for the manifest: in the guest's memory, devices or disk.
    fn holds(&self, needles: &[&[u8]]) -> Result<Vec<bool>> {
        let finders: Vec<_> = needles.iter().map(|needle| Finder::new(*needle)).collect();
        let mut found = vec![false; needles.len()];
        for entry in fs::read_dir(&self.dir)?.flatten() {
            if entry.file_name() != "snapshot.json" {
                search(&entry.path(), &finders, &mut found)?;
            }
        }
        Ok(found)
    }
}

/// Searches what is allocated of a file.
fn search(path: &Path, finders: &[Finder<'_>], found: &mut [bool]) -> Result<()> {
    const BLOCK: u64 = 4 << 20;
    /// Longer than what is looked for.
    const OVERLAP: u64 = 4096;
    let file = File::open(path)?;
    let (end, mut at) = (file.metadata()?.len(), 0);
    let mut buffer = Vec::new();
    while let Ok(start) = rustix::fs::seek(&file, SeekFrom::Data(at)) {
        let stop = rustix::fs::seek(&file, SeekFrom::Hole(start))?.min(end);
        at = start;
        while at < stop {
            buffer.resize((stop - at).min(BLOCK + OVERLAP) as usize, 0);
            file.read_exact_at(&mut buffer, at)?;
            for (finder, found) in finders.iter().zip(found.iter_mut()) {
                *found |= finder.find(&buffer).is_some();
            }
            at = stop.min(at + BLOCK);
        }
        if at >= end {
            break;
        }
    }
    Ok(())
}

/// A create that is refused, with a text and nothing made; its status and text.
fn refused(client: &Client, kept: &Kept) -> Result<(u16, String)> {
    let count =
        || Ok::<_, anyhow::Error>(client.get("/v1/sandboxes")?.json().as_array().map(Vec::len));
    let before = count()?;
    let answer = client.post("/v1/sandboxes", &json!({ "from_snapshot": kept.id }))?;
    ensure!(answer.status >= 400 && !answer.error().is_empty(), "{}", answer.text());
    ensure!(count()? == before, "something was made: {}", answer.text());
    Ok((answer.status, answer.error()))
}

/// Secrets of copies, and what is in their memory.
#[test]
fn a_guest_holds_and_obeys_no_secret_but_its_own() -> Result<()> {
    let server = Server::forking()?;
    let client = server.client();
    let parent = client.base()?;
    // In memory and on disk, and no command line of ours has it.
    let word = format!("canary-{}", parent.id.replace('-', "+"));
    parent.write("/dev/shm/canary", word.as_bytes())?;
    parent.write("/root/canary", word.as_bytes())?;
    parent.output("sync")?;
    // A request that goes to a server in the guest, with the key.
    parent.output(
        "(cd /dev/shm && setsid python3 -m http.server 8000) >/dev/null 2>&1 </dev/null &",
    )?;
    let proxied = || client.get(&parent.path("/proxy/8000/canary")).is_ok_and(|a| a.status == 200);
    ensure!(pandastack_tests::wait_until(std::time::Duration::from_secs(30), proxied), "no server");
    let child = parent.fork(1)?.remove(0);
    let ours = [Kept::new(&server, parent.snapshot()?), Kept::new(&server, child.snapshot()?)];
    let traffic = client.get(&parent.path("/traffic-token"))?.json();
    let traffic = traffic["traffic_token"].as_str().context("a token")?.to_owned();
    assert_eq!(parent.delete()?.status, 204);
    let stranger = client.base()?;
    let theirs = Kept::new(&server, stranger.snapshot()?);

    let tokens = [ours[0].token()?, ours[1].token()?, theirs.token()?];
    assert!(tokens[0] != tokens[1] && tokens[0] != tokens[2] && tokens[1] != tokens[2]);
    let key = fs::read_to_string(server.data().join("api-key"))?;
    let preview = fs::read_to_string(server.data().join("preview-secret"))?;
    let place = server.data().to_string_lossy().into_owned();
    let of_the_host = [key.trim(), preview.trim(), traffic.as_str(), place.as_str()];
    for (kept, token) in [(&ours[0], &tokens[0]), (&ours[1], &tokens[1]), (&theirs, &tokens[2])] {
        // What must be there shows that the search finds what is there.
        assert_eq!(kept.holds(&[token])?, [true], "its own token");
        let found = kept.holds(&of_the_host.map(str::as_bytes))?;
        assert_eq!(
            found,
            [false; 4],
            "of {:?}",
            ["key", "preview secret", "traffic token", "path"]
        );
    }
    for kept in &ours {
        assert_eq!(kept.holds(&[word.as_bytes(), &tokens[2]])?, [true, false]);
    }
    let found = theirs.holds(&[word.as_bytes(), &tokens[0], &tokens[1]])?;
    assert_eq!(found, [false; 3], "something of a tenant before it");

    // The child does not obey the parent's secret, nor anybody else's.
    for other in [&tokens[0], &tokens[2]] {
        ours[1].with("token", json!(other), || refused(&client, &ours[1]))?;
    }
    assert!(server.log().contains("the token is not the current one"));
    let again = client.thaw(&ours[1].id)?;
    assert_eq!(again.output("cat /dev/shm/canary /root/canary")?, word.repeat(2));
    Ok(())
}

/// Of another version, engine or host; damaged; and who may look at it.
#[test]
fn a_snapshot_that_is_not_what_it_was_is_refused() -> Result<()> {
    let server = Server::forking()?;
    let client = server.client();
    let kept = Kept::new(&server, client.base()?.snapshot()?);
    let mode = |path: &Path| Ok::<_, anyhow::Error>(fs::metadata(path)?.mode() & 0o777);
    assert_eq!((mode(&kept.dir)?, mode(&server.data().join("snapshots"))?), (0o700, 0o700));
    for entry in fs::read_dir(&kept.dir)?.flatten() {
        let shared = entry.metadata()?.nlink() > 1;
        // What it shares with the template has nothing of a guest's owner in it.
        ensure!(
            shared || mode(&entry.path())? & 0o077 == 0,
            "{entry:?} is {:o}",
            mode(&entry.path())?
        );
    }

    // The key holds the format, the engine, its version, the processor's features and the image.
    let origin = kept.manifest()?["origin"].as_str().context("origin")?.to_owned();
    let other = json!(origin.chars().rev().collect::<String>());
    let (status, text) = kept.with("origin", other, || refused(&client, &kept))?;
    assert_eq!(status, 409);
    assert!(
        text.contains("another version of its template, of the engine or of the host"),
        "{text}"
    );
    let (status, text) = kept.flipped("state", 100, || refused(&client, &kept))?;
    assert_eq!((status, text.contains("missing or damaged")), (409, true), "{text}");
    // The version in the head of the memory's own format.
    let (status, _) = kept.flipped("memory.diff", 8, || refused(&client, &kept))?;
    assert!(matches!(status, 409 | 500), "{status}");
    let diff = File::options().write(true).open(kept.dir.join("memory.diff"))?;
    let length = diff.metadata()?.len();
    diff.set_len(length + 1)?;
    assert_eq!(refused(&client, &kept)?.0, 409);
    diff.set_len(length)?;
    assert_eq!(client.thaw(&kept.id)?.output("echo whole")?, "whole\n");
    Ok(())
}

#[test]
fn beyond_loopback_and_with_a_weak_key_nothing_starts() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let weak = dir.path().join("weak");
    fs::write(&weak, "changeme")?;
    let weak = weak.to_string_lossy().into_owned();
    for (listen, more, says) in [
        ("0.0.0.0:0", vec![], "--api-key-file"),
        ("[::]:0", vec![], "can be reached from other hosts"),
        ("127.0.0.1:0", vec!["--api-key-file", &weak], "cannot be used"),
        ("0.0.0.0:0", vec!["--api-key-file", &weak], "cannot be used"),
    ] {
        let started = Command::new(program())
            .args(["serve", "--no-client-config", "--engine", &engine(), "--listen", listen])
            .arg("--data-dir")
            .arg(dir.path().join("data"))
            .args(more)
            .env_remove("PANDASTACK_API_KEY")
            .output()?;
        let text = String::from_utf8_lossy(&started.stderr).into_owned();
        assert!(!started.status.success(), "{listen}: {text}");
        assert!(text.contains(says), "{listen}: {text}");
    }
    Ok(())
}

#[test]
fn a_key_that_was_replaced_is_refused_at_once() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let data = dir.path().join("data");
    let keys = ["first", "second"].map(|word| format!("pds_{}", word.repeat(8)));
    for (now, key) in keys.iter().enumerate() {
        let file = dir.path().join("key");
        fs::write(&file, key)?;
        let args = vec!["--api-key-file".to_owned(), file.to_string_lossy().into_owned()];
        let server =
            Server::start(Options { args, data: Some(data.clone()), ..Options::default() })?;
        for (index, key) in keys.iter().enumerate() {
            let status = server.client().with_key(key).get("/v1/me")?.status;
            assert_eq!(status, if index == now { 200 } else { 401 }, "{index} of {now}");
        }
        server.stop()?;
    }
    Ok(())
}
