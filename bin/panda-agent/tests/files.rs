//! Files, through the real agent.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use bytes::Bytes;
use pandastack_engine::agent::{AgentError, ErrorCode, FileKind};
use rustix::fs::{CWD, Mode, OFlags, mkdirat, openat};
use support::{Agent, text};

async fn read(agent: &Agent, path: &str) -> Result<Vec<u8>, AgentError> {
    let mut reader = agent.client.read_file(path).await?;
    let mut content = Vec::new();
    while let Some(bytes) = reader.chunk().await? {
        content.extend_from_slice(&bytes);
    }
    Ok(content)
}

async fn write(
    agent: &Agent,
    path: &str,
    content: &[u8],
    mode: Option<u32>,
) -> Result<u64, AgentError> {
    let mut writer = agent.client.write_file(path, mode).await?;
    writer.write(Bytes::copy_from_slice(content)).await?;
    writer.finish().await
}

fn code<T: std::fmt::Debug>(result: Result<T, AgentError>) -> ErrorCode {
    result.unwrap_err().code().unwrap()
}

fn path(dir: &Path, name: &str) -> String {
    dir.join(name).to_str().unwrap().to_owned()
}

#[tokio::test]
async fn binary_files_round_trip() {
    let (agent, dir) = (Agent::start().await, tempfile::tempdir().unwrap());
    let file = path(dir.path(), "a/b/ü c.bin");
    let mut content: Vec<u8> = (0..5_000_000_u32).map(|n| (n.wrapping_mul(n) >> 7) as u8).collect();
    content.extend_from_slice(&pandastack_proto::MAGIC);
    assert_eq!(write(&agent, &file, &content, None).await, Ok(content.len() as u64));
    assert!(std::fs::read(&file).unwrap() == content);
    assert!(read(&agent, &file).await.unwrap() == content);
    let mut part = agent.client.read_file_range(&file, 1000, Some(10)).await.unwrap();
    assert_eq!(part.chunk().await.unwrap().unwrap(), content[1000..1010]);
    assert_eq!(part.chunk().await, Ok(None));
    assert_eq!(part.chunk().await, Ok(None));
    let beyond = agent.client.read_file_range(&file, 1 << 40, None).await.unwrap().chunk().await;
    assert_eq!(beyond, Ok(None));
    assert_eq!(write(&agent, &file, b"", None).await, Ok(0));
    assert_eq!(read(&agent, &file).await.unwrap(), b"");
}

#[tokio::test]
async fn replacing_keeps_mode_and_owner_and_follows_links() {
    let (agent, dir) = (Agent::start().await, tempfile::tempdir().unwrap());
    let (file, link) = (path(dir.path(), "file"), path(dir.path(), "link"));
    write(&agent, &file, b"1", None).await.unwrap();
    assert_eq!(std::fs::metadata(&file).unwrap().mode() & 0o7777, 0o644);
    std::fs::set_permissions(&file, PermissionsExt::from_mode(0o750)).unwrap();
    symlink(&file, &link).unwrap();
    write(&agent, &link, b"2", None).await.unwrap();
    assert_eq!(std::fs::read(&file).unwrap(), b"2");
    assert_eq!(std::fs::metadata(&file).unwrap().mode() & 0o7777, 0o750);
    assert!(std::fs::symlink_metadata(&link).unwrap().is_symlink());
    write(&agent, &file, b"3", Some(0o600)).await.unwrap();
    assert_eq!(std::fs::metadata(&file).unwrap().mode() & 0o7777, 0o600);
}

#[tokio::test]
async fn a_write_that_is_given_up_leaves_nothing() {
    let (agent, dir) = (Agent::start().await, tempfile::tempdir().unwrap());
    let file = path(dir.path(), "file");
    std::fs::write(&file, "old").unwrap();
    let mut writer = agent.client.write_file(&file, None).await.unwrap();
    writer.write(Bytes::from(vec![1; 1 << 20])).await.unwrap();
    drop(writer);
    agent.client.ping().await.unwrap();
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "old");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[tokio::test]
async fn errors_are_typed() {
    let (agent, dir) = (Agent::start().await, tempfile::tempdir().unwrap());
    let here = dir.path().to_str().unwrap();
    let (file, missing) = (path(dir.path(), "file"), path(dir.path(), "missing"));
    std::fs::write(&file, "x").unwrap();
    let below = path(dir.path(), "file/below");
    let client = &agent.client;
    assert_eq!(code(read(&agent, &missing).await), ErrorCode::NotFound);
    assert_eq!(code(read(&agent, here).await), ErrorCode::IsDirectory);
    assert_eq!(code(read(&agent, &below).await), ErrorCode::NotDirectory);
    assert_eq!(code(write(&agent, here, b"", None).await), ErrorCode::IsDirectory);
    assert_eq!(code(write(&agent, &below, b"", None).await), ErrorCode::NotDirectory);
    assert_eq!(code(client.list(&file).await), ErrorCode::NotDirectory);
    assert_eq!(code(client.list(&missing).await), ErrorCode::NotFound);
    assert_eq!(code(client.stat(&missing).await), ErrorCode::NotFound);
    assert_eq!(code(client.remove(&missing).await), ErrorCode::NotFound);
    assert_eq!(code(client.mkdir(&file).await), ErrorCode::NotDirectory);
    for bad in ["", "a\0b"] {
        assert_eq!(code(read(&agent, bad).await), ErrorCode::InvalidArgument);
        assert_eq!(code(client.remove(bad).await), ErrorCode::InvalidArgument);
    }
    for bad in ["/", "//", "/..", "/tmp/."] {
        assert_eq!(code(client.remove(bad).await), ErrorCode::InvalidArgument, "{bad}");
    }
    if Path::new("/dev/full").exists() {
        assert_eq!(code(read(&agent, "/dev/zero").await), ErrorCode::InvalidArgument);
        assert_eq!(code(write(&agent, "/dev/full", b"x", None).await), ErrorCode::InvalidArgument);
    }
}

