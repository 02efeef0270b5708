//! Previews of ports: what the operator may choose, and the secret that opens them.

use std::path::Path;

use anyhow::Context as _;
use pandastack_api::{PreviewHost, PreviewSecret};

use crate::private_file;

/// What an operator may choose.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct PreviewArgs {
    /// A name whose wildcard leads here: port 8000 of a sandbox is at 8000-ID.NAME then, as it is at
    /// 8000-ID.localhost. With the scheme and port that browsers use, if they are not ours; may be
    /// repeated
    #[arg(
        long,
        value_name = "[SCHEME://]NAME[:PORT]",
        env = "PANDASTACK_PREVIEW_HOST",
        value_delimiter = ','
    )]
    preview_host: Vec<PreviewHost>,
}

/// What a server shows of its sandboxes.
#[derive(Clone, Debug, Default)]
pub struct Previews {
    /// Names below which ports have theirs.
    pub hosts: Vec<PreviewHost>,
    /// What tokens are made with; one of this process when absent.
    pub secret: Option<PreviewSecret>,
}

impl Previews {
    /// Those of a server whose secret is in `path`, minted when it is not there: links that were
    /// given out work on after a restart.
    pub fn of(args: &PreviewArgs, path: &Path) -> anyhow::Result<Self> {
        Ok(Self { hosts: args.preview_host.clone(), secret: Some(secret(path)?) })
    }
}

fn secret(path: &Path) -> anyhow::Result<PreviewSecret> {
    match std::fs::read_to_string(path) {
        Ok(text) => PreviewSecret::from_text(&text).with_context(|| {
            format!("{} holds no secret; remove it, which ends all preview links", path.display())
        }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let secret = PreviewSecret::random()?;
            private_file::write(path, format!("{}\n", secret.to_text()).as_bytes())?;
            Ok(secret)
        }
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn links_outlive_a_restart_and_a_damaged_secret_is_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("preview-secret");
        let minted = secret(&path).unwrap();
        assert_eq!(secret(&path).unwrap(), minted);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        std::fs::write(&path, "nonsense").unwrap();
        assert!(secret(&path).is_err());
    }
}
