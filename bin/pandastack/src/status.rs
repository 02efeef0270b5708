//! How the program ends: its exit status, and the errors that have one of their own.

use std::process::ExitCode;

use crate::client::ClientError;
use crate::output::OutputClosed;
use crate::signals::Interrupted;

/// An exit status.
///
/// A command in a sandbox hands its own through; ours stay out of the way of the usual ones, as
/// `timeout(1)` and container runtimes do it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status(u8);

impl Status {
    /// Everything went well.
    pub const SUCCESS: Self = Self(0);
    /// The answer to a question was no: `doctor` found something missing.
    pub const NEGATIVE: Self = Self(1);
    /// A command ran into its deadline.
    pub const TIMED_OUT: Self = Self(124);
    /// PandaStack itself failed, not the command.
    pub const OURS: Self = Self(125);

    /// The status of a command in a guest. The number comes from there, so it may be anything.
    pub fn of_command(code: i32) -> Self {
        Self(u8::try_from(code).unwrap_or(u8::MAX))
    }

    /// The status shells give to a program that a signal ended.
    pub fn of_signal(number: u8) -> Self {
        Self(128 + number)
    }
}

impl From<Status> for ExitCode {
    fn from(status: Status) -> Self {
        Self::from(status.0)
    }
}

impl From<Status> for i32 {
    fn from(status: Status) -> Self {
        status.0.into()
    }
}

/// Explains `error` on standard error, unless it needs no words, and gives it its status.
pub fn report(error: &anyhow::Error, json: bool) -> Status {
    if let Some(Interrupted(signal)) = error.downcast_ref() {
        return Status::of_signal(signal.number());
    }
    if error.is::<OutputClosed>() {
        // The reader has seen enough, as with `… | head`.
        return Status::of_signal(13);
    }
    let hint = error.chain().find_map(|cause| cause.downcast_ref::<ClientError>()?.hint());
    if json {
        eprintln!("{}", serde_json::json!({"error": format!("{error:#}"), "hint": hint}));
    } else {
        eprintln!("pandastack: {error:#}");
        if let Some(hint) = hint {
            eprintln!("  hint: {hint}");
        }
    }
    Status::OURS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_cannot_pretend_success_with_a_strange_number() {
        assert_eq!(Status::of_command(7), Status(7));
        for strange in [-1, 256, i32::MIN, i32::MAX] {
            assert_eq!(Status::of_command(strange), Status(255));
        }
    }
}
