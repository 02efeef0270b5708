//! The device status (virtio 1.2, sections 2.1 and 3.1): how far driver and device have come.
//!
//! **There is one way up, one step at a time.** Whatever else a driver writes is ignored, and it
//! reads that nothing happened.
//!
//! ```text
//!                    ┌──────────────── write 0, from everywhere: reset
//!                    ▼
//!                    0
//!                    │ +ACKNOWLEDGE
//!                    ▼
//!                    1
//!                    │ +DRIVER
//!                    ▼
//!                    3      DriverFeatures can be written
//!                    │ +FEATURES_OK, if VERSION_1 was accepted and nothing that is not offered
//!                    ▼
//!                   0xb     queue registers can be written
//!                    │ +DRIVER_OK: the rings are checked
//!           good     │     wrong
//!            ┌───────┴────────┐
//!            ▼     broken     ▼
//!           0xf ───────────▶ 0x4f   +DEVICE_NEEDS_RESET: stands still
//!        the device works
//!
//!  +FAILED (0x80), from everywhere: stands still, only a reset gets out of it
//! ```

use serde::{Deserialize, Serialize};

/// The device status field (virtio 1.2, section 2.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status(pub(super) u8);

impl Status {
    /// The guest has noticed the device.
    pub const ACKNOWLEDGE: u8 = 1;
    /// It has a driver for it.
    pub const DRIVER: u8 = 2;
    /// The driver works.
    pub const DRIVER_OK: u8 = 4;
    /// Features are agreed on.
    pub const FEATURES_OK: u8 = 8;
    /// The device cannot go on.
    pub const NEEDS_RESET: u8 = 0x40;
    /// The driver gave up.
    pub const FAILED: u8 = 0x80;

    /// The way up, step by step.
    const STEPS: [u8; 5] = [
        0,
        Self::ACKNOWLEDGE,
        Self::ACKNOWLEDGE | Self::DRIVER,
        Self::ACKNOWLEDGE | Self::DRIVER | Self::FEATURES_OK,
        Self::ACKNOWLEDGE | Self::DRIVER | Self::FEATURES_OK | Self::DRIVER_OK,
    ];

    /// As the register reads.
    pub fn bits(self) -> u8 {
        self.0
    }

    /// Whether all of `bits` are set.
    pub(super) fn has(self, bits: u8) -> bool {
        self.0 & bits == bits
    }

    /// Whether none of `bits` is set.
    pub(super) fn lacks(self, bits: u8) -> bool {
        self.0 & bits == 0
    }

    /// The device works on its queues.
    pub fn is_live(self) -> bool {
        self.has(Self::DRIVER_OK) && self.lacks(Self::NEEDS_RESET | Self::FAILED)
    }

    /// The device cannot go on.
    pub(super) fn need_reset(&mut self) {
        self.0 |= Self::NEEDS_RESET;
    }

    /// Features can be accepted.
    pub(super) fn is_negotiating(self) -> bool {
        self.has(Self::DRIVER) && self.lacks(Self::FEATURES_OK | Self::FAILED)
    }

    /// Queues can be set up.
    pub(super) fn is_configuring(self) -> bool {
        self.has(Self::FEATURES_OK) && self.lacks(Self::DRIVER_OK | Self::FAILED)
    }

    /// What it is after the driver wrote `written`; `agreed` says whether the features are fine.
    pub(super) fn after(self, written: u32, agreed: bool) -> Self {
        if written == 0 {
            return Self(0);
        }
        let Ok(written) = u8::try_from(written) else { return self };
        // Drivers add to what they read, and it is not theirs to clear.
        let (wanted, now) = (written & !Self::NEEDS_RESET, self.0 & !Self::NEEDS_RESET);
        let next = Self::STEPS.windows(2).find(|step| step[0] == now).map(|step| step[1]);
        let disagrees = wanted & !now & Self::FEATURES_OK != 0 && !agreed;
        match wanted {
            _ if self.has(Self::FAILED) => self,
            wanted if wanted == now | Self::FAILED => Self(self.0 | Self::FAILED),
            wanted if Some(wanted) == next && !disagrees => Self(wanted),
            _ => self,
        }
    }

    /// Whether a device can have it at all.
    pub(super) fn is_possible(self) -> bool {
        let step = self.0 & !(Self::NEEDS_RESET | Self::FAILED);
        Self::STEPS.contains(&step) && (self.lacks(Self::NEEDS_RESET) || self.has(Self::DRIVER_OK))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn possible() -> impl Iterator<Item = Status> {
        (0..=u8::MAX).map(Status).filter(|status| status.is_possible())
    }

    /// Every step that a driver can take upwards: from, what it writes.
    const UP: [(u8, u32); 4] = [(0, 1), (1, 3), (3, 0xb), (0xb, 0xf)];

    #[test]
    fn these_are_all_statuses_there_are() {
        let all: Vec<u8> = possible().map(Status::bits).collect();
        assert_eq!(all, [0, 1, 3, 0xb, 0xf, 0x4f, 0x80, 0x81, 0x83, 0x8b, 0x8f, 0xcf]);
    }

    #[test]
    fn every_write_to_every_status_does_what_the_table_says() {
        for (from, written, agreed) in possible().flat_map(|from| {
            (0..0x400).flat_map(move |written| [(from, written, false), (from, written, true)])
        }) {
            let was = from.bits();
            let failed = was & 0x80 != 0;
            // The device's own bit may come back or not.
            let same = |value: u32| written == value || written == value | 0x40;
            let up = UP.iter().find(|(at, value)| *at == was && same(*value));
            let expected = match up {
                _ if written == 0 => 0,
                _ if failed => was,
                _ if same(u32::from(was & !0x40) | 0x80) => was | 0x80,
                Some((3, _)) if !agreed => was,
                Some((_, value)) => *value as u8,
                None => was,
            };
            let after = from.after(written, agreed);
            assert_eq!(after.bits(), expected, "{written:#x} to {was:#x}, agreed: {agreed}");
            assert!(after.is_possible());
        }
    }
}
