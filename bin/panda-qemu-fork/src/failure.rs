//! Why a fork did not happen.

use libc::c_int;
use pandastack_fork::birth::BirthError;
use pandastack_fork::{Answer, Step};

/// A failed step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Where.
    pub step: Step,
    /// Why.
    pub errno: c_int,
    /// The descriptor or thread it was about, or -1.
    pub subject: i32,
}

impl Failure {
    /// As it is told to the supervisor.
    pub fn answer(self) -> Answer {
        Answer::Failed { step: self.step, errno: self.errno, subject: self.subject }
    }
}

impl From<BirthError> for Failure {
    fn from(error: BirthError) -> Self {
        Self { step: error.step, errno: error.errno, subject: -1 }
    }
}
