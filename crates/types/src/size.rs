//! How large a machine is.

use serde::{Deserialize, Serialize};

/// vCPUs, memory and disk of a machine: its size class. Each class of a template is baked once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Size {
    /// Virtual CPUs, 1 to [`Size::MAX_CPU`].
    pub cpu: u32,
    /// Guest memory in MiB, a multiple of [`Size::MEMORY_STEP_MB`].
    pub memory_mb: u32,
    /// Writable disk in MiB, a multiple of [`Size::DISK_STEP_MB`].
    pub disk_mb: u32,
}

/// The largest machine that an operator lets anybody have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SizeLimits {
    /// vCPUs.
    pub cpu: u32,
    /// Guest memory in MiB.
    pub memory_mb: u32,
    /// Writable disk in MiB.
    pub disk_mb: u32,
}

impl SizeLimits {
    /// What is possible at all.
    pub const POSSIBLE: Self =
        Self { cpu: Size::MAX_CPU, memory_mb: Size::MAX_MEMORY_MB, disk_mb: Size::MAX_DISK_MB };

    /// These limits, or what is possible where that is less. Memory and disk go up to the step, so
    /// that a limit can be asked for.
    pub fn possible(self) -> Self {
        let most = Self::POSSIBLE;
        let stepped = |asked: u32, step, most: u32| match asked < most {
            true => asked.next_multiple_of(step).min(most),
            false => most,
        };
        Self {
            cpu: self.cpu.clamp(1, most.cpu),
            memory_mb: stepped(self.memory_mb, Size::MEMORY_STEP_MB, most.memory_mb),
            disk_mb: stepped(self.disk_mb, Size::DISK_STEP_MB, most.disk_mb),
        }
    }
}

impl Default for SizeLimits {
    fn default() -> Self {
        Self { disk_mb: 20 << 10, ..Self::POSSIBLE }
    }
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
    /// Least writable disk in MiB.
    pub const MIN_DISK_MB: u32 = 64;
    /// Most writable disk in MiB.
    pub const MAX_DISK_MB: u32 = 65_536;
    /// The disk is rounded up to this many MiB, as memory is.
    pub const DISK_STEP_MB: u32 = 256;

    /// The size class for a request: checks what is possible and rounds memory and disk up to their
    /// steps. Signed 64-bit arguments, so that a negative or huge number in a request gets a clear
    /// answer.
    pub fn new(cpu: i64, memory_mb: i64, disk_mb: i64) -> Result<Self, InvalidSize> {
        Self::within(SizeLimits::POSSIBLE, Self::MIN_DISK_MB, [cpu, memory_mb, disk_mb])
    }

    /// The same, below an operator's limits and with at least `least_disk_mb` of disk.
    pub fn within(
        limits: SizeLimits,
        least_disk_mb: u32,
        [cpu, memory_mb, disk_mb]: [i64; 3],
    ) -> Result<Self, InvalidSize> {
        let SizeLimits { cpu: most_cpu, memory_mb: most_memory, disk_mb: most_disk } =
            limits.possible();
        let refused = |what, least, most, asked| InvalidSize { what, least, most, asked };
        let between = |what, asked: i64, least: u32, most: u32| {
            let found = u32::try_from(asked).ok().filter(|n| (least..=most).contains(n));
            found.ok_or(refused(what, least, most, asked))
        };
        let memory = between("memory_mb", memory_mb, Self::MIN_MEMORY_MB, most_memory)?;
        let disk = between("disk_mb", disk_mb, least_disk_mb, most_disk)?;
        Ok(Self {
            cpu: between("cpu", cpu, 1, most_cpu)?,
            memory_mb: memory.next_multiple_of(Self::MEMORY_STEP_MB),
            disk_mb: disk.next_multiple_of(Self::DISK_STEP_MB),
        })
    }

    /// Guest memory in bytes.
    pub fn memory_bytes(self) -> u64 {
        u64::from(self.memory_mb) << 20
    }

    /// Writable disk in bytes.
    pub fn disk_bytes(self) -> u64 {
        u64::from(self.disk_mb) << 20
    }
}

impl std::fmt::Display for Size {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { cpu, memory_mb, disk_mb } = self;
        write!(f, "{cpu} vCPU, {memory_mb} MiB of memory, {disk_mb} MiB of disk")
    }
}

/// A size outside the limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} must be {least} to {most}, not {asked}")]
pub struct InvalidSize {
    /// The field that is out of range.
    pub what: &'static str,
    /// Its least value.
    pub least: u32,
    /// Its largest value.
    pub most: u32,
    /// What was asked for.
    pub asked: i64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_checked_and_rounded() {
        assert_eq!(Size::new(1, 512, 2048), Ok(Size { cpu: 1, memory_mb: 512, disk_mb: 2048 }));
        assert_eq!(Size::new(8, 513, 2049), Ok(Size { cpu: 8, memory_mb: 640, disk_mb: 2304 }));
        let field = |size: Result<Size, InvalidSize>| size.map_err(|error| error.what);
        for cpu in [i64::MIN, -1, 0, 9, i64::MAX] {
            assert_eq!(field(Size::new(cpu, 512, 2048)), Err("cpu"), "{cpu}");
        }
        for memory in [i64::MIN, -1, 0, 127, 3073, i64::MAX] {
            assert_eq!(field(Size::new(1, memory, 2048)), Err("memory_mb"), "{memory}");
        }
        for disk in [i64::MIN, -1, 0, 63, 65_537, i64::MAX] {
            assert_eq!(field(Size::new(1, 512, disk)), Err("disk_mb"), "{disk}");
        }
    }

    #[test]
    fn an_operators_limits_are_named() {
        let limits = SizeLimits { cpu: 2, memory_mb: 1000, disk_mb: 3000 };
        let within = |asked| Size::within(limits, 2048, asked);
        assert_eq!(within([2, 1000, 3000]), Size::new(2, 1024, 3072), "limits can be asked for");
        for (asked, text) in [
            ([3, 512, 2048], "cpu must be 1 to 2, not 3"),
            ([1, 1025, 2048], "memory_mb must be 128 to 1024, not 1025"),
            ([1, 512, 2047], "disk_mb must be 2048 to 3072, not 2047"),
            ([1, 512, 3073], "disk_mb must be 2048 to 3072, not 3073"),
        ] {
            assert_eq!(within(asked).unwrap_err().to_string(), text);
        }
    }

    #[test]
    fn limits_are_never_beyond_what_is_possible() {
        let huge = SizeLimits { cpu: u32::MAX, memory_mb: u32::MAX, disk_mb: u32::MAX };
        assert_eq!(huge.possible(), SizeLimits::POSSIBLE);
        assert_eq!(SizeLimits { cpu: 0, ..huge }.possible().cpu, 1);
        assert_eq!(SizeLimits::default().possible(), SizeLimits::default());
    }
}
