//! Bytes of a file kept as the pages that are not zero; cloning shares them, and each page knows
//! its digest once somebody asked.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, OnceLock};

const PAGE_BYTES: usize = 4096;

/// A page and, once asked for, what tells its bytes from others: zero if they are zeros.
#[derive(Debug)]
struct Page {
    bytes: [u8; PAGE_BYTES],
    digest: OnceLock<u64>,
}

impl Page {
    fn zeroed() -> Self {
        Self {
            bytes: [0; PAGE_BYTES],
            digest: OnceLock::new(),
        }
    }

    fn digest(&self) -> u64 {
        *self.digest.get_or_init(|| {
            if self.bytes.iter().all(|byte| *byte == 0) {
                return 0;
            }
            let mut hasher = DefaultHasher::new();
            hasher.write(&self.bytes);
            hasher.finish()
        })
    }

    /// The bytes of a page that is about to change; shared ones are copied.
    fn bytes_mut(page: &mut Arc<Self>) -> &mut [u8; PAGE_BYTES] {
        let page = Arc::make_mut(page);
        page.digest = OnceLock::new();
        &mut page.bytes
    }
}

impl Clone for Page {
    /// Copied to be changed: the digest does not come along.
    fn clone(&self) -> Self {
        Self {
            bytes: self.bytes,
            digest: OnceLock::new(),
        }
    }
}

impl PartialEq for Page {
    fn eq(&self, other: &Self) -> bool {
        self.bytes == other.bytes
    }
}

impl Eq for Page {}

/// The content of a file in memory.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SparseBytes {
    pages: Arc<BTreeMap<u64, Arc<Page>>>,
    size_bytes: u64,
}

/// One page's share of a range.
struct Part {
    page: u64,
    in_page: std::ops::Range<usize>,
    in_range: std::ops::Range<usize>,
}

/// Cuts a range into its parts by page.
fn parts(offset: u64, len: usize) -> impl Iterator<Item = Part> {
    let mut done = 0usize;
    std::iter::from_fn(move || {
        if done >= len {
            return None;
        }
        let at = offset.saturating_add(done as u64);
        let start = (at % PAGE_BYTES as u64) as usize;
        let count = (PAGE_BYTES - start).min(len - done);
        let part = Part {
            page: at / PAGE_BYTES as u64,
            in_page: start..start + count,
            in_range: done..done + count,
        };
        done += count;
        Some(part)
    })
}

impl SparseBytes {
    /// Makes a file of zeros.
    pub fn zeroed(size_bytes: u64) -> Self {
        Self {
            pages: Arc::default(),
            size_bytes,
        }
    }

    /// Its size in bytes.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Fills `buffer` from `offset` and returns how many bytes lie inside the file.
    pub fn read(&self, offset: u64, buffer: &mut [u8]) -> usize {
        let inside = self
            .size_bytes
            .saturating_sub(offset)
            .min(buffer.len() as u64) as usize;
        for part in parts(offset, inside) {
            let Some(target) = buffer.get_mut(part.in_range) else {
                break;
            };
            match self
                .pages
                .get(&part.page)
                .and_then(|page| page.bytes.get(part.in_page))
            {
                Some(bytes) => target.copy_from_slice(bytes),
                None => target.fill(0),
            }
        }
        inside
    }

