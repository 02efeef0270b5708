//! What this host offers the qemu engine.

use std::fs;
use std::path::Path;
use std::time::Duration;

use pandastack_jail::Level;
use serde::Serialize;

use super::runtime;

/// Findings for people and for `doctor`.
#[derive(Clone, Debug, Serialize)]
pub struct Probe {
    /// Version line of QEMU, or what to install.
    pub qemu: Result<String, String>,
    /// Whether machines can be confined, and how far.
    pub jail_usable: bool,
    /// The jail's parts in words.
    pub jail: String,
    /// Whether `/dev/kvm` exists and what it can do.
    pub kvm: String,
}

/// Looks at the host; starts nothing that stays.
pub fn probe() -> Probe {
    let level: Level = pandastack_jail::probe();
    Probe {
        qemu: runtime::find_program()
            .and_then(|program| runtime::version(&program))
            .map_err(|e| e.to_string()),
        jail_usable: level.usable(),
        jail: level.to_string(),
        kvm: kvm(),
    }
}

/// The presence of `/dev/kvm` proves little: the pvm module answers there too, and runs no stock
/// guest.
fn kvm() -> String {
    if !Path::new("/dev/kvm").exists() {
        return "no /dev/kvm".into();
    }
    let loaded = |name: &str| Path::new("/sys/module").join(name).exists();
    match (loaded("kvm_intel") || loaded("kvm_amd"), loaded("kvm_pvm")) {
        (true, _) => "hardware virtualisation is present; this release does not use it yet".into(),
        (false, true) => "/dev/kvm is the pvm module, which cannot run a stock Linux guest".into(),
        (false, false) => "/dev/kvm exists without kvm_intel or kvm_amd".into(),
    }
}

/// The time stamp counter's frequency in kHz, the same number for as long as the host is the
/// same. A bake depends on it, so noise of the measurement must not make a new bake.
pub(super) fn stable_tsc_khz(path: &Path) -> u64 {
    let kept = fs::read_to_string(path).ok().and_then(|text| text.trim().parse::<u64>().ok());
    if let Some(kept) = kept {
        let quick = pandastack_jail::tsc_khz(Duration::from_millis(5));
        // Half a per mille: ten times the noise of the quick measurement.
        if kept.abs_diff(quick) <= kept / 2000 {
            return kept;
        }
    }
    let measured = pandastack_jail::tsc_khz(Duration::from_millis(200));
    // Unkept, it is measured again at the next start.
    let _ = fs::write(path, format!("{measured}\n"));
    measured
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_frequency_is_kept_and_a_foreign_one_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tsc");
        let first = stable_tsc_khz(&path);
        assert_eq!(stable_tsc_khz(&path), first);
        fs::write(&path, (first * 2).to_string()).unwrap();
        assert!(stable_tsc_khz(&path).abs_diff(first) < first / 500);
    }
}
