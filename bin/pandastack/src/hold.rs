//! The process that keeps a server's machines in case that the server is killed: this very program,
//! started again by the server with a socket as standard input and a listener as standard output.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::Context as _;

/// Starts it.
pub fn launch(dir: &Path, server: OwnedFd, listener: OwnedFd) -> io::Result<Child> {
    Command::new("/proc/self/exe")
        .arg0("panda-holder")
        .arg("hold")
        .arg(dir)
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::from(server))
        .stdout(Stdio::from(listener))
        .stderr(Stdio::null())
        .spawn()
}

/// Is it.
pub fn run() -> anyhow::Result<()> {
    let server = io::stdin().as_fd().try_clone_to_owned();
    let listener = io::stdout().as_fd().try_clone_to_owned();
    let (server, listener) = (server.context("no server")?, listener.context("no listener")?);
    // Its own descriptors only: one more would keep the other end from hearing of its end.
    let null = std::fs::File::options().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    // What is typed at the server's terminal is not for it.
    rustix::process::setsid()?;
    rustix::thread::set_name(c"panda-holder")?;
    pandastack_jail::renounce().context("cannot give up what it does not need")?;
    Ok(pandastack_holder::serve(server, listener)?)
}
