//! Buffers kept for reuse, so that a busy disk allocates nothing.

use crate::Buffer;

/// Sizes that are kept, smallest first; a request takes the first that fits.
const CLASSES_BYTES: [usize; 5] = [4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20];

/// A store of buffers by size, with a limit on what it keeps.
///
/// A buffer that comes out has old content: whoever takes one fills it.
#[derive(Debug)]
pub struct BufferPool {
    classes: [Vec<Buffer>; CLASSES_BYTES.len()],
    kept_bytes: usize,
    kept_bytes_max: usize,
}

impl BufferPool {
    /// Makes an empty pool that keeps at most `kept_bytes_max` bytes of idle buffers.
    pub fn new(kept_bytes_max: usize) -> Self {
        Self {
            classes: Default::default(),
            kept_bytes: 0,
            kept_bytes_max,
        }
    }

    /// Bytes of idle buffers.
    pub fn kept_bytes(&self) -> usize {
        self.kept_bytes
    }

    /// Frees idle buffers, the largest first, until at most `kept_bytes_max` bytes of them are left.
    pub fn shrink(&mut self, kept_bytes_max: usize) {
        for (list, size) in self.classes.iter_mut().zip(CLASSES_BYTES).rev() {
            while self.kept_bytes > kept_bytes_max && list.pop().is_some() {
                self.kept_bytes = self.kept_bytes.saturating_sub(size);
            }
        }
    }

    /// Takes a buffer of `len` bytes.
    pub fn take(&mut self, len: usize) -> Buffer {
        let fitting = CLASSES_BYTES.iter().position(|class| *class >= len);
        let Some((index, size)) = fitting.and_then(|i| Some((i, *CLASSES_BYTES.get(i)?))) else {
            return Buffer::zeroed(len);
        };
        let kept = self.classes.get_mut(index).and_then(Vec::pop);
        let mut buffer = match kept {
            Some(buffer) => {
                self.kept_bytes = self.kept_bytes.saturating_sub(size);
                buffer
            }
            None => Buffer::zeroed(size),
        };
        buffer.set_len(len);
        buffer
    }

    /// Gives a buffer back; one that does not fit the limit is freed.
    pub fn give(&mut self, buffer: Buffer) {
        let size = buffer.capacity();
        let class = CLASSES_BYTES.iter().position(|class| *class == size);
        let kept_bytes = self.kept_bytes.saturating_add(size);
        if let Some(list) = class.and_then(|index| self.classes.get_mut(index))
            && kept_bytes <= self.kept_bytes_max
        {
            self.kept_bytes = kept_bytes;
            list.push(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_returned_buffer_is_used_again_and_the_limit_holds() {
        let mut pool = BufferPool::new(8 << 10);
        let first = pool.take(4096);
        let address = first.as_slice().as_ptr();
        pool.give(first);
        let again = pool.take(512);
        assert_eq!(again.as_slice().as_ptr(), address);
        assert_eq!(again.len(), 512);
        pool.give(again);
        pool.give(Buffer::zeroed(4096));
        pool.give(Buffer::zeroed(4096));
        assert_eq!(pool.kept_bytes, 8 << 10);
        assert_eq!(pool.take(3 << 20).len(), 3 << 20);
        pool.shrink(5000);
        assert_eq!(pool.kept_bytes(), 4096);
        pool.shrink(0);
        assert_eq!(pool.kept_bytes(), 0);
    }
}
