//! A split virtqueue, the device's side (VIRTIO 1.2, 2.7).
//!
//! ```text
//! available  u16 flags, u16 idx, u16 ring[size], u16 used_event
//! used       u16 flags, u16 idx, { u32 id, u32 len } ring[size], u16 avail_event
//! ```
//! The guest writes the first and reads the second. Used entries become visible together, with
//! one store of the index; whether the guest wants to be called is asked once for all of them.

use super::memory::{Memory, Place};
use super::protocol::RingAddresses;
use std::fmt;
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering, fence};

/// Largest queue taken. QEMU's are 1024 at most.
pub const QUEUE_SIZE_MAX: u16 = 1024;

/// Bytes of a descriptor and of a used entry.
pub(super) const DESCRIPTOR_BYTES: usize = 16;
const USED_BYTES: usize = 8;

/// Where the index and the first entry of either ring lie.
const INDEX_AT: usize = 2;
const RING_AT: usize = 4;

/// In `used.flags`: do not kick. In `available.flags`: do not call.
const QUIET: u16 = 1;

/// Alignments (VIRTIO 1.2, 2.7).
const TABLE_ALIGN: u64 = 16;
const AVAILABLE_ALIGN: u64 = 2;
const USED_ALIGN: u64 = 4;

/// Why a queue is of no use any more, until it is set up anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Broken {
    /// The available index ran ahead of the queue: so many entries would be waiting.
    Index(u16),
    /// A chain starts or goes on at a descriptor that the table does not have.
    Descriptor(u16),
    /// A chain has more descriptors than any request, or runs in a circle.
    TooLong,
    /// An indirect table inside of one, beside a next descriptor, empty, of an odd length or
    /// too long.
    Indirect,
    /// A table, a request's header or its status lies where no memory is.
    NotMapped,
    /// A descriptor for us to read comes after one for us to write.
    Order,
    /// There is no room for a header or for a status.
    TooShort,
    /// Its rings are not where memory is mapped any more.
    Lost,
    /// The inflight region does not fit the queue.
    Inflight,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Index(waiting) => write!(f, "{waiting} entries are said to be available"),
            Self::Descriptor(index) => write!(f, "there is no descriptor {index}"),
            Self::TooLong => f.write_str("a chain is too long or runs in a circle"),
            Self::Indirect => f.write_str("an indirect table that cannot be"),
            Self::NotMapped => f.write_str("an address where no memory is"),
            Self::Order => f.write_str("a readable descriptor after a writable one"),
            Self::TooShort => f.write_str("a request without room for header and status"),
            Self::Lost => f.write_str("its rings are not mapped any more"),
            Self::Inflight => f.write_str("its inflight region is of another queue"),
        }
    }
}

/// A queue whose rings are mapped.
#[derive(Debug)]
pub struct Queue {
    size: u16,
    table: Place,
    available: Place,
    used: Place,
    event_idx: bool,
    /// The next available entry to take, and how far they are known to go.
    next_available: u16,
    known_available: u16,
    /// The next used entry to fill, how far they are visible, and how far the guest was asked
    /// whether it wants a call.
    next_used: u16,
    published: u16,
}

impl Queue {
    /// Finds the rings of a queue of `size` entries, which is a power of two up to
    /// [`QUEUE_SIZE_MAX`]. It goes on where the used ring stands, and takes from `base` on.
    pub(super) fn new(
        memory: &Memory,
        size: u16,
        rings: &RingAddresses,
        base: u16,
        event_idx: bool,
    ) -> Option<Self> {
        let entries = usize::from(size);
        let table = entries.checked_mul(DESCRIPTOR_BYTES)?;
        let available = RING_AT
            .checked_add(entries.checked_mul(2)?)?
            .checked_add(2)?;
        let used = RING_AT
            .checked_add(entries.checked_mul(USED_BYTES)?)?
            .checked_add(2)?;
        let mut queue = Self {
            size,
            table: memory.place(rings.table, table, TABLE_ALIGN)?,
            available: memory.place(rings.available, available, AVAILABLE_ALIGN)?,
            used: memory.place(rings.used, used, USED_ALIGN)?,
            event_idx,
            next_available: base,
            known_available: base,
            next_used: 0,
            published: 0,
        };
        queue.next_used = queue.used_index();
        queue.published = queue.next_used;
        Some(queue)
    }

    /// The same queue at the places where its rings are mapped now.
    pub(super) fn moved(&self, memory: &Memory, rings: &RingAddresses) -> Option<Self> {
        let fresh = Self::new(
            memory,
            self.size,
            rings,
            self.next_available,
            self.event_idx,
        )?;
        Some(Self {
            next_used: self.next_used,
            published: self.published,
            ..fresh
        })
    }

    /// Finds a queue in memory, with all of its rings given as addresses: for fuzzers.
    pub fn at(memory: &Memory, size: u16, rings: [u64; 3]) -> Option<Self> {
        let fits = size.is_power_of_two() && size <= QUEUE_SIZE_MAX;
        let [table, available, used] = rings;
        let rings = RingAddresses {
            table,
            used,
            available,
        };
        fits.then(|| Self::new(memory, size, &rings, 0, true))?
    }

