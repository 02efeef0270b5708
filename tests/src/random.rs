//! Chance that repeats: whatever a test decides by it is the same for the same seed.

/// xorshift64*: small, and the same everywhere for a seed.
pub struct Random(u64);

impl Random {
    /// Begins with a seed, which need not be a good one.
    pub fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    /// Any number.
    pub fn draw(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// One of `0..bound`.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.draw() % bound.max(1) as u64) as usize
    }

    /// True one time out of so many.
    pub fn one_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }

    /// So many bytes.
    pub fn bytes(&mut self, length: usize) -> Vec<u8> {
        let words = (0..length.div_ceil(8)).flat_map(|_| self.draw().to_le_bytes());
        words.take(length).collect()
    }
}
