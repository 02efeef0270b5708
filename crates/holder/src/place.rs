//! Where a holder is found: a socket in the directory that its server has locked.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::net::sockopt::socket_peercred;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

/// The socket's name in the directory.
const NAME: &str = "holder";

/// The directory, by a path that is short enough for a socket's address however long its own is.
struct Short {
    _dir: File,
    path: PathBuf,
}

impl Short {
    fn of(dir: &Path) -> io::Result<Self> {
        let dir = File::open(dir)?;
        let path = PathBuf::from(format!("/proc/self/fd/{}/{NAME}", dir.as_raw_fd()));
        Ok(Self { _dir: dir, path })
    }
}

fn socket() -> io::Result<OwnedFd> {
    let (family, kind) = (AddressFamily::UNIX, SocketType::SEQPACKET);
    Ok(rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC, None)?)
}

/// Connects to the holder of `dir`; `None` if there is none.
pub(crate) fn connect(dir: &Path) -> io::Result<Option<OwnedFd>> {
    let (socket, place) = (socket()?, Short::of(dir)?);
    match rustix::net::connect(&socket, &SocketAddrUnix::new(&place.path)?) {
        Ok(()) if is_own(&socket) => Ok(Some(socket)),
        Ok(()) => {
            Err(io::Error::new(io::ErrorKind::PermissionDenied, "the holder is another user's"))
        }
        Err(Errno::NOENT | Errno::CONNREFUSED) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Where the holder of `dir` takes the next server's connection. Nobody but its own user's.
pub(crate) fn listen(dir: &Path) -> io::Result<OwnedFd> {
    let (socket, place) = (socket()?, Short::of(dir)?);
    remove(dir)?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(&place.path)?)?;
    rustix::fs::chmod(&place.path, Mode::RUSR | Mode::WUSR)?;
    rustix::net::listen(&socket, 4)?;
    Ok(socket)
}

/// Removes the socket of a holder that is gone, or about to be.
pub(crate) fn remove(dir: &Path) -> io::Result<()> {
    match std::fs::remove_file(dir.join(NAME)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Whether the process at the other end is of this user.
pub(crate) fn is_own(socket: &OwnedFd) -> bool {
    socket_peercred(socket).is_ok_and(|peer| peer.uid == rustix::process::geteuid())
}
