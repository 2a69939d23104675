//! Page-aligned buffers that operations own while they are in flight.
//!
//! A [`Buffer`] is the only handle to its memory and may be written; sharing it makes a
//! [`SharedBuffer`], which any number of writes may read from at once. Neither is copied when it
//! travels, and the memory never moves: that is what lets a kernel ring use its address.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

/// Alignment of every buffer's first byte: enough for `O_DIRECT` on any device in use.
pub const ALIGN_BYTES: usize = 4096;

/// The memory itself. Safe Rust cannot ask the allocator for an alignment, so there is slack.
struct Memory {
    bytes: Box<[u8]>,
    start: usize,
    capacity: usize,
}

impl Memory {
    fn zeroed(capacity: usize) -> Self {
        let bytes = vec![0u8; capacity.saturating_add(ALIGN_BYTES - 1)].into_boxed_slice();
        let misaligned = bytes.as_ptr().addr() % ALIGN_BYTES;
        let start = (ALIGN_BYTES - misaligned) % ALIGN_BYTES;
        Self {
            bytes,
            start,
            capacity,
        }
    }
}

/// A buffer with one owner.
pub struct Buffer {
    memory: Arc<Memory>,
    len: usize,
}

impl Buffer {
    /// Allocates `len` zero bytes.
    pub fn zeroed(len: usize) -> Self {
        Self {
            memory: Arc::new(Memory::zeroed(len)),
            len,
        }
    }

    /// Allocates a copy of `bytes`.
    pub fn copy_of(bytes: &[u8]) -> Self {
        let mut buffer = Self::zeroed(bytes.len());
        buffer.as_mut_slice().copy_from_slice(bytes);
        buffer
    }

    /// Length in bytes.
    #[inline]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the length is zero.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes the length can be set to without a new allocation.
    #[inline]
    pub fn capacity(&self) -> usize {
        self.memory.capacity
    }

    /// Sets the length, at most the capacity. Bytes that come into view have old content.
    #[inline]
    pub fn set_len(&mut self, len: usize) {
        self.len = len.min(self.memory.capacity);
    }

    /// The bytes.
    #[inline]
    pub fn as_slice(&self) -> &[u8] {
        slice_of(&self.memory, 0, self.len)
    }

    /// The bytes, to be written.
    #[inline]
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        let memory = Arc::get_mut(&mut self.memory).expect("a Buffer is the only handle");
        let end = memory.start.saturating_add(self.len);
        memory
            .bytes
            .get_mut(memory.start..end)
            .expect("len is at most the capacity")
    }

    /// Gives up the right to write, so that several operations can read it.
    #[inline]
    pub fn share(self) -> SharedBuffer {
        SharedBuffer {
            memory: self.memory,
            offset: 0,
            len: self.len,
        }
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({} bytes)", self.len)
    }
}

/// A read-only view of a buffer; clones share the memory.
#[derive(Clone)]
pub struct SharedBuffer {
    memory: Arc<Memory>,
    offset: usize,
    len: usize,
}

impl SharedBuffer {
    /// Length of the view in bytes.
    #[inline]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the view is empty.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The bytes of the view.
    #[inline]
    pub fn as_slice(&self) -> &[u8] {
        slice_of(&self.memory, self.offset, self.len)
    }

    /// A part of the view; `None` when the range is not inside it.
    #[inline]
    pub fn slice(&self, range: Range<usize>) -> Option<Self> {
        let len = range.end.checked_sub(range.start)?;
        (range.end <= self.len).then(|| Self {
            memory: Arc::clone(&self.memory),
            offset: self.offset.saturating_add(range.start),
            len,
        })
    }

    /// Takes the memory back once this is the last view of it; `Err` gives the view back.
    ///
    /// The buffer has the memory's full capacity as its length.
    #[inline]
    pub fn try_unshare(mut self) -> Result<Buffer, Self> {
        if Arc::get_mut(&mut self.memory).is_none() {
            return Err(self);
        }
        let len = self.memory.capacity;
        Ok(Buffer {
            memory: self.memory,
            len,
        })
    }
}

impl fmt::Debug for SharedBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SharedBuffer({} bytes)", self.len)
    }
}

#[inline]
fn slice_of(memory: &Memory, offset: usize, len: usize) -> &[u8] {
    let start = memory.start.saturating_add(offset);
    memory
        .bytes
        .get(start..start.saturating_add(len))
        .expect("views stay inside their memory")
}

/// Whether there is nothing but zero bytes; stops at the first stretch of 64 bytes with another.
pub fn is_zero(bytes: &[u8]) -> bool {
    let (chunks, rest) = bytes.as_chunks::<64>();
    // Folded without a branch, so that it becomes a few wide instructions.
    let chunk_is_zero = |chunk: &[u8; 64]| chunk.iter().fold(0, |all, byte| all | byte) == 0;
    chunks.iter().all(chunk_is_zero) && rest.iter().all(|byte| *byte == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_buffer_starts_on_a_page() {
        for len in [0, 1, 512, 4096, 70_000] {
            let buffer = Buffer::zeroed(len);
            assert_eq!(
                buffer.as_slice().as_ptr().addr() % ALIGN_BYTES,
                0,
                "len {len}"
            );
            assert_eq!(buffer.as_slice().len(), len);
        }
    }

    #[test]
    fn one_bit_anywhere_is_not_zero() {
        for len in [0, 1, 63, 64, 65, 512] {
            let mut bytes = vec![0; len];
            assert!(is_zero(&bytes), "{len} zeros");
            for at in 0..len {
                bytes[at] = 1 << (at % 8);
                assert!(!is_zero(&bytes), "byte {at} of {len}");
                bytes[at] = 0;
            }
        }
    }

    #[test]
    fn memory_comes_back_only_from_the_last_view() {
        let shared = Buffer::copy_of(b"abcdef").share();
        let part = shared.slice(2..4).expect("inside");
        assert_eq!(part.as_slice(), b"cd");
        assert!(shared.slice(4..7).is_none());
        let part = part.try_unshare().expect_err("another view is alive");
        drop(shared);
        assert_eq!(
            part.try_unshare().expect("the last view").as_slice(),
            b"abcdef"
        );
    }
}
