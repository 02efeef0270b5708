//! What a sandbox may reach, on the command line.
//!
//! A policy is read here as the server reads it, so that one that it would refuse is a usage error
//! and nothing is asked of anybody.

use std::fs::File;
use std::io::Read;
use std::net::IpAddr;
use std::path::Path;

use anyhow::Context as _;
use pandastack_policy::Policy;
use serde_json::{Value, json};

/// Longest text of a policy. The policy in it is at most a sixteenth of that.
const MAX_TEXT: u64 = 1 << 20;

/// Options of every command that makes sandboxes.
#[derive(clap::Args, Clone, Debug, Default)]
#[command(next_help_heading = "Network")]
pub struct EgressArgs {
    /// What the sandbox may reach: `none`, a policy in JSON, or a file with one [default: none,
    /// for copies what the original may]
    #[arg(long, value_name = "POLICY", value_parser = policy, conflicts_with = "allow")]
    pub egress: Option<Policy>,
    /// Let the sandbox reach this and nothing else: a host such as `pypi.org:443` or
    /// `*.example.com`, or a network such as `203.0.113.0/24`; may be repeated
    #[arg(long, value_name = "HOST[:PORT]|CIDR", value_parser = rule)]
    pub allow: Vec<Allowed>,
}

impl EgressArgs {
    /// The policy that the command line asks for, if it asks for one.
    pub fn policy(&self) -> anyhow::Result<Option<Policy>> {
        if self.allow.is_empty() { Ok(self.egress.clone()) } else { only(&self.allow).map(Some) }
    }
}

/// A rule that was written in short.
#[derive(Clone, Debug, PartialEq)]
pub struct Allowed(Value);

/// The policy of these rules.
pub fn only(rules: &[Allowed]) -> anyhow::Result<Policy> {
    let rules: Vec<_> = rules.iter().map(|rule| &rule.0).collect();
    read(&json!({ "allow": rules }).to_string()).map_err(anyhow::Error::msg)
}

/// Reads `none`, the JSON of a policy, or the name of a file with one, with or without `@`.
pub fn policy(text: &str) -> Result<Policy, String> {
    let start = text.trim_start();
    if text == "none" {
        return Ok(Policy::default());
    }
    if start.starts_with(['{', '"', '[']) {
        return read(text);
    }
    let name = text.strip_prefix('@').unwrap_or(text);
    let content = content(Path::new(name))
        .map_err(|error| format!("it is none, a policy in JSON, or a file with one: {error:#}"))?;
    read(&content)
}

fn content(path: &Path) -> anyhow::Result<String> {
    let named = || path.display().to_string();
    let mut text = String::new();
    let file = File::open(path).with_context(named)?;
    file.take(MAX_TEXT).read_to_string(&mut text).with_context(named)?;
    Ok(text)
}

fn read(text: &str) -> Result<Policy, String> {
    serde_json::from_str(text).map_err(|error| {
        let text = error.to_string();
        let place = format!(" at line {} column {}", error.line(), error.column());
        if error.is_data() { text.strip_suffix(&place).unwrap_or(&text).to_owned() } else { text }
    })
}

/// Reads a rule in short, and says what is wrong with it without the place in a policy that nobody
/// has written.
pub fn rule(text: &str) -> Result<Allowed, String> {
    let rule = short(text);
    match read(&json!({ "allow": [rule] }).to_string()) {
        Ok(_) => Ok(Allowed(rule)),
        Err(error) => Err(error.split_once(": ").map_or(error.as_str(), |(_, why)| why).to_owned()),
    }
}

