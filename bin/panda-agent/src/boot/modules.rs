//! Kernel modules, from the initramfs.

use std::fs::File;

use rustix::io::Errno;
use rustix::system::finit_module;

use super::log;

const DIR: &str = "/modules";
/// `MODULE_INIT_COMPRESSED_FILE`: the kernel unpacks it.
const COMPRESSED: i32 = 4;

/// Loads the modules in the order that the image gives. One that fails is a line in the log: if
/// it mattered, what needs it says so.
pub fn load() {
    let order = std::fs::read_to_string(format!("{DIR}/order")).unwrap_or_default();
    for name in order.lines().map(str::trim).filter(|name| !name.is_empty()) {
        let path = format!("{DIR}/{name}");
        let flags = if name.ends_with(".ko") { 0 } else { COMPRESSED };
        let loaded = File::open(&path)
            .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
            .and_then(|file| finit_module(&file, c"", flags));
        match loaded {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => log(&format!("module {name}: {errno}")),
        }
        // The initramfs is memory for the life of the guest.
        let _ = std::fs::remove_file(path);
    }
}
