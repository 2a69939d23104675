//! Numbers that look random and are the same in every run: Marsaglia's xorshift64.

/// A sequence of numbers.
#[derive(Debug, Clone)]
pub(crate) struct Random(u64);

impl Random {
    /// The sequence of that number.
    pub(crate) fn new(seed: u64) -> Self {
        Self(0x9e37_79b9_7f4a_7c15 ^ seed.wrapping_mul(0xbf58_476d_1ce4_e5b9))
    }

    /// Any number but zero.
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// A number below `limit`, which is not zero.
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit.max(1)
    }

    /// `count` different numbers below `limit`, in no order.
    pub(crate) fn some(&mut self, count: u64, limit: u64) -> Vec<u64> {
        let mut all: Vec<u64> = (0..limit).collect();
        for place in 0..count.min(limit) {
            let other = place + self.below(limit - place);
            all.swap(place as usize, other as usize);
        }
        all.truncate(count as usize);
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn some_numbers_are_different_and_below_the_limit() {
        let mut some = Random::new(7).some(16, 32);
        some.sort_unstable();
        some.dedup();
        assert_eq!(some.len(), 16);
        assert!(some.iter().all(|number| *number < 32));
        assert_eq!(Random::new(7).some(9, 4).len(), 4);
    }
}