/// `ADDRESS/PREFIX[:PORTS]` or `HOST[:PORTS]`. Ports may have a protocol: `ntp.org:123/udp`.
fn short(text: &str) -> Value {
    if let Some((address, rest)) = text.split_once('/')
        && address.parse::<IpAddr>().is_ok()
    {
        return match rest.split_once(':') {
            None => json!({ "cidr": text }),
            Some((prefix, ports)) => {
                json!({ "cidr": format!("{address}/{prefix}"), "ports": [ports] })
            }
        };
    }
    match text.rsplit_once(':') {
        // An IPv6 address; what is said about it is better than about its last group.
        _ if text.parse::<IpAddr>().is_ok() => json!({ "cidr": text }),
        None => json!({ "host": text }),
        Some((host, ports)) => json!({ "host": host, "ports": [ports] }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spelt(policy: &Policy) -> String {
        serde_json::to_string(policy).unwrap()
    }

    #[test]
    fn a_rule_in_short_is_the_rule_that_was_meant() {
        for (text, expected) in [
            ("pypi.org", r#"{"host":"pypi.org"}"#),
            ("PyPI.org:443", r#"{"host":"pypi.org","ports":[443]}"#),
            ("*.example.com:8000-8999", r#"{"host":"*.example.com","ports":["8000-8999"]}"#),
            ("*", r#"{"host":"*"}"#),
            ("ntp.test:123/udp", r#"{"host":"ntp.test","ports":["123/udp"]}"#),
            ("203.0.113.0/24", r#"{"cidr":"203.0.113.0/24"}"#),
            ("203.0.113.0/24:22", r#"{"cidr":"203.0.113.0/24","ports":[22]}"#),
            ("203.0.113.0/24:53/udp", r#"{"cidr":"203.0.113.0/24","ports":["53/udp"]}"#),
            ("::/0", r#"{"cidr":"::/0"}"#),
            ("2001:db8::/32:443", r#"{"cidr":"2001:db8::/32","ports":[443]}"#),
        ] {
            let rule = rule(text).unwrap();
            assert_eq!(spelt(&only(&[rule]).unwrap()), format!(r#"{{"allow":[{expected}]}}"#));
        }
    }

    #[test]
    fn what_is_no_rule_is_said_in_words() {
        for (text, error) in [
            ("", "a host name cannot be empty"),
            ("1.1.1.1", "a network has a prefix: write 1.1.1.1/32"),
            ("2001:db8::1", "a network has a prefix: write 2001:db8::1/128"),
            ("1.1.1.1:443", "this is an address"),
            ("10.1.0.0/8", "the address has bits beyond its prefix: write 10.0.0.0/8"),
            ("pypi.org:0", "a port is 1 to 65535"),
            ("pypi.org:https", "a port is 1 to 65535"),
            ("https://pypi.org", "a port is 1 to 65535"),
            ("user@pypi.org", "a host name cannot contain '@'"),
            ("pypi.org:443/udp", "443/udp is QUIC"),
        ] {
            let got = rule(text).unwrap_err();
            assert!(got.starts_with(error), "{text}: {got}");
        }
        let many = vec![rule("a.test").unwrap(); 257];
        assert!(only(&many).unwrap_err().to_string().contains("at most 256 entries"));
    }

    #[test]
    fn a_policy_is_a_word_a_text_or_a_file() {
        let open = r#"{"allow":[{"host":"pypi.org"}]}"#;
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), format!("\n{open}\n")).unwrap();
        let name = file.path().to_str().unwrap();
        for text in [open, &format!("  {open}"), name, &format!("@{name}")] {
            assert_eq!(spelt(&policy(text).unwrap()), open, "{text}");
        }
        for text in ["none", "\"none\"", r#"{"allow":[]}"#] {
            assert_eq!(policy(text).unwrap(), Policy::default(), "{text}");
        }
        for (text, error) in [
            ("None", "it is none, a policy in JSON, or a file with one: None:"),
            ("@/nowhere", "it is none, a policy in JSON, or a file with one: /nowhere:"),
            ("", "it is none, a policy in JSON, or a file with one"),
            ("{}", "egress: \"allow\" is missing"),
            ("[]", "egress: this must be"),
            ("{", "EOF while parsing"),
        ] {
            let got = policy(text).unwrap_err();
            assert!(got.starts_with(error), "{text}: {got}");
        }
        std::fs::write(file.path(), format!("{}{open}", " ".repeat(1 << 20))).unwrap();
        assert!(policy(name).is_err(), "no end of it is read");
    }
}
