//! A request's descriptors, read once and checked (VIRTIO 1.2, 2.7.5).
//!
//! What comes out are addresses and lengths in our own memory: first those we read, then those we
//! write. Whether they are mapped is asked when they are used.

use super::memory::{Memory, Place};
use super::queue::{Broken, DESCRIPTOR_BYTES, Queue};
use std::sync::atomic::{AtomicU64, Ordering};

/// Most descriptors of one request, indirect ones included.
pub const CHAIN_SEGMENTS_MAX: usize = 1024;

const FLAG_NEXT: u16 = 1;
const FLAG_WRITE: u16 = 2;
const FLAG_INDIRECT: u16 = 4;

/// A piece of the guest's memory, not looked up yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// The guest's address.
    pub address: u64,
    /// How long it is.
    pub len: u32,
}

/// The segments of one request. Kept and filled again, so that none is allocated per request.
#[derive(Debug, Default)]
pub struct Chain {
    /// For us to read, in order.
    pub readable: Vec<Segment>,
    /// For us to write, in order.
    pub writable: Vec<Segment>,
}

struct Descriptor {
    segment: Segment,
    flags: u16,
    next: u16,
}

impl Descriptor {
    /// Address in the first eight bytes; length, flags and next in the others.
    fn of(address: u64, rest: u64) -> Self {
        Self {
            segment: Segment {
                address,
                len: rest as u32,
            },
            flags: (rest >> 32) as u16,
            next: (rest >> 48) as u16,
        }
    }
}

impl Chain {
    /// Reads the chain that starts at descriptor `head` of a queue, in place of what was there.
    ///
    /// # Errors
    /// The chain makes no sense; what was read of it is left.
    pub fn read(&mut self, memory: &Memory, queue: &Queue, head: u16) -> Result<(), Broken> {
        self.readable.clear();
        self.writable.clear();
        let mut index = head;
        // A chain that goes on longer than the table meets a descriptor for the second time.
        for _ in 0..queue.size() {
            if index >= queue.size() {
                return Err(Broken::Descriptor(index));
            }
            let descriptor = in_table(queue.table(), index)?;
            if descriptor.flags & FLAG_INDIRECT != 0 {
                // Only at the end of a chain: it cannot go on in two places.
                let alone = descriptor.flags & FLAG_NEXT == 0;
                return match alone {
                    true => self.read_indirect(memory, descriptor.segment),
                    false => Err(Broken::Indirect),
                };
            }
            self.add(&descriptor)?;
            if descriptor.flags & FLAG_NEXT == 0 {
                return Ok(());
            }
            index = descriptor.next;
        }
        Err(Broken::TooLong)
    }

    fn read_indirect(&mut self, memory: &Memory, table: Segment) -> Result<(), Broken> {
        let len = table.len as usize;
        let count = len / DESCRIPTOR_BYTES;
        if count == 0 || count > CHAIN_SEGMENTS_MAX || !len.is_multiple_of(DESCRIPTOR_BYTES) {
            return Err(Broken::Indirect);
        }
        let bytes = memory
            .slice(table.address, len)
            .map_err(|_| Broken::NotMapped)?;
        let mut index = 0_usize;
        for _ in 0..count {
            let mut raw = [0; DESCRIPTOR_BYTES];
            let at = index.saturating_mul(DESCRIPTOR_BYTES);
            // One copy of the descriptor; it may lie at any address.
            let one = bytes
                .subslice(at, DESCRIPTOR_BYTES)
                .map_err(|_| Broken::Descriptor(index as u16))?;
            one.copy_to(raw.as_mut_slice());
            let raw = u128::from_le_bytes(raw);
            let descriptor = Descriptor::of(raw as u64, (raw >> 64) as u64);
            if descriptor.flags & FLAG_INDIRECT != 0 {
                return Err(Broken::Indirect);
            }
            self.add(&descriptor)?;
            if descriptor.flags & FLAG_NEXT == 0 {
                return Ok(());
            }
            index = usize::from(descriptor.next);
        }
        Err(Broken::TooLong)
    }

    fn add(&mut self, descriptor: &Descriptor) -> Result<(), Broken> {
        if self.readable.len().saturating_add(self.writable.len()) >= CHAIN_SEGMENTS_MAX {
            return Err(Broken::TooLong);
        }
        if descriptor.flags & FLAG_WRITE != 0 {
            self.writable.push(descriptor.segment);
        } else if self.writable.is_empty() {
            self.readable.push(descriptor.segment);
        } else {
            return Err(Broken::Order);
        }
        Ok(())
    }
}

fn in_table(table: &Place, index: u16) -> Result<Descriptor, Broken> {
    let at = usize::from(index).saturating_mul(DESCRIPTOR_BYTES);
    let load = |at| table.load::<AtomicU64>(at, Ordering::Relaxed);
    let (address, rest) = load(at)
        .zip(load(at.saturating_add(8)))
        .ok_or(Broken::Descriptor(index))?;
    Ok(Descriptor::of(u64::from_le(address), u64::from_le(rest)))
}

/// Bytes of all segments together.
pub(super) fn len_bytes(segments: &[Segment]) -> u64 {
    segments.iter().map(|s| u64::from(s.len)).sum()
}

/// Takes `count` bytes off the front of the segments and copies them out.
///
/// # Errors
/// Too few of them, or not mapped.
pub(super) fn take_front(
    memory: &Memory,
    segments: &mut Vec<Segment>,
    into: &mut [u8],
) -> Result<(), Broken> {
    let mut rest = into;
    let mut whole = 0;
    for segment in segments.iter_mut() {
        if rest.is_empty() {
            break;
        }
        let count = rest.len().min(segment.len as usize);
        let (now, later) = rest.split_at_mut(count);
        memory
            .read(segment.address, now)
            .map_err(|_| Broken::NotMapped)?;
        rest = later;
        // At most the segment's own length, a u32.
        segment.address = segment.address.wrapping_add(count as u64);
        segment.len = segment.len.saturating_sub(count as u32);
        whole += usize::from(segment.len == 0);
    }
    if !rest.is_empty() {
        return Err(Broken::TooShort);
    }
    segments.drain(..whole.min(segments.len()));
    Ok(())
}

/// Takes the last byte off the segments; its address.
///
/// # Errors
/// There is none, or it is not mapped.
pub(super) fn take_last_byte(memory: &Memory, segments: &mut Vec<Segment>) -> Result<u64, Broken> {
    while segments.last().is_some_and(|last| last.len == 0) {
        segments.pop();
    }
    let last = segments.last_mut().ok_or(Broken::TooShort)?;
    last.len = last.len.saturating_sub(1);
    let address = last.address.checked_add(u64::from(last.len));
    let mapped = address.filter(|address| memory.contains(*address, 1));
    if last.len == 0 {
        segments.pop();
    }
    mapped.ok_or(Broken::NotMapped)
}
