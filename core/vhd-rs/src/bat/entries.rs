//! The entries of a table in as much memory as there are: what is not allocated costs almost
//! nothing, and finding an entry takes the same time however many there are, or less.
//!
//! ```text
//!  few    sorted pairs of block and entry              8 bytes an entry
//!  many   chunks of 512 blocks that have entries       4 bytes an entry, 130 a chunk
//!           present: a bit per block
//!           entries: those of the present blocks, so the nth is found by counting bits before it
//! ```
//! A table of 1 TiB (524,288 blocks) takes 8 KiB with a thousand entries wherever they are, 2.2 MiB
//! with all of them.

/// Blocks of a chunk.
const CHUNK: u32 = 512;
const WORDS: usize = CHUNK as usize / 64;

/// Most pairs, for the time that inserting one takes.
const PAIRS_MAX: usize = 8192;

/// Blocks of a table per pair, above which pairs take less memory than chunks.
const BLOCKS_PER_PAIR: usize = 32;

/// Entries by block. Blocks have numbers below a length that the owner keeps.
#[derive(Debug, Clone)]
pub(super) enum Entries {
    Few(Vec<(u32, u32)>),
    Many(Vec<Option<Box<Chunk>>>),
}

#[derive(Debug, Clone, Default)]
pub(super) struct Chunk {
    present: [u64; WORDS],
    /// Bits in the words before each.
    before: [u16; WORDS],
    entries: Vec<u32>,
}

impl Chunk {
    /// Where the block's entry is or would be, and whether it is there.
    fn rank(&self, block: u32) -> (usize, bool) {
        let (word, bit) = ((block % CHUNK / 64) as usize, 1u64 << (block % 64));
        let below = (self.present[word] & (bit - 1)).count_ones();
        let rank = usize::from(self.before[word]) + below as usize;
        (rank, self.present[word] & bit != 0)
    }

    fn get(&self, block: u32) -> Option<u32> {
        if self.entries.len() == CHUNK as usize {
            return self.entries.get((block % CHUNK) as usize).copied();
        }
        let (rank, there) = self.rank(block);
        self.entries.get(rank).copied().filter(|_| there)
    }

    fn set(&mut self, block: u32, entry: Option<u32>) {
        let (rank, there) = self.rank(block);
        match (there, entry) {
            (true, Some(entry)) => self.entries[rank] = entry,
            (false, Some(entry)) => self.entries.insert(rank, entry),
            (true, None) => {
                self.entries.remove(rank);
            }
            (false, None) => {}
        }
        if there != entry.is_some() {
            let word = (block % CHUNK / 64) as usize;
            self.present[word] ^= 1 << (block % 64);
            let mut bits = self.before[word];
            for at in word..WORDS {
                self.before[at] = bits;
                bits += self.present[at].count_ones() as u16;
            }
        }
    }

    fn iter(&self) -> impl Iterator<Item = (u32, u32)> + '_ {
        let present = self.present.iter().zip((0u32..).step_by(64));
        let blocks = present.flat_map(|(&word, first)| {
            (0..64)
                .filter(move |bit| word & (1 << bit) != 0)
                .map(move |bit| first + bit)
        });
        blocks.zip(self.entries.iter().copied())
    }
}

impl Entries {
    pub(super) fn new() -> Self {
        Self::Few(Vec::new())
    }

    fn chunks(blocks: u32) -> Self {
        let mut chunks = Vec::new();
        chunks.resize_with(blocks.div_ceil(CHUNK) as usize, || None);
        Self::Many(chunks)
    }

    #[inline]
    pub(super) fn get(&self, block: u32) -> Option<u32> {
        match self {
            Self::Few(pairs) => {
                let found = pairs.binary_search_by_key(&block, |&(block, _)| block);
                found.ok().map(|at| pairs[at].1)
            }
            Self::Many(chunks) => chunks.get((block / CHUNK) as usize)?.as_ref()?.get(block),
        }
    }

    /// Changes an entry of a table of `blocks`; the block must be one of them.
    pub(super) fn set(&mut self, block: u32, entry: Option<u32>, blocks: u32) {
        let full = matches!(self, Self::Few(pairs) if pairs.len() >= pairs_max(blocks));
        if full && entry.is_some() {
            let mut many = Self::chunks(blocks);
            self.iter()
                .for_each(|(block, entry)| many.put(block, Some(entry)));
            *self = many;
        }
        self.put(block, entry);
    }