    /// Writes `bytes` at `offset`, extending the file.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) {
        for part in parts(offset, bytes.len()) {
            let source = bytes.get(part.in_range).unwrap_or_default();
            if source.iter().all(|b| *b == 0) && !self.pages.contains_key(&part.page) {
                continue;
            }
            let page = Arc::make_mut(&mut self.pages)
                .entry(part.page)
                .or_insert_with(|| Arc::new(Page::zeroed()));
            if let Some(target) = Page::bytes_mut(page).get_mut(part.in_page) {
                target.copy_from_slice(source);
            }
        }
        self.size_bytes = self
            .size_bytes
            .max(offset.saturating_add(bytes.len() as u64));
    }

    /// Makes a range read as zeros without changing the size.
    pub fn zero(&mut self, offset: u64, len_bytes: u64) {
        let end = offset.saturating_add(len_bytes);
        let first_whole = offset.div_ceil(PAGE_BYTES as u64);
        let end_whole = end / PAGE_BYTES as u64;
        if first_whole < end_whole {
            let inner: Vec<u64> = self
                .pages
                .range(first_whole..end_whole)
                .map(|(page, _)| *page)
                .collect();
            if !inner.is_empty() {
                let pages = Arc::make_mut(&mut self.pages);
                for page in inner {
                    pages.remove(&page);
                }
            }
        }
        let mut edge = |from: u64, to: u64| {
            let page = from / PAGE_BYTES as u64;
            let start = (from % PAGE_BYTES as u64) as usize;
            let len = to.saturating_sub(from) as usize;
            if self.pages.contains_key(&page)
                && let Some(page) = Arc::make_mut(&mut self.pages).get_mut(&page)
                && let Some(bytes) = Page::bytes_mut(page).get_mut(start..start.saturating_add(len))
            {
                bytes.fill(0);
            }
        };
        let head_end = end.min(first_whole.saturating_mul(PAGE_BYTES as u64));
        if offset < head_end {
            edge(offset, head_end);
        }
        let tail_start = end_whole.saturating_mul(PAGE_BYTES as u64).max(head_end);
        if tail_start < end {
            edge(tail_start, end);
        }
    }

    /// Sets the size; what is cut off is gone, what is added is zero.
    pub fn truncate(&mut self, size_bytes: u64) {
        if size_bytes < self.size_bytes {
            self.zero(size_bytes, self.size_bytes - size_bytes);
        }
        self.size_bytes = size_bytes;
    }

    /// All of it as one vector; for small files in tests.
    pub fn to_vec(&self) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(self.size_bytes).unwrap_or(0)];
        self.read(0, &mut bytes);
        bytes
    }

    /// The pages that may hold something else than zeros: offset and bytes.
    pub fn pages(&self) -> impl Iterator<Item = (u64, &[u8])> {
        self.pages
            .iter()
            .map(|(page, held)| (page * PAGE_BYTES as u64, held.bytes.as_slice()))
    }

    /// Tells contents apart: equal for equal ones, also where one holds a page of zeros and the
    /// other none. Costs little after a small change.
    pub fn digest(&self) -> u64 {
        let pages = self.pages.iter().map(|(number, page)| {
            let digest = page.digest();
            let place = number.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
            let mixed = (digest ^ place).wrapping_mul(0xD6E8_FEB8_6659_FD93);
            // A page of zeros counts as none.
            if digest == 0 {
                0
            } else {
                mixed ^ (mixed >> 32)
            }
        });
        let size = self.size_bytes.wrapping_mul(0xA24B_AED4_963E_E407);
        pages.fold(size, u64::wrapping_add)
    }
}

impl Hash for SparseBytes {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.digest());
    }
}

impl From<&[u8]> for SparseBytes {
    fn from(bytes: &[u8]) -> Self {
        let mut file = Self::zeroed(bytes.len() as u64);
        file.write(0, bytes);
        file
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn behaves_like_a_vector(steps in prop::collection::vec((0u8..3, 0u64..20_000, 0usize..9_000, 1u8..), 1..30)) {
            let (mut file, mut model) = (SparseBytes::default(), Vec::<u8>::new());
            for (kind, offset, len, fill) in steps {
                let start = offset as usize;
                match kind {
                    0 => {
                        file.write(offset, &vec![fill; len]);
                        if model.len() < start + len {
                            model.resize(start + len, 0);
                        }
                        model[start..start + len].fill(fill);
                    }
                    1 => {
                        file.zero(offset, len as u64);
                        let end = (start + len).min(model.len());
                        if start < end {
                            model[start..end].fill(0);
                        }
                    }
                    _ => {
                        file.truncate(offset);
                        model.resize(start, 0);
                    }
                }
                prop_assert_eq!(file.to_vec(), model.clone());
                prop_assert_eq!(file.digest(), SparseBytes::from(model.as_slice()).digest());
            }
        }
    }

    #[test]
    fn digests_tell_bytes_places_and_sizes_apart() {
        let mut digests = std::collections::HashSet::new();
        for size in [8192_u64, 8704] {
            assert!(digests.insert(SparseBytes::zeroed(size).digest()));
            for (at, byte) in [(0, 1), (0, 2), (511, 1), (4096, 1), (8191, 1)] {
                let mut file = SparseBytes::zeroed(size);
                file.write(at, &[byte]);
                assert!(digests.insert(file.digest()), "{size} {at} {byte}");
                file.write(at, &[0]);
                assert_eq!(file.digest(), SparseBytes::zeroed(size).digest());
            }
        }
    }
}
