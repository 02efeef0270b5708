//! Reading `/proc` without allocation.

use libc::c_int;
use pandastack_fork::sys;

/// Bytes of `/proc` files that are looked at: the lines that matter come early.
pub const FILE: usize = 4096;

/// A path made of pieces and numbers. What does not fit is left out.
pub struct Path {
    bytes: [u8; 96],
    len: usize,
}

impl Path {
    /// An empty path.
    pub fn new() -> Self {
        Self { bytes: [0; 96], len: 0 }
    }

    /// With more text at its end.
    pub fn text(mut self, text: &[u8]) -> Self {
        for &byte in text {
            // One byte stays for the NUL.
            if self.len + 1 < self.bytes.len() {
                self.bytes[self.len] = byte;
                self.len += 1;
            }
        }
        self
    }

    /// With a number in decimal at its end.
    pub fn number(self, number: usize) -> Self {
        let mut digits = [0; 20];
        self.text(decimal(number, &mut digits))
    }

    /// With a NUL at its end.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..=self.len]
    }
}

fn decimal(mut number: usize, digits: &mut [u8; 20]) -> &[u8] {
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            return &digits[at..];
        }
    }
}

/// Reads the beginning of a file.
pub fn file<'a>(path: &Path, buffer: &'a mut [u8; FILE]) -> Result<&'a [u8], c_int> {
    let fd = sys::open(path.as_bytes(), libc::O_RDONLY)?;
    let mut len = 0;
    let outcome = loop {
        match sys::read(fd, &mut buffer[len..]) {
            Ok(0) => break Ok(()),
            Ok(read) => len += read,
            Err(libc::EINTR) => {}
            Err(errno) => break Err(errno),
        }
    };
    let _ = sys::close(fd);
    outcome.map(|()| &buffer[..len])
}

/// What follows `name` on its line, without blanks at its ends.
pub fn field<'a>(text: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let line = text.split(|&b| b == b'\n').find_map(|line| line.strip_prefix(name))?;
    Some(line.trim_ascii())
}

/// A number without a sign.
pub fn number(text: &[u8], radix: u32) -> Option<u64> {
    u64::from_str_radix(core::str::from_utf8(text).ok()?, radix).ok()
}

/// Calls `visit` with every descriptor of this process, except the one that they are read from.
pub fn each_descriptor(
    mut visit: impl FnMut(usize) -> Result<(), (c_int, usize)>,
) -> Result<(), (c_int, usize)> {
    each_number(b"/proc/self/fd\0", |fd, own| if fd == own { Ok(()) } else { visit(fd) })
}

/// Calls `visit` with every thread of this process, by its id in the namespace of `/proc`.
pub fn each_thread(
    mut visit: impl FnMut(usize) -> Result<(), (c_int, usize)>,
) -> Result<(), (c_int, usize)> {
    each_number(b"/proc/self/task\0", |thread, _| visit(thread))
}

/// Calls `visit` with every entry of a directory whose name is a number, and with the descriptor
/// that the directory is read from.
fn each_number(
    dir: &[u8],
    mut visit: impl FnMut(usize, usize) -> Result<(), (c_int, usize)>,
) -> Result<(), (c_int, usize)> {
    let fd =
        sys::open(dir, libc::O_RDONLY | libc::O_DIRECTORY).map_err(|errno| (errno, usize::MAX))?;
    let mut buffer = [0; 2048];
    let outcome = loop {
        let filled = match sys::getdents(fd, &mut buffer) {
            Ok(0) => break Ok(()),
            Ok(filled) => filled,
            Err(errno) => break Err((errno, usize::MAX)),
        };
        let visited = names(&buffer[..filled])
            .filter_map(|name| number(name, 10))
            .try_for_each(|entry| visit(entry as usize, fd));
        if visited.is_err() {
            break visited;
        }
    };
    let _ = sys::close(fd);
    outcome
}

/// The names in a buffer of `struct linux_dirent64`: inode (8), offset (8), length of the record
/// (2), type (1), name with a NUL.
fn names(mut entries: &[u8]) -> impl Iterator<Item = &[u8]> {
    core::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(*entries.get(16..18)?.first_chunk()?));
        let (record, rest) = entries.split_at_checked(length)?;
        entries = rest;
        let name = record.get(19..)?;
        name.split(|&b| b == 0).next()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_joined_and_end_with_a_nul() {
        let path = Path::new().text(b"/proc/self/fd/").number(1203).text(b"/x");
        assert_eq!(path.as_bytes(), b"/proc/self/fd/1203/x\0");
        assert_eq!(Path::new().number(0).as_bytes(), b"0\0");
        let long = Path::new().text(&[b'x'; 200]).number(1);
        assert_eq!((long.as_bytes().len(), long.as_bytes().last()), (96, Some(&0)));
    }

    #[test]
    fn fields_are_found_by_their_whole_name() {
        let text = b"Pid:\t7\nNSpid:\t7\t2\neventfd-count:               2a\n";
        assert_eq!(field(text, b"NSpid:"), Some(&b"7\t2"[..]));
        assert_eq!(number(field(text, b"eventfd-count:").unwrap(), 16), Some(42));
        assert_eq!(field(text, b"tfd:"), None);
        assert_eq!(number(b"-1", 10), None);
        assert_eq!(number(b"", 10), None);
    }

    #[test]
    fn every_descriptor_is_visited_but_the_one_they_are_read_from() {
        let open = std::fs::File::open("/proc/self/status").unwrap();
        let wanted = std::os::fd::AsRawFd::as_raw_fd(&open) as usize;
        let mut seen = false;
        each_descriptor(|fd| {
            seen |= fd == wanted;
            let link = std::fs::read_link(format!("/proc/self/fd/{fd}")).unwrap_or_default();
            assert!(!link.ends_with("fd"), "{fd} is the listing itself");
            Ok(())
        })
        .unwrap();
        assert!(seen);
        let failed = each_descriptor(|fd| Err((libc::EBADF, fd)));
        assert_eq!(failed.unwrap_err().0, libc::EBADF);
    }

    #[test]
    fn an_entry_that_is_the_number_of_the_listing_is_visited() {
        // Threads of a small namespace have ids as small as descriptors: one was left out once.
        let dir = std::env::temp_dir().join(format!("panda-numbers-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        (0..64).for_each(|n| std::fs::write(dir.join(n.to_string()), "").unwrap());
        let path = format!("{}\0", dir.display());
        let (mut visited, mut listing) = (Vec::new(), 0);
        each_number(path.as_bytes(), |entry, own| {
            visited.push(entry);
            listing = own;
            Ok(())
        })
        .unwrap();
        std::fs::remove_dir_all(&dir).unwrap();
        assert!(listing < 64, "a low number, as in any small process");
        visited.sort_unstable();
        assert_eq!(visited, (0..64).collect::<Vec<_>>());
    }
}
