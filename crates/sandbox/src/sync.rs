//! Locking without a word about poison.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks a mutex of plain data. Every critical section of this crate leaves its data valid at
/// each step, so a panic in one of them is no reason to take the server down.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
