//! Who a guest becomes.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use pandastack_proto as proto;

use super::AgentError;

/// Everything that two guests made of one snapshot must not share, except the wall clock, which is
/// taken when the identity is sent.
#[derive(Clone)]
pub struct Identity {
    /// Authorises every request after the resume.
    pub token: proto::Token,
    /// Host name.
    pub hostname: String,
    /// 32 lower-case hexadecimal digits.
    pub machine_id: String,
    /// A UUID, version 4.
    pub boot_id: String,
    /// For the guest kernel's generator.
    pub entropy: Vec<u8>,
}

impl Identity {
    /// Bytes of entropy: twice what the kernel's generator keeps.
    const ENTROPY_LEN: usize = 64;

    /// A fresh identity from the host's generator.
    pub fn random(hostname: &str) -> Result<Self, AgentError> {
        let mut token = [0; proto::TOKEN_LEN];
        let mut machine_id = [0; 16];
        let mut boot_id = [0; 16];
        let mut entropy = vec![0; Self::ENTROPY_LEN];
        for bytes in [&mut token[..], &mut machine_id, &mut boot_id, &mut entropy] {
            getrandom::fill(bytes).map_err(|_| AgentError::Entropy)?;
        }
        // Version 4 of RFC 9562, which is also what machine-id(5) asks for.
        for id in [&mut machine_id, &mut boot_id] {
            id[6] = (id[6] & 0x0F) | 0x40;
            id[8] = (id[8] & 0x3F) | 0x80;
        }
        Ok(Self {
            token,
            hostname: hostname.to_owned(),
            machine_id: hex(&machine_id),
            boot_id: uuid(&boot_id),
            entropy,
        })
    }

    /// The message, with the time of now in it.
    pub(super) fn message(&self) -> proto::Identity {
        proto::Identity {
            token: self.token,
            hostname: self.hostname.clone(),
            machine_id: self.machine_id.clone(),
            boot_id: self.boot_id.clone(),
            entropy: self.entropy.clone(),
            unix_ns: unix_ns(SystemTime::now()),
        }
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("hostname", &self.hostname).finish_non_exhaustive()
    }
}

/// Nanoseconds since the Unix epoch; 0 for a clock that is set to before it.
pub(super) fn unix_ns(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn uuid(bytes: &[u8; 16]) -> String {
    let parts = [&bytes[..4], &bytes[4..6], &bytes[6..8], &bytes[8..10], &bytes[10..]];
    parts.map(hex).join("-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identities_differ_and_have_the_right_shape() {
        let (a, b) = (Identity::random("a").unwrap(), Identity::random("a").unwrap());
        assert_ne!(a.token, b.token);
        assert_ne!(a.machine_id, b.machine_id);
        assert_ne!(a.boot_id, b.boot_id);
        assert_ne!(a.entropy, b.entropy);
        assert_eq!(a.machine_id.len(), 32);
        assert_eq!(a.boot_id.len(), 36);
        assert_eq!(&a.boot_id[14..15], "4");
        assert_eq!(format!("{a:?}"), "Identity { hostname: \"a\", .. }");
    }
}
