//! How large a machine is.

use serde::{Deserialize, Serialize};

/// vCPUs and memory of a machine: its size class. Each class of a template is baked once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Size {
    /// Virtual CPUs, 1 to [`Size::MAX_CPU`].
    pub cpu: u32,
    /// Guest memory in MiB, a multiple of [`Size::MEMORY_STEP_MB`].
    pub memory_mb: u32,
}

impl Size {
    /// Most vCPUs of one machine.
    pub const MAX_CPU: u32 = 8;
    /// Least guest memory in MiB: the kernel and the agent need about half of it.
    pub const MIN_MEMORY_MB: u32 = 128;
    /// Most guest memory in MiB. Stays below the 3 GiB where a microvm's memory is split in two.
    pub const MAX_MEMORY_MB: u32 = 3072;
    /// Memory is rounded up to this many MiB, so that nearby requests share a bake.
    pub const MEMORY_STEP_MB: u32 = 128;

    /// The size class for a request: checks the limits and rounds memory up to the step.
    /// Signed 64-bit arguments, so that a negative or huge number in a request gets a clear answer.
    pub fn new(cpu: i64, memory_mb: i64) -> Result<Self, InvalidSize> {
        let cpu = u32::try_from(cpu)
            .ok()
            .filter(|n| (1..=Self::MAX_CPU).contains(n))
            .ok_or(InvalidSize::Cpu(cpu))?;
        let memory_mb = u32::try_from(memory_mb)
            .ok()
            .filter(|n| (Self::MIN_MEMORY_MB..=Self::MAX_MEMORY_MB).contains(n))
            .ok_or(InvalidSize::Memory(memory_mb))?
            .next_multiple_of(Self::MEMORY_STEP_MB);
        Ok(Self { cpu, memory_mb })
    }

    /// Guest memory in bytes.
    pub fn memory_bytes(self) -> u64 {
        u64::from(self.memory_mb) << 20
    }
}

/// A size outside the limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSize {
    /// Number of vCPUs out of range.
    #[error("cpu must be 1 to {max}, not {0}", max = Size::MAX_CPU)]
    Cpu(i64),
    /// Memory out of range.
    #[error(
        "memory_mb must be {min} to {max}, not {0}",
        min = Size::MIN_MEMORY_MB,
        max = Size::MAX_MEMORY_MB
    )]
    Memory(i64),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_checked_and_rounded() {
        assert_eq!(Size::new(1, 512), Ok(Size { cpu: 1, memory_mb: 512 }));
        assert_eq!(Size::new(8, 513), Ok(Size { cpu: 8, memory_mb: 640 }));
        for cpu in [i64::MIN, -1, 0, 9, i64::MAX] {
            assert_eq!(Size::new(cpu, 512), Err(InvalidSize::Cpu(cpu)));
        }
        for memory in [i64::MIN, -1, 0, 127, 3073, i64::MAX] {
            assert_eq!(Size::new(1, memory), Err(InvalidSize::Memory(memory)));
        }
    }
}
