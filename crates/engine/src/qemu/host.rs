//! What this host offers the qemu engine.

use super::runtime;
use crate::EngineError;

/// The version line of this host's QEMU; without one, what to install.
pub fn installed() -> Result<String, EngineError> {
    runtime::find_program().and_then(|program| runtime::version(&program))
}
