//! The fuzzer's bytes as choices. When they are used up every choice is the first one, so that short
//! inputs mean plain images and short sessions.

use arbitrary::Unstructured;

/// Choices left to make.
#[derive(Debug)]
pub struct Input<'a>(Unstructured<'a>);

impl<'a> Input<'a> {
    /// Takes over the fuzzer's bytes.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(Unstructured::new(bytes))
    }

    /// Whether all that follows is the first choice.
    pub fn is_used_up(&self) -> bool {
        self.0.is_empty()
    }

    /// A number below `limit`; 0 for a limit of 0.
    pub fn below(&mut self, limit: u64) -> u64 {
        let last = limit.saturating_sub(1);
        self.0.int_in_range(0..=last).unwrap_or(0)
    }

    /// True for one choice in `n`, and not for the first.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) + 1 == n
    }

    /// One of these.
    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        let at = self.below(from.len() as u64) as usize;
        from[at]
    }

    /// Any number.
    pub fn number(&mut self) -> u64 {
        self.0.arbitrary().unwrap_or(0)
    }

    /// Up to `most` bytes.
    pub fn bytes(&mut self, most: u64) -> Vec<u8> {
        let len = self.below(most + 1) as usize;
        let len = len.min(self.0.len());
        self.0.bytes(len).unwrap_or_default().to_vec()
    }

    /// A number that code trips over: ends of types, of sectors, of blocks, and the neighbours of
    /// what the image itself holds (`near`).
    pub fn odd(&mut self, near: &[u64]) -> u64 {
        const ODD: [u64; 20] = [
            0,
            1,
            511,
            512,
            1024,
            1536,
            4096,
            1 << 20,
            2 << 20,
            1 << 31,
            0xFFFF_FFFE,
            0xFFFF_FFFF,
            1 << 32,
            1 << 40,
            1 << 44,
            1 << 63,
            u64::MAX - 511,
            u64::MAX - 1,
            u64::MAX,
            0xFF,
        ];
        let base = match self.below(4) {
            0 => return self.number(),
            1 if !near.is_empty() => self.pick(near),
            _ => self.pick(&ODD),
        };
        let step = self.pick(&[0, 0, 0, 1, 512, 4096]);
        if self.one_in(2) {
            base.wrapping_sub(step)
        } else {
            base.wrapping_add(step)
        }
    }
}
