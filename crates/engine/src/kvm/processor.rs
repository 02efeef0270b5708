//! The host's processor, as far as a bake depends on it.
//!
//! The monitor compares exactly, by what KVM says, before it restores anything. This is the coarse
//! part, which the kernel prints for everybody: it keeps bakes of different hosts apart by their
//! keys, and tells people what a bake was made on.

use std::fs;

/// What `/proc/cpuinfo` says of the first processor.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Processor {
    /// Vendor, family, model and stepping.
    model: String,
    /// Name for people.
    name: String,
    /// Features, sorted.
    flags: Vec<String>,
}

impl Processor {
    /// This host's.
    pub fn of_host() -> Self {
        Self::parse(&fs::read_to_string("/proc/cpuinfo").unwrap_or_default())
    }

    fn parse(text: &str) -> Self {
        let first = text.split("\n\n").next().unwrap_or_default();
        let field = |name: &str| {
            first
                .lines()
                .filter_map(|line| line.split_once(':'))
                .find(|(key, _)| key.trim() == name)
                .map(|(_, value)| value.trim().to_owned())
                .unwrap_or_default()
        };
        let model = ["vendor_id", "cpu family", "model", "stepping"].map(field).join("/");
        let mut flags: Vec<_> = field("flags").split_whitespace().map(str::to_owned).collect();
        flags.sort_unstable();
        Self { model, name: field("model name"), flags }
    }

    /// Everything that makes it another processor, as one word.
    pub fn fingerprint(&self) -> String {
        let flags = blake3::hash(self.flags.join(" ").as_bytes());
        format!("{}/{}", self.model, &flags.to_hex()[..16])
    }

    /// For people.
    pub fn describe(&self) -> String {
        format!("{} ({})", self.name, self.model)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "processor\t: 0\nvendor_id\t: AuthenticAMD\ncpu family\t: 23\n\
                        model\t\t: 1\nmodel name\t: AMD EPYC Processor\nstepping\t: 2\n\
                        cpu MHz\t\t: 2445.400\nflags\t\t: fpu svm sse2\n\n\
                        processor\t: 1\nvendor_id\t: other\n";

    #[test]
    fn what_a_bake_depends_on_is_read_and_what_changes_by_itself_is_not() {
        let one = Processor::parse(TEXT);
        assert_eq!(one.model, "AuthenticAMD/23/1/2");
        assert_eq!(one.describe(), "AMD EPYC Processor (AuthenticAMD/23/1/2)");
        let later = Processor::parse(&TEXT.replace("2445.400", "1500.000"));
        assert_eq!(one.fingerprint(), later.fingerprint());
        let sorted = Processor::parse(&TEXT.replace("fpu svm sse2", "svm sse2 fpu"));
        assert_eq!(one.fingerprint(), sorted.fingerprint());
        for (from, to) in [("fpu svm", "fpu"), ("stepping\t: 2", "stepping\t: 3"), ("23", "25")] {
            let other = Processor::parse(&TEXT.replacen(from, to, 1));
            assert_ne!(one.fingerprint(), other.fingerprint(), "{from} → {to}");
        }
    }

    #[test]
    fn this_host_has_one() {
        assert!(Processor::of_host().model.len() > 3);
        assert_eq!(Processor::parse("").model, "///");
    }
}