    fn put(&mut self, block: u32, entry: Option<u32>) {
        match self {
            Self::Few(pairs) => {
                let at = pairs.binary_search_by_key(&block, |&(block, _)| block);
                match (at, entry) {
                    (Ok(at), Some(entry)) => pairs[at].1 = entry,
                    (Err(at), Some(entry)) => pairs.insert(at, (block, entry)),
                    (Ok(at), None) => {
                        pairs.remove(at);
                    }
                    (Err(_), None) => {}
                }
            }
            Self::Many(chunks) => {
                let at = (block / CHUNK) as usize;
                if at >= chunks.len() {
                    chunks.resize_with(at + 1, || None);
                }
                if entry.is_some() || chunks[at].is_some() {
                    chunks[at].get_or_insert_default().set(block, entry);
                }
            }
        }
    }

    /// All of them in order of their blocks.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, u32)> + '_ {
        let (few, many): (&[_], &[Option<Box<Chunk>>]) = match self {
            Self::Few(pairs) => (pairs, &[]),
            Self::Many(chunks) => (&[], chunks),
        };
        let numbered = (0u32..).step_by(CHUNK as usize).zip(many);
        let many = numbered.filter_map(|(first, chunk)| Some((first, chunk.as_ref()?)));
        let many = many.flat_map(|(first, chunk)| {
            let inside = chunk.iter();
            inside.map(move |(block, entry)| (first + block, entry))
        });
        few.iter().copied().chain(many)
    }

    pub(super) fn len(&self) -> usize {
        match self {
            Self::Few(pairs) => pairs.len(),
            Self::Many(chunks) => {
                let lens = chunks.iter().flatten().map(|chunk| chunk.entries.len());
                lens.sum()
            }
        }
    }

    /// Bytes it takes, the allocator's own aside.
    pub(super) fn memory_bytes(&self) -> usize {
        match self {
            Self::Few(pairs) => pairs.capacity() * size_of::<(u32, u32)>(),
            Self::Many(chunks) => {
                let inside = chunks.iter().flatten();
                let inside = inside.map(|chunk| size_of::<Chunk>() + chunk.entries.capacity() * 4);
                chunks.capacity() * size_of::<Option<Box<Chunk>>>() + inside.sum::<usize>()
            }
        }
    }
}

fn pairs_max(blocks: u32) -> usize {
    (blocks as usize / BLOCKS_PER_PAIR).min(PAIRS_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    /// A generator of numbers that look random (Marsaglia's xorshift).
    fn numbers(mut state: u64) -> impl FnMut(u64) -> u64 {
        move |below| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state % below
        }
    }

    #[test]
    fn entries_are_a_map_whatever_their_form() {
        for (blocks, steps) in [(1, 20), (700, 3000), (40_000, 30_000)] {
            let (mut entries, mut model) = (Entries::new(), BTreeMap::new());
            let mut next = numbers(u64::from(blocks) + 1);
            for step in 0..steps {
                let block = next(u64::from(blocks)) as u32;
                let entry = (next(4) > 0).then_some(step);
                entries.set(block, entry, blocks);
                match entry {
                    Some(entry) => model.insert(block, entry),
                    None => model.remove(&block),
                };
                assert_eq!(entries.get(block), entry);
            }
            assert!(matches!(entries, Entries::Many(_)) || blocks < 32);
            assert!(entries.iter().eq(model.iter().map(|(b, e)| (*b, *e))));
            assert_eq!(entries.len(), model.len());
            for block in (0..blocks + 600).step_by(7) {
                assert_eq!(entries.get(block), model.get(&block).copied());
            }
            let mut again = Entries::new();
            let pairs = entries.iter();
            pairs.for_each(|(block, entry)| again.set(block, Some(entry), blocks));
            assert!(again.iter().eq(entries.iter()));
        }
    }

    #[test]
    fn a_chunk_that_fills_up_is_found_by_number() {
        let mut entries = Entries::new();
        let order = (0..512).map(|n| n * 37 % 512);
        order.for_each(|block| entries.set(block, Some(block + 9), 1024));
        assert!((0..512).all(|block| entries.get(block) == Some(block + 9)));
        assert_eq!((entries.get(512), entries.len()), (None, 512));
        entries.set(100, None, 1024);
        assert_eq!((entries.get(100), entries.get(101)), (None, Some(110)));
    }

    #[test]
    fn a_terabyte_takes_what_is_in_it() {
        let blocks = 1 << 19;
        let of = |count: u32| {
            let mut entries = Entries::new();
            (0..count).for_each(|n| entries.set(n * (blocks / count), Some(n), blocks));
            entries.memory_bytes()
        };
        assert!(of(1) <= 64);
        assert!(of(1000) <= 16 << 10, "{}", of(1000));
        assert!(of(16_384) <= 256 << 10, "{}", of(16_384));
        assert!(of(blocks) <= 2300 << 10, "{}", of(blocks));
    }
}
