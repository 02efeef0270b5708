//! The initramfs: the agent as `/init`, the kernel modules it loads, and nothing else.
//!
//! The archive is the kernel's "newc" cpio, as described in the kernel tree's
//! `Documentation/driver-api/early-userspace/buffer-format.rst`. Writing it is a pure function
//! of its input: no owner, time stamp or order of the host gets in.

/// Changes whenever the same input would give another archive; part of an image's address.
pub(crate) const LAYOUT_VERSION: u32 = 1;

const DIRECTORY: u32 = 0o040_755;
const EXECUTABLE: u32 = 0o100_755;
const FILE: u32 = 0o100_644;
const CONSOLE: u32 = 0o020_600;

/// A kernel module: file name and content, compressed or not.
pub(crate) type Module = (String, Vec<u8>);

/// Writes the initramfs. `modules` are in load order.
pub(crate) fn write(agent: &[u8], modules: &[Module]) -> Vec<u8> {
    let mut archive = Archive::default();
    for name in ["dev", "modules", "newroot", "proc", "sys"] {
        archive.add(name, DIRECTORY, (0, 0), &[]);
    }
    // The kernel opens it for /init before anything can mount devtmpfs.
    archive.add("dev/console", CONSOLE, (5, 1), &[]);
    let mut order = String::new();
    for (name, content) in modules {
        archive.add(&format!("modules/{name}"), FILE, (0, 0), content);
        order.push_str(name);
        order.push('\n');
    }
    archive.add("modules/order", FILE, (0, 0), order.as_bytes());
    archive.add("init", EXECUTABLE, (0, 0), agent);
    pad(archive.finish())
}

/// Appends zeros, which the kernel skips, until the size is one byte more than whole pages.
///
/// QEMU's microvm puts the initrd right below the ACPI tables at the top of memory, aligned
/// down to a page. An archive that nearly fills its last page makes the two overlap, and the
/// guest then finds no tables and no devices. One byte in the last page leaves 4095 bytes free.
fn pad(mut archive: Vec<u8>) -> Vec<u8> {
    const PAGE: usize = 4096;
    let pages = archive.len().saturating_sub(1).div_ceil(PAGE);
    archive.resize(pages * PAGE + 1, 0);
    archive
}

/// A newc archive under construction.
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    /// Adds an entry owned by root. `device` is major and minor, for device nodes.
    fn add(&mut self, name: &str, mode: u32, device: (u32, u32), content: &[u8]) {
        self.entries += 1;
        self.header(self.entries, mode, device, name, content);
    }

    /// Ends the archive.
    fn finish(mut self) -> Vec<u8> {
        self.header(0, 0, (0, 0), "TRAILER!!!", &[]);
        self.bytes
    }

    fn header(&mut self, inode: u32, mode: u32, device: (u32, u32), name: &str, content: &[u8]) {
        let links = if mode & 0o170_000 == 0o040_000 { 2 } else { 1 };
        // Sizes in the header are 32 bits; agent and modules are a few MiB.
        let fields = [
            inode,
            mode,
            0, // uid
            0, // gid
            links,
            0, // mtime
            content.len() as u32,
            0, // device of the file system, major
            0, // and minor
            device.0,
            device.1,
            name.len() as u32 + 1,
            0, // checksum, unused in this variant
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.align();
        self.bytes.extend_from_slice(content);
        self.align();
    }

    /// Names end, and contents start and end, on a multiple of four.
    fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_entry_is_written_to_the_letter() {
        let mut archive = Archive::default();
        archive.add("hi", FILE, (0, 0), b"abc");
        let expected = concat!(
            "070701",
            "00000001", // inode
            "000081a4", // mode
            "00000000", // uid
            "00000000", // gid
            "00000001", // links
            "00000000", // mtime
            "00000003", // size
            "00000000",
            "00000000",
            "00000000",
            "00000000",
            "00000003", // size of the name with its end
            "00000000",
            "hi\0\0\0\0", // 110 + 3 bytes, aligned to 116
            "abc\0",
        );
        assert_eq!(String::from_utf8(archive.bytes).unwrap(), expected);
    }

    /// Name, mode, device and content.
    type Entry = (String, u32, (u32, u32), Vec<u8>);

    /// Reads an archive back by the format's description.
    fn read(mut bytes: &[u8]) -> Vec<Entry> {
        let mut entries = Vec::new();
        loop {
            assert_eq!(&bytes[..6], b"070701");
            let field = |n: usize| {
                let text = std::str::from_utf8(&bytes[6 + n * 8..14 + n * 8]).unwrap();
                u32::from_str_radix(text, 16).unwrap()
            };
            let (mode, size, name_size) = (field(1), field(6) as usize, field(11) as usize);
            let device = (field(9), field(10));
            let name = String::from_utf8(bytes[110..110 + name_size - 1].to_vec()).unwrap();
            if name == "TRAILER!!!" {
                return entries;
            }
            let start = (110 + name_size).next_multiple_of(4);
            entries.push((name, mode, device, bytes[start..start + size].to_vec()));
            bytes = &bytes[(start + size).next_multiple_of(4)..];
        }
    }

    #[test]
    fn the_initramfs_holds_what_the_agent_expects() {
        let modules = [("b.ko.xz".into(), b"BB".to_vec()), ("a.ko.xz".into(), b"A".to_vec())];
        let entries = read(&write(b"agent", &modules));
        let find = |name: &str| entries.iter().find(|e| e.0 == name).unwrap();
        assert_eq!(find("init").1, EXECUTABLE);
        assert_eq!(find("init").3, b"agent");
        assert_eq!(find("modules/order").3, b"b.ko.xz\na.ko.xz\n");
        assert_eq!(find("modules/b.ko.xz").3, b"BB");
        assert_eq!(find("dev/console").2, (5, 1));
        for directory in ["dev", "proc", "sys", "newroot", "modules"] {
            assert_eq!(find(directory).1, DIRECTORY);
        }
        // The kernel does not make parents: each must come before what is in it.
        let position = |name: &str| entries.iter().position(|e| e.0 == name).unwrap();
        assert!(position("modules") < position("modules/b.ko.xz"));
        assert!(position("dev") < position("dev/console"));
    }

    #[test]
    fn the_size_is_one_more_than_whole_pages() {
        for size in [0, 1, 2, 4095, 4096, 4097, 4098, 8192, 8193, 10_000] {
            let padded = pad(vec![7; size]);
            assert_eq!(padded.len() % 4096, 1, "{size}");
            assert!(padded.len() >= size && padded.len() < size + 4096 + 1, "{size}");
            assert!(padded[size..].iter().all(|byte| *byte == 0));
        }
        assert_eq!(write(b"agent", &[]).len() % 4096, 1);
    }
}
