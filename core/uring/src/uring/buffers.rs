//! Buffers that the kernel fills with what a stream receives: a ring of them per stream, shared
//! with the kernel.
//!
//! Measured (4 KiB requests, depth 32, Unix socket): with 28-byte headers the size does not
//! matter; 4 KiB writes want one buffer to hold several requests.

use io_uring::IoUring;
use io_uring::types::BufRingEntry;
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};
use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};

/// Buffers of one stream; a power of two.
pub(super) const BUFFERS: u16 = 16;

/// Bytes of one buffer.
pub(super) const BUFFER_BYTES: usize = 16 << 10;

/// The shared ring has a page of its own in front of the buffers.
const PAGE_BYTES: usize = 4096;

const MAPPED_BYTES: usize = PAGE_BYTES + BUFFERS as usize * BUFFER_BYTES;

/// The buffers of one stream, known to the kernel as a group.
#[derive(Debug)]
pub(super) struct Buffers {
    memory: NonNull<u8>,
    group: u16,
    tail: u16,
}

impl Buffers {
    /// Makes the buffers and gives all of them to the kernel.
    pub(super) fn new(ring: &IoUring, group: u16) -> io::Result<Self> {
        let (prot, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE);
        // SAFETY: a new mapping at an address of the kernel's choice touches no other memory.
        let memory = unsafe { mmap_anonymous(std::ptr::null_mut(), MAPPED_BYTES, prot, flags)? };
        let memory = NonNull::new(memory.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        let mut buffers = Self {
            memory,
            group,
            tail: 0,
        };
        let address = memory.as_ptr().addr() as u64;
        // SAFETY: the entries are in the mapping's first page, which stays until `close` has taken
        // the group from the kernel; if it is never called, the mapping stays for ever.
        unsafe {
            ring.submitter()
                .register_buf_ring_with_flags(address, BUFFERS, group, 0)
        }
        .inspect_err(|_| buffers.unmap())?;
        for buffer in 0..BUFFERS {
            buffers.put(buffer);
        }
        buffers.publish();
        Ok(buffers)
    }

    pub(super) fn group(&self) -> u16 {
        self.group
    }

    /// Takes the buffers from the kernel. Nothing may be receiving into them any more.
    pub(super) fn close(mut self, ring: &IoUring) {
        if ring.submitter().unregister_buf_ring(self.group).is_ok() {
            self.unmap();
        }
    }

    /// The first `len` bytes of a buffer that the kernel gave out, without the first `start`.
    pub(super) fn bytes(&self, buffer: u16, start: usize, len: usize) -> &[u8] {
        let start = start.min(BUFFER_BYTES);
        let len = len.min(BUFFER_BYTES).saturating_sub(start);
        let at = PAGE_BYTES + usize::from(buffer % BUFFERS) * BUFFER_BYTES + start;
        // SAFETY: the range is inside the mapping, whose bytes are initialised. The kernel writes
        // a buffer only between `put` and the completion that names it, and callers ask for
        // buffers that a completion named and that were not put back, which takes `&mut self`.
        unsafe { std::slice::from_raw_parts(self.memory.as_ptr().add(at), len) }
    }

    /// Gives a buffer back; the kernel sees it after [`Buffers::publish`].
    pub(super) fn put(&mut self, buffer: u16) {
        let place = usize::from(self.tail % BUFFERS);
        let at = PAGE_BYTES + usize::from(buffer % BUFFERS) * BUFFER_BYTES;
        // SAFETY: `place` is below BUFFERS, and that many entries fit the first page, which is
        // aligned for them. Between the kernel's head and tail it only reads entries; this one is
        // beyond the tail until `publish`. The entry's last field is not written: entry 0 keeps
        // the tail there.
        unsafe {
            let entry = &mut *self.memory.as_ptr().cast::<BufRingEntry>().add(place);
            entry.set_addr(self.memory.as_ptr().add(at).addr() as u64);
            entry.set_len(BUFFER_BYTES as u32);
            entry.set_bid(buffer % BUFFERS);
        }
        self.tail = self.tail.wrapping_add(1);
    }

    /// Shows the kernel what was put back.
    pub(super) fn publish(&mut self) {
        // SAFETY: the tail lies in entry 0, at an address aligned to two bytes; both sides access
        // it atomically.
        unsafe {
            let tail = BufRingEntry::tail(self.memory.as_ptr().cast());
            AtomicU16::from_ptr(tail.cast_mut()).store(self.tail, Ordering::Release);
        }
    }

    fn unmap(&mut self) {
        // SAFETY: the whole of a mapping that only this value points to and nobody uses after.
        let _stays_mapped = unsafe { munmap(self.memory.as_ptr().cast(), MAPPED_BYTES) };
    }
}