#[tokio::test]
async fn a_fifo_keeps_nobody_waiting() {
    let (agent, dir) = (Agent::start().await, tempfile::tempdir().unwrap());
    let fifo = path(dir.path(), "fifo");
    assert_eq!(agent.sh(&format!("mkfifo {fifo}")).await.status.code, 0);
    assert_eq!(code(read(&agent, &fifo).await), ErrorCode::InvalidArgument);
    assert_eq!(code(write(&agent, &fifo, b"x", None).await), ErrorCode::InvalidArgument);
    assert_eq!(agent.client.lstat(&fifo).await.unwrap().kind, FileKind::Other);
    agent.client.remove(&fifo).await.unwrap();
}

#[tokio::test]
async fn ten_thousand_files_are_listed_and_removed() {
    let (agent, dir) = (Agent::start().await, tempfile::tempdir().unwrap());
    let many = dir.path().join("many");
    std::fs::create_dir(&many).unwrap();
    for n in 0..10_000 {
        std::fs::write(many.join(format!("file-{n:05}")), "x").unwrap();
    }
    let entries = agent.client.list(many.to_str().unwrap()).await.unwrap();
    assert_eq!(entries.len(), 10_000);
    assert!(entries.iter().enumerate().all(|(n, e)| e.name == format!("file-{n:05}")));
    assert!(entries.iter().all(|e| e.kind == FileKind::File && e.size == 1));
    agent.client.remove(many.to_str().unwrap()).await.unwrap();
    assert!(!many.exists());
}

#[tokio::test]
async fn listings_describe_what_is_there() {
    let (agent, dir) = (Agent::start().await, tempfile::tempdir().unwrap());
    std::fs::create_dir(dir.path().join("dir")).unwrap();
    std::fs::write(dir.path().join("file"), "four").unwrap();
    symlink("dir", dir.path().join("to-dir")).unwrap();
    symlink("nothing", dir.path().join("to-nothing")).unwrap();
    let entries = agent.client.list(dir.path().to_str().unwrap()).await.unwrap();
    let seen: Vec<_> = entries.iter().map(|e| (e.name.as_str(), e.kind, e.leads_to_dir)).collect();
    let expected = [
        ("dir", FileKind::Directory, false),
        ("file", FileKind::File, false),
        ("to-dir", FileKind::Symlink, true),
        ("to-nothing", FileKind::Symlink, false),
    ];
    assert_eq!(seen, expected);
    let link = path(dir.path(), "to-dir/");
    assert_eq!(agent.client.stat(&link).await.unwrap().kind, FileKind::Directory);
    let root = agent.client.stat("/").await.unwrap();
    assert_eq!((root.name.as_str(), root.kind), ("/", FileKind::Directory));
}

/// Directories in each other, with a file in each: deeper than a path can name, and than the agent
/// keeps directories open.
fn nest(top: &Path, depth: usize) {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    let mut dir = openat(CWD, top, flags, Mode::empty()).unwrap();
    for _ in 0..depth {
        mkdirat(&dir, "d", Mode::RWXU).unwrap();
        openat(&dir, "f", OFlags::CREATE | OFlags::WRONLY, Mode::RUSR).unwrap();
        dir = openat(&dir, "d", flags, Mode::empty()).unwrap();
    }
}

#[tokio::test]
async fn removing_is_recursive_and_follows_no_link() {
    let (agent, dir) = (Agent::start().await, tempfile::tempdir().unwrap());
    let (top, kept) = (dir.path().join("top"), dir.path().join("kept"));
    std::fs::create_dir(&kept).unwrap();
    std::fs::write(kept.join("file"), "x").unwrap();
    std::fs::create_dir(&top).unwrap();
    symlink(&kept, top.join("link")).unwrap();
    nest(&top, 3000);
    agent.client.remove(&format!("{}/", top.display())).await.unwrap();
    assert!(!top.exists());
    assert!(kept.join("file").exists());
}

#[tokio::test]
async fn directories_are_made_with_their_parents() {
    let (agent, dir) = (Agent::start().await, tempfile::tempdir().unwrap());
    let deep = path(dir.path(), "a/b//c/");
    agent.client.mkdir(&deep).await.unwrap();
    agent.client.mkdir(&deep).await.unwrap();
    assert!(Path::new(&deep).is_dir());
}

#[tokio::test]
async fn big_operations_let_others_through() {
    let (agent, dir) = (Agent::start().await, tempfile::tempdir().unwrap());
    let big = path(dir.path(), "big");
    let line = format!("truncate -s 1G {big}");
    assert_eq!(agent.sh(&line).await.status.code, 0);
    let mut reader = agent.client.read_file(&big).await.unwrap();
    let mut seen = 0;
    while seen < 64 << 20 {
        seen += reader.chunk().await.unwrap().unwrap().len();
        if seen % (4 << 20) < 32768 {
            let begin = std::time::Instant::now();
            agent.client.ping().await.unwrap();
            assert!(begin.elapsed().as_millis() < 500);
        }
    }
    drop(reader);
    assert_eq!(text(&agent.sh("echo fine").await.stdout), "fine\n");
}

#[tokio::test]
async fn files_of_the_kernel_can_be_read() {
    let agent = Agent::start().await;
    assert!(read(&agent, "/proc/self/status").await.unwrap().starts_with(b"Name:\tpanda-agent"));
}
