//! The life of a sandbox, as a pure state machine.
//!
//! ```text
//!                                     wake  ┌────────────┐
//!                                  ┌────────┤ Hibernated │ no machine: files
//!                                  ▼ ┌─────▶└────────────┘◀─┐
//!             ┌──────────┐ ready   ┌─┴───────┐  pause   ┌───┴────┐
//!  create ──▶ │ Creating ├───────▶ │ Running │ ◀──────▶ │ Paused │
//!             └────┬─────┘         └────┬────┘  resume  └───┬────┘
//!                  │ failed             │ machine died      │
//!                  ▼                    ▼                   ▼
//!             ┌──────────┐  delete  ┌──────────┐  gone  ┌─────────┐
//!             │  Failed  ├────────▶ │ Stopping ├──────▶ │ Deleted │
//!             └──────────┘          └──────────┘        └─────────┘
//! ```
//!
//! Any state may go to `Stopping` (deletion needs no working guest) and any live state to
//! `Failed`. `Deleted` is final. The invariant: a transition is written to the journal before
//! it acts, so after a crash the journal names everything that may exist.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Where a sandbox is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Journalled; its machine may or may not exist yet.
    Creating,
    /// Its guest runs and has acknowledged its identity.
    Running,
    /// Its vCPUs stand still; memory is kept.
    Paused,
    /// It is files: memory, devices and disk of one instant. It has no machine and costs no memory.
    Hibernated,
    /// Being torn down.
    Stopping,
    /// Its machine ended by itself or never came up; what is left is an explanation.
    Failed,
    /// Nothing of it is left.
    Deleted,
}

impl State {
    /// Every state, for exhaustive tests and for listings.
    pub const ALL: [State; 7] = [
        State::Creating,
        State::Running,
        State::Paused,
        State::Hibernated,
        State::Stopping,
        State::Failed,
        State::Deleted,
    ];

    /// Checks one step of the diagram above.
    pub fn step(self, to: State) -> Result<State, IllegalTransition> {
        use State::*;
        let legal = matches!(
            (self, to),
            (Creating, Running)
                | (Running, Paused)
                | (Paused, Running)
                | (Running | Paused, Hibernated)
                | (Hibernated, Running)
                | (Creating | Running | Paused, Failed)
                | (Creating | Running | Paused | Hibernated | Failed, Stopping)
                | (Stopping, Deleted)
        );
        if legal { Ok(to) } else { Err(IllegalTransition { from: self, to }) }
    }

    /// The word of the REST contract.
    pub fn as_str(self) -> &'static str {
        match self {
            State::Creating => "creating",
            State::Running => "running",
            State::Paused => "paused",
            State::Hibernated => "hibernated",
            State::Stopping => "stopping",
            State::Failed => "failed",
            State::Deleted => "deleted",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for State {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        Self::ALL.into_iter().find(|s| s.as_str() == text).ok_or(())
    }
}

/// What a time to live counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TtlMode {
    /// Time since the create or the last change.
    #[default]
    Wall,
    /// Time without use.
    Idle,
}

impl TtlMode {
    /// The word of the REST contract.
    pub fn as_str(self) -> &'static str {
        match self {
            TtlMode::Wall => "wall",
            TtlMode::Idle => "idle",
        }
    }
}

impl FromStr for TtlMode {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        [TtlMode::Wall, TtlMode::Idle].into_iter().find(|mode| mode.as_str() == text).ok_or(())
    }
}

/// A step that the diagram does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a sandbox that is {from} cannot become {to}")]
pub struct IllegalTransition {
    /// The state it is in.
    pub from: State,
    /// The state that was asked for.
    pub to: State,
}

/// Why a sandbox ended. Kept with its record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EndReason {
    /// A client deleted it.
    Deleted,
    /// Its time to live ran out.
    Ttl,
    /// The guest powered off or rebooted.
    GuestShutdown,
    /// The guest kernel panicked.
    GuestPanic,
    /// The machine's process died.
    MachineDied,
    /// It never became ready.
    CreateFailed,
    /// The server that owned it was killed.
    ServerCrash,
    /// The server that owned it stopped in good order.
    ServerStopped,
}

impl EndReason {
    /// The word kept in records and shown in answers.
    pub fn as_str(self) -> &'static str {
        match self {
            EndReason::Deleted => "deleted",
            EndReason::Ttl => "ttl",
            EndReason::GuestShutdown => "guest_shutdown",
            EndReason::GuestPanic => "guest_panic",
            EndReason::MachineDied => "machine_died",
            EndReason::CreateFailed => "create_failed",
            EndReason::ServerCrash => "server_crash",
            EndReason::ServerStopped => "server_stopped",
        }
    }
}

impl FromStr for EndReason {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        use EndReason::*;
        [
            Deleted,
            Ttl,
            GuestShutdown,
            GuestPanic,
            MachineDied,
            CreateFailed,
            ServerCrash,
            ServerStopped,
        ]
        .into_iter()
        .find(|reason| reason.as_str() == text)
        .ok_or(())
    }
}

impl fmt::Display for EndReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exactly_the_drawn_steps_are_legal() {
        use State::*;
        let drawn = [
            (Creating, Running),
            (Running, Paused),
            (Paused, Running),
            (Running, Hibernated),
            (Paused, Hibernated),
            (Hibernated, Running),
            (Hibernated, Stopping),
            (Creating, Failed),
            (Running, Failed),
            (Paused, Failed),
            (Creating, Stopping),
            (Running, Stopping),
            (Paused, Stopping),
            (Failed, Stopping),
            (Stopping, Deleted),
        ];
        for from in State::ALL {
            for to in State::ALL {
                assert_eq!(from.step(to).is_ok(), drawn.contains(&(from, to)), "{from} -> {to}");
            }
        }
    }

    #[test]
    fn states_round_trip_as_text() {
        for state in State::ALL {
            assert_eq!(state.as_str().parse(), Ok(state));
        }
    }
}
