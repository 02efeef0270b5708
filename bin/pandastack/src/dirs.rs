//! Where things are kept by default.

use std::env;
use std::path::PathBuf;

use anyhow::Context as _;

/// The data directory when none is named: the system's for root, the user's own otherwise.
pub fn default_data_dir() -> anyhow::Result<PathBuf> {
    if rustix::process::geteuid().is_root() {
        return Ok(PathBuf::from("/var/lib/pandastack"));
    }
    if let Some(base) = env::var_os("XDG_DATA_HOME").map(PathBuf::from).filter(|p| p.is_absolute())
    {
        return Ok(base.join("pandastack"));
    }
    Ok(home()?.join(".local/share/pandastack"))
}

/// The client's configuration file, which the SDKs read too.
pub fn client_config() -> anyhow::Result<PathBuf> {
    Ok(home()?.join(".config/pandastack/config.json"))
}

fn home() -> anyhow::Result<PathBuf> {
    env::home_dir().filter(|home| home.is_absolute()).context("HOME is not set")
}
