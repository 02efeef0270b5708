//! Random numbers, by the one system call that a jailed process has for them: libraries that look
//! for a file when they do not find it in the C library would find nothing there.

use std::io;

use rustix::rand::{GetRandomFlags, getrandom};

/// Bytes that nobody can guess.
pub(crate) fn bytes<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    // So few come whole, or not at all (getrandom(2)).
    let got = getrandom(&mut bytes[..], GetRandomFlags::empty())?;
    if got == N { Ok(bytes) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}
