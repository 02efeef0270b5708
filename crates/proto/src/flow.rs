//! Both ends of a credit window. Pure counters: the caller moves the bytes.

use crate::frame::{DATA_OVERHEAD, INITIAL_WINDOW, MAX_DATA};

/// A window was violated by the other side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WindowError {
    /// More data than was granted.
    #[error("more data than was granted")]
    Exceeded,
    /// More credit than a window can hold.
    #[error("more credit than a window can hold")]
    Overflow,
}

/// What a DATA frame with `len` bytes costs. A payload is short, so this
/// cannot wrap.
fn cost(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX).saturating_add(DATA_OVERHEAD)
}

/// The sender's half.
#[derive(Clone, Copy, Debug)]
pub struct SendWindow {
    left: u32,
}

impl Default for SendWindow {
    fn default() -> Self {
        Self { left: INITIAL_WINDOW }
    }
}

impl SendWindow {
    /// How many bytes one DATA frame may carry now; 0 means wait for credit.
    pub fn allowance(&self) -> usize {
        (self.left.saturating_sub(DATA_OVERHEAD) as usize).min(MAX_DATA)
    }

    /// Accounts for a frame of at most [`SendWindow::allowance`] bytes.
    pub fn spend(&mut self, len: usize) {
        self.left = self.left.saturating_sub(cost(len));
    }

    /// Takes credit from the other side.
    pub fn grant(&mut self, credit: u32) -> Result<(), WindowError> {
        let left = self.left.checked_add(credit).ok_or(WindowError::Overflow)?;
        // Credit only gives back what was spent, so the window never grows beyond its start.
        if left > INITIAL_WINDOW {
            return Err(WindowError::Overflow);
        }
        self.left = left;
        Ok(())
    }
}

/// The receiver's half.
#[derive(Clone, Copy, Debug)]
pub struct RecvWindow {
    left: u32,
    owed: u32,
}

impl Default for RecvWindow {
    fn default() -> Self {
        Self { left: INITIAL_WINDOW, owed: 0 }
    }
}

impl RecvWindow {
    /// Accounts for a frame that arrived.
    pub fn take(&mut self, len: usize) -> Result<(), WindowError> {
        self.left = self.left.checked_sub(cost(len)).ok_or(WindowError::Exceeded)?;
        Ok(())
    }

    /// Accounts for a frame's bytes that were consumed. Returns credit to send once it is worth
    /// a frame.
    #[must_use]
    pub fn release(&mut self, len: usize) -> Option<u32> {
        self.owed = self.owed.saturating_add(cost(len));
        if self.owed < INITIAL_WINDOW / 2 {
            return None;
        }
        let credit = std::mem::take(&mut self.owed);
        self.left = self.left.saturating_add(credit);
        Some(credit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// A sender that respects its window never violates the receiver's, and never starves.
        #[test]
        fn both_halves_agree(sizes in proptest::collection::vec(0usize..MAX_DATA, 1..400)) {
            let (mut tx, mut rx) = (SendWindow::default(), RecvWindow::default());
            let mut queue = std::collections::VecDeque::new();
            for want in sizes {
                let len = want.min(tx.allowance());
                if len == 0 {
                    let mut granted = false;
                    while let Some(done) = queue.pop_front() {
                        if let Some(credit) = rx.release(done) {
                            tx.grant(credit).unwrap();
                            granted = true;
                        }
                    }
                    prop_assert!(granted || tx.allowance() > 0);
                    continue;
                }
                tx.spend(len);
                rx.take(len).unwrap();
                queue.push_back(len);
            }
        }
    }

    #[test]
    fn tiny_frames_use_the_window_up() {
        let mut rx = RecvWindow::default();
        let frames = (0..).take_while(|_| rx.take(1).is_ok()).count();
        assert!(frames <= (INITIAL_WINDOW / DATA_OVERHEAD) as usize);
    }

    #[test]
    fn credit_that_was_never_spent_is_refused() {
        assert_eq!(SendWindow::default().grant(1), Err(WindowError::Overflow));
        assert_eq!(SendWindow::default().grant(u32::MAX), Err(WindowError::Overflow));
    }
}
