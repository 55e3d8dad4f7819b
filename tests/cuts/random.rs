//! Random numbers that both the worker and the judge can draw.

#[derive(Clone)]
pub struct Random(u64);

impl From<u64> for Random {
    fn from(seed: u64) -> Random {
        // Spread, so that neighbouring seeds begin differently.
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        random.below(2);
        random
    }
}

impl Random {
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % limit
    }

    pub fn one_in(&mut self, number: u64) -> bool {
        self.below(number) == 0
    }
}
