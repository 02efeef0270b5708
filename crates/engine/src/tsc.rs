//! The host's time stamp counter, as a number that bakes may depend on.

use std::fs;
use std::path::Path;
use std::time::Duration;

/// The time stamp counter's frequency in kHz, the same number for as long as the host is the
/// same. Noise of the measurement must not make a new bake.
pub(crate) fn stable_khz(path: &Path) -> u64 {
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
        let first = stable_khz(&path);
        assert_eq!(stable_khz(&path), first);
        fs::write(&path, (first * 2).to_string()).unwrap();
        assert!(stable_khz(&path).abs_diff(first) < first / 500);
    }
}
