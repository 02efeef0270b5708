//! Which server the client commands talk to, by the same rules as the SDKs.
//!
//! `PANDASTACK_API` and `PANDASTACK_API_KEY` come first, then the configuration file that
//! `pandastack serve` writes, then the default address.

use std::net::IpAddr;
use std::path::Path;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

use crate::{dirs, private_file};

/// Where `serve` listens, and clients look, when nobody says otherwise.
pub const DEFAULT_LISTEN: &str = "127.0.0.1:7878";

/// A server and the key to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Base URL.
    pub url: String,
    /// API key.
    pub token: Option<String>,
    /// Who named the URL.
    pub source: Source,
}

/// Who named a URL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The environment: the user wants this one and no other.
    Environment,
    /// The configuration file.
    File,
    /// Nobody.
    Default,
}

/// The configuration file. Other programs write the key under other names, or under several.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct ConfigFile {
    api_url: Option<String>,
    token: Option<String>,
    #[serde(rename = "apiKey", skip_serializing)]
    camel_case_key: Option<String>,
    #[serde(rename = "api_key", skip_serializing)]
    snake_case_key: Option<String>,
}

impl ConfigFile {
    fn key(&self) -> Option<&String> {
        self.token.as_ref().or(self.camel_case_key.as_ref()).or(self.snake_case_key.as_ref())
    }
}

/// The server of this user.
pub fn endpoint() -> anyhow::Result<Endpoint> {
    let file = read(&dirs::client_config()?)?;
    Ok(resolve(|name| std::env::var(name).ok(), file))
}

fn resolve(env: impl Fn(&str) -> Option<String>, file: ConfigFile) -> Endpoint {
    let env = |name| env(name).filter(|value| !value.trim().is_empty());
    let token = env("PANDASTACK_API_KEY").or_else(|| file.key().cloned());
    let (url, source) = match (env("PANDASTACK_API"), file.api_url) {
        (Some(url), _) => (url, Source::Environment),
        (None, Some(url)) => (url, Source::File),
        (None, None) => (format!("http://{DEFAULT_LISTEN}"), Source::Default),
    };
    Endpoint { url, token, source }
}

fn read(path: &Path) -> anyhow::Result<ConfigFile> {
    match std::fs::read(path) {
        Ok(text) => serde_json::from_slice(&text)
            .with_context(|| format!("{} is not a valid configuration", path.display())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(ConfigFile::default()),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

/// What became of a request to write the configuration file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Written {
    /// It leads to our server now.
    Yes,
    /// It belongs to somebody else's server and was left alone.
    Foreign(String),
}

/// Points the configuration file at `path` to our server, unless it leads to one elsewhere.
pub fn write(path: &Path, api_url: &str, token: &str) -> anyhow::Result<Written> {
    // A file that cannot be understood is not ours to replace: the error names it.
    if let Some(other) = read(path)?.api_url.filter(|url| url != api_url && !is_loopback(url)) {
        return Ok(Written::Foreign(other));
    }
    let file = ConfigFile {
        api_url: Some(api_url.to_owned()),
        token: Some(token.to_owned()),
        ..ConfigFile::default()
    };
    let text = serde_json::to_vec_pretty(&file).context("cannot write the configuration")?;
    private_file::write(path, &text)?;
    Ok(Written::Yes)
}

fn is_loopback(url: &str) -> bool {
    let Ok(uri) = url.parse::<http::Uri>() else { return false };
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> ConfigFile {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn the_environment_beats_the_file_and_the_file_beats_the_default() {
        let written = file(r#"{"api_url":"http://file","token":"pds_file"}"#);
        let env = |name: &str| match name {
            "PANDASTACK_API" => Some("http://env".to_owned()),
            "PANDASTACK_API_KEY" => Some("pds_env".to_owned()),
            _ => None,
        };
        let found = resolve(env, written.clone());
        assert_eq!((found.url.as_str(), found.source), ("http://env", Source::Environment));
        assert_eq!(found.token.as_deref(), Some("pds_env"));

        let blank = |_: &str| Some(" ".to_owned());
        let found = resolve(blank, written);
        assert_eq!((found.url.as_str(), found.source), ("http://file", Source::File));
        assert_eq!(found.token.as_deref(), Some("pds_file"));

        let found = resolve(|_| None, ConfigFile::default());
        assert_eq!((found.url.as_str(), found.source), ("http://127.0.0.1:7878", Source::Default));
        assert_eq!(found.token, None);
    }

    #[test]
    fn every_spelling_of_the_key_is_read() {
        for name in ["token", "apiKey", "api_key"] {
            let parsed = file(&format!(r#"{{"{name}":"pds_x","other":1}}"#));
            assert_eq!(parsed.key().map(String::as_str), Some("pds_x"), "{name}");
        }
        let both = file(r#"{"token":"pds_a","api_key":"pds_b"}"#);
        assert_eq!(both.key().map(String::as_str), Some("pds_a"));
    }

    #[test]
    fn a_configuration_for_a_server_elsewhere_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pandastack/config.json");
        let ours = "http://127.0.0.1:7878";
        assert_eq!(write(&path, ours, "pds_1").unwrap(), Written::Yes);
        // Another port of this host: an earlier run of ours.
        assert_eq!(write(&path, "http://127.0.0.1:9000", "pds_2").unwrap(), Written::Yes);
        assert_eq!(read(&path).unwrap().token.as_deref(), Some("pds_2"));

        let elsewhere = r#"{"api_url":"https://api.example.com","token":"pds_theirs"}"#;
        std::fs::write(&path, elsewhere).unwrap();
        let foreign = Written::Foreign("https://api.example.com".to_owned());
        assert_eq!(write(&path, ours, "pds_1").unwrap(), foreign);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), elsewhere);
    }

    #[test]
    fn only_this_host_is_loopback() {
        for url in ["http://127.0.0.1:1", "http://[::1]:7878/", "http://localhost"] {
            assert!(is_loopback(url), "{url}");
        }
        for url in ["http://localhost.example.com", "https://10.0.0.1", "nonsense", ""] {
            assert!(!is_loopback(url), "{url}");
        }
    }
}
