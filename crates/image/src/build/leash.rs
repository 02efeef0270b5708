//! Processes that do not outlive whoever started them.
//!
//! A build runs hundreds of processes, some as root, with mounts in their tree. Nobody may be
//! left working in a directory that its owner thinks dead. So a build lives in a process group
//! of its own, on a leash: a pipe whose other end only we hold. When it closes, because the
//! future was dropped or because this process died in whatever way, a watcher inside the group
//! kills the group.

use std::io;
use std::process::{ExitStatus, Stdio};

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::unix::pipe;
use tokio::process::Command;

/// Watches standard input in the background and becomes the program that it is given. The
/// watcher needs the descriptor under another number: a shell gives background jobs an empty
/// standard input.
const WATCHER: &str = r#"
exec 3<&0 < /dev/null
(cat <&3; kill -KILL 0) > /dev/null 2>&1 &
exec 3<&-
exec "$@"
"#;

/// Runs `program`, set up by `configure`, until it ends, and hands over its output line by line.
/// Dropping the future kills it with everything it started.
pub(super) async fn run(
    program: &[&str],
    configure: impl FnOnce(&mut Command),
    mut line: impl FnMut(&str),
) -> io::Result<ExitStatus> {
    let (reader, writer) = io::pipe()?;
    let mut command = Command::new("/bin/sh");
    configure(&mut command);
    command
        .args(["-c", WATCHER, "sh"])
        .args(program)
        .stdin(Stdio::piped())
        .stdout(writer.try_clone()?)
        .stderr(writer)
        .process_group(0)
        .kill_on_drop(true);
    let mut child = command.spawn()?;
    // Our copies of the output pipe's writing end are in there.
    drop(command);
    // Taken, because waiting for a child closes its standard input.
    let leash = child.stdin.take();

    let mut output = BufReader::new(pipe::Receiver::from_owned_fd(reader.into())?);
    let mut buffer = Vec::new();
    // Not `lines()`: what packages print is not always UTF-8.
    while output.read_until(b'\n', &mut buffer).await? > 0 {
        line(String::from_utf8_lossy(&buffer).trim_end());
        buffer.clear();
    }
    let status = child.wait().await;
    drop(leash);
    status
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test]
    async fn output_and_status_come_back() {
        let mut lines = Vec::new();
        let script = "echo out; echo err >&2; printf 'no end \\377'; exit 3";
        let status = run(&["sh", "-c", script], |_| {}, |l| lines.push(l.to_owned())).await;
        assert_eq!(status.unwrap().code(), Some(3));
        assert_eq!(lines, ["out", "err", "no end \u{fffd}"]);
    }

    #[tokio::test]
    async fn dropping_kills_grandchildren_too() {
        let (sender, receiver) = tokio::sync::oneshot::channel();
        let mut sender = Some(sender);
        let script = "sleep 1000 & echo $!; wait";
        let task = tokio::spawn(async move {
            let pid = |line: &str| {
                if let Some(sender) = sender.take() {
                    sender.send(line.to_owned()).unwrap();
                }
            };
            run(&["sh", "-c", script], |_| {}, pid).await
        });
        let grandchild = receiver.await.unwrap();
        let alive = || std::fs::read_to_string(format!("/proc/{grandchild}/stat"));
        assert!(alive().is_ok());
        task.abort();
        for _ in 0..500 {
            // Dead and not yet reaped by init is dead enough.
            if alive().map_or(true, |stat| stat.contains(") Z ")) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("the grandchild still runs");
    }
}
