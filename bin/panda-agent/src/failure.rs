//! Errors of the kernel as failures of the protocol.

use pandastack_proto::{ErrorCode, Failure};
use rustix::io::Errno;

/// The protocol's word for an error of the kernel.
fn code(errno: Errno) -> ErrorCode {
    match errno {
        Errno::NOENT => ErrorCode::NotFound,
        Errno::ISDIR => ErrorCode::IsDirectory,
        Errno::NOTDIR => ErrorCode::NotDirectory,
        Errno::ACCESS | Errno::PERM | Errno::ROFS => ErrorCode::Permission,
        Errno::EXIST | Errno::NOTEMPTY => ErrorCode::Exists,
        Errno::NOSPC | Errno::DQUOT | Errno::FBIG => ErrorCode::NoSpace,
        Errno::INVAL | Errno::NAMETOOLONG | Errno::LOOP => ErrorCode::InvalidArgument,
        Errno::MFILE | Errno::NFILE | Errno::AGAIN => ErrorCode::TooMany,
        _ => ErrorCode::Io,
    }
}

/// `what` did not work, and why. For use in `map_err`.
pub fn because<E: Into<Errno>>(what: impl FnOnce() -> String) -> impl FnOnce(E) -> Failure {
    move |errno| {
        let errno = errno.into();
        // The text alone: "os error 2" helps nobody who reads "No such file or directory".
        let text = std::io::Error::from(errno).to_string();
        let text = text.split(" (os error").next().unwrap_or_default();
        Failure { code: code(errno), message: format!("{}: {text}", what()) }
    }
}

/// A failure that is not the kernel's.
pub fn refuse(code: ErrorCode, message: impl Into<String>) -> Failure {
    Failure { code, message: message.into() }
}