    /// Entries of the queue.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// The descriptor table.
    pub(super) fn table(&self) -> &Place {
        &self.table
    }

    /// Index of the next entry to take, as the front end asks for when it stops the queue.
    pub(super) fn next_available(&self) -> u16 {
        self.next_available
    }

    pub(super) fn set_next_available(&mut self, index: u16) {
        self.next_available = index;
        self.known_available = index;
    }

    /// The used ring's index as the guest sees it.
    pub(super) fn used_index(&self) -> u16 {
        self.used
            .load::<AtomicU16>(INDEX_AT, Ordering::Relaxed)
            .unwrap_or_default()
    }

    /// The head of the next chain, if one is available.
    ///
    /// # Errors
    /// The ring makes no sense.
    pub fn take(&mut self) -> Result<Option<u16>, Broken> {
        if self.next_available == self.known_available && !self.look()? {
            return Ok(None);
        }
        let slot = usize::from(self.next_available & self.size.wrapping_sub(1));
        let at = RING_AT.saturating_add(slot.saturating_mul(2));
        let head = self.available.load::<AtomicU16>(at, Ordering::Relaxed);
        let head = head.filter(|head| *head < self.size);
        let Some(head) = head else {
            return Err(Broken::Descriptor(slot as u16));
        };
        self.next_available = self.next_available.wrapping_add(1);
        Ok(Some(head))
    }

    /// Reads how far the available entries go; whether there are any.
    fn look(&mut self) -> Result<bool, Broken> {
        let index = self
            .available
            .load::<AtomicU16>(INDEX_AT, Ordering::Acquire);
        let index = index.ok_or(Broken::Lost)?;
        let waiting = index.wrapping_sub(self.next_available);
        if waiting > self.size {
            return Err(Broken::Index(waiting));
        }
        self.known_available = index;
        Ok(waiting > 0)
    }

    /// Gives a chain back, with the number of bytes written to it. Visible after
    /// [`Queue::publish`].
    pub fn put(&mut self, head: u16, len: u32) {
        let slot = usize::from(self.next_used & self.size.wrapping_sub(1));
        let at = RING_AT.saturating_add(slot.saturating_mul(USED_BYTES));
        self.used
            .store::<AtomicU32>(at, u32::from(head), Ordering::Relaxed);
        self.used
            .store::<AtomicU32>(at.saturating_add(4), len, Ordering::Relaxed);
        self.next_used = self.next_used.wrapping_add(1);
    }

    /// Whether something was given back that is not visible yet.
    pub fn is_unpublished(&self) -> bool {
        self.next_used != self.published
    }

    /// Makes what was given back visible; whether the guest wants to be called for it.
    pub fn publish(&mut self) -> bool {
        let before = self.published;
        self.used
            .store::<AtomicU16>(INDEX_AT, self.next_used, Ordering::Release);
        self.published = self.next_used;
        // Either we see the event index the guest wrote, or it sees the used index we wrote.
        fence(Ordering::SeqCst);
        if !self.event_idx {
            let flags = self.available.load::<AtomicU16>(0, Ordering::Relaxed);
            return flags.unwrap_or_default() & QUIET == 0;
        }
        let at = RING_AT.saturating_add(usize::from(self.size).saturating_mul(2));
        let event = self.available.load::<AtomicU16>(at, Ordering::Relaxed);
        is_crossed(event.unwrap_or_default(), before, self.next_used)
    }

    /// Tells the guest not to kick, as the queue is looked at anyway. With event indices there is
    /// nothing to do: the old one is behind, and no kick comes for what lies before the next.
    pub fn refuse_kicks(&self) {
        if !self.event_idx {
            self.used.store::<AtomicU16>(0, QUIET, Ordering::Relaxed);
        }
    }

    /// Asks for a kick with the next entry. `true` when there is one already, for which no kick may
    /// come.
    ///
    /// # Errors
    /// The ring makes no sense.
    pub fn want_kicks(&mut self) -> Result<bool, Broken> {
        if self.event_idx {
            let at = RING_AT.saturating_add(usize::from(self.size).saturating_mul(USED_BYTES));
            self.used
                .store::<AtomicU16>(at, self.next_available, Ordering::Relaxed);
        } else {
            self.used.store::<AtomicU16>(0, 0, Ordering::Relaxed);
        }
        // Either the guest sees what we wrote and kicks, or we see its entry.
        fence(Ordering::SeqCst);
        Ok(self.next_available != self.known_available || self.look()?)
    }
}

/// Whether going from `before` to `after` passes the entry the other side waits for.
fn is_crossed(event: u16, before: u16, after: u16) -> bool {
    after.wrapping_sub(event).wrapping_sub(1) < after.wrapping_sub(before)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_due_when_the_awaited_entry_is_among_the_new_ones() {
        for (event, before, after, due) in [
            (0, 0, 1, true),
            (1, 0, 1, false),
            (4, 3, 9, true),
            (9, 3, 9, false),
            (2, 3, 9, false),
            (u16::MAX, u16::MAX, 1, true),
            (0, u16::MAX, 1, true),
            (1, u16::MAX, 1, false),
        ] {
            assert_eq!(
                is_crossed(event, before, after),
                due,
                "{event} {before} {after}"
            );
        }
    }
}
