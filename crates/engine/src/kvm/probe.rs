//! What this host offers the kvm engine, as far as looking goes. The proof is a guest that runs:
//! [`KvmEngine::prove`](super::KvmEngine::prove).

use std::fmt;
use std::fs::File;
use std::path::Path;

use serde::Serialize;

/// The host's device.
const DEVICE: &str = "/dev/kvm";

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Probe {
    /// There is no `/dev/kvm`.
    Absent,
    /// It cannot be opened, and why.
    Closed(String),
    /// It is the pvm module's, which makes virtual machines without the processor's help and
    /// cannot run a stock guest in them.
    Pvm,
    /// It is there, with the module behind it if it is one that is known. Whether it runs guests
    /// has to be tried.
    Present(Option<&'static str>),
}

impl Probe {
    /// Whether there is something to try.
    pub fn is_promising(&self) -> bool {
        matches!(self, Probe::Present(_))
    }
}

impl fmt::Display for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Probe::Absent => f.write_str("no /dev/kvm"),
            Probe::Closed(why) => write!(f, "/dev/kvm cannot be opened: {why}"),
            Probe::Pvm => {
                f.write_str("/dev/kvm is the pvm module, which cannot run a stock Linux guest")
            }
            Probe::Present(Some(module)) => write!(f, "/dev/kvm with {module}"),
            Probe::Present(None) => f.write_str("/dev/kvm without kvm_intel or kvm_amd"),
        }
    }
}

/// Looks at the host; starts nothing.
pub fn probe() -> Probe {
    let opened = open().map(drop).map_err(|e| e.to_string());
    judge(Path::new(DEVICE).exists(), opened, |module| {
        Path::new("/sys/module").join(module).exists()
    })
}

/// Opens the device as machines get it.
pub(super) fn open() -> std::io::Result<File> {
    File::options().read(true).write(true).open(DEVICE)
}

fn judge(exists: bool, opened: Result<(), String>, loaded: impl Fn(&str) -> bool) -> Probe {
    let hardware = ["kvm_intel", "kvm_amd"].into_iter().find(|module| loaded(module));
    match (exists, hardware, opened) {
        (false, ..) => Probe::Absent,
        (true, None, _) if loaded("kvm_pvm") => Probe::Pvm,
        (true, _, Err(why)) => Probe::Closed(why),
        (true, hardware, Ok(())) => Probe::Present(hardware),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_judged_by_what_is_behind_it() {
        let found = |exists, opened: Result<(), &str>, modules: &[&str]| {
            judge(exists, opened.map_err(str::to_owned), |module| modules.contains(&module))
        };
        assert_eq!(found(false, Err("no such file"), &["kvm_amd"]), Probe::Absent);
        assert_eq!(found(true, Ok(()), &["kvm", "kvm_pvm"]), Probe::Pvm);
        assert_eq!(found(true, Err("denied"), &["kvm_intel"]), Probe::Closed("denied".into()));
        assert_eq!(found(true, Ok(()), &["kvm", "kvm_amd"]), Probe::Present(Some("kvm_amd")));
        // The device belongs to one of the two; the proof finds out.
        let both = found(true, Ok(()), &["kvm_intel", "kvm_pvm"]);
        assert!(both.is_promising());
        assert!(found(true, Ok(()), &[]).is_promising(), "a kernel with everything built in");
        assert!(!Probe::Pvm.is_promising());
    }
}
