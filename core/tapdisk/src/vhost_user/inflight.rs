//! The inflight region: what was taken from the queues and not given back, in memory that outlives
//! this process (vhost-user, "Inflight I/O tracking", split virtqueue).
//!
//! ```text
//! queue    u64 features, u16 version, u16 entries, u16 last_batch_head, u16 used_idx, then
//! entry    u8 inflight, u8[5], u16 next, u64 counter              one for each descriptor
//! ```
//! Giving back is told in three steps around the store of the used index (link the entries of the
//! batch, store, clear them), so that a process that dies between any two of them leaves enough to
//! know which entries the guest has seen.

use super::memory::{Place, map_file};
use super::queue::{Broken, QUEUE_SIZE_MAX};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU64, Ordering};
use vm_memory::mmap::MmapRegion;

const VERSION: u16 = 1;
const VERSION_AT: usize = 8;
const ENTRIES_AT: usize = 10;
const LAST_BATCH_HEAD_AT: usize = 12;
const USED_INDEX_AT: usize = 14;
const HEADER_BYTES: usize = 16;

const ENTRY_BYTES: usize = 16;
const NEXT_AT: usize = 6;
const COUNTER_AT: usize = 8;

/// Queues start on cache lines of their own.
const ALIGN_BYTES: usize = 64;

/// What messages say about a region.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InflightInfo {
    /// Bytes to map.
    pub size_bytes: u64,
    /// Where they start in the file.
    pub offset: u64,
    /// Queues with a part in it.
    pub queues: u16,
    /// Entries of each.
    pub queue_size: u16,
}

impl InflightInfo {
    /// As it travels, with the padding that the structure has in C.
    pub(super) fn to_bytes(self) -> [u8; 24] {
        let mut bytes = [0; 24];
        let fields = self
            .size_bytes
            .to_le_bytes()
            .into_iter()
            .chain(self.offset.to_le_bytes())
            .chain(self.queues.to_le_bytes())
            .chain(self.queue_size.to_le_bytes());
        bytes
            .iter_mut()
            .zip(fields)
            .for_each(|(to, from)| *to = from);
        bytes
    }
}

fn queue_bytes(entries: u16) -> usize {
    let entries = usize::from(entries).saturating_mul(ENTRY_BYTES);
    HEADER_BYTES
        .saturating_add(entries)
        .next_multiple_of(ALIGN_BYTES)
}

/// Makes a region for the front end to keep: empty, and never shorter.
///
/// # Errors
/// What the system says.
pub(super) fn create(queues: u16, queue_size: u16) -> io::Result<(InflightInfo, OwnedFd)> {
    let size_bytes = queue_bytes(queue_size).saturating_mul(usize::from(queues)) as u64;
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = memfd_create("vhost-user-inflight", flags)?;
    ftruncate(&file, size_bytes)?;
    let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
    fcntl_add_seals(&file, seals)?;
    let info = InflightInfo {
        size_bytes,
        offset: 0,
        queues,
        queue_size,
    };
    Ok((info, file))
}

/// A mapped region.
#[derive(Debug)]
pub(super) struct Region {
    info: InflightInfo,
    map: Arc<MmapRegion>,
}

impl Region {
    /// Maps a region that the front end sent.
    ///
    /// # Errors
    /// In words: too small for what it says it has, or not mappable.
    pub(super) fn map(info: InflightInfo, fd: OwnedFd) -> Result<Self, String> {
        let needed = queue_bytes(info.queue_size).saturating_mul(usize::from(info.queues));
        let end = info.offset.checked_add(info.size_bytes);
        let end = end.and_then(|end| usize::try_from(end).ok());
        let fits = info.size_bytes >= needed as u64 && info.offset.is_multiple_of(8);
        let Some(end) = end.filter(|_| fits && needed > 0) else {
            return Err(format!("{info:?} does not hold its queues"));
        };
        let map = map_file(File::from(fd), end)?;
        Ok(Self {
            info,
            map: Arc::new(map),
        })
    }

    /// The part of one queue, if it has one.
    pub(super) fn queue(&self, queue: u16, size: u16) -> Option<Inflight> {
        if queue >= self.info.queues || size > self.info.queue_size {
            return None;
        }
        let bytes = queue_bytes(self.info.queue_size);
        let start = usize::try_from(self.info.offset)
            .ok()?
            .checked_add(bytes.checked_mul(usize::from(queue))?)?;
        let place = Place::new(Arc::clone(&self.map), start, bytes)?;
        Some(Inflight::new(place, size))
    }
}

/// One queue's part of the region.
#[derive(Debug)]
pub struct Inflight {
    place: Place,
    entries: u16,
    counter: u64,
    /// Given back and not visible yet.
    batch: Vec<u16>,
}

impl Inflight {
    fn new(place: Place, entries: u16) -> Self {
        Self {
            place,
            entries,
            counter: 0,
            batch: Vec::new(),
        }
    }

    /// Takes bytes as a queue's part of a region: for fuzzers.
    pub fn of_bytes(bytes: &[u8], entries: u16) -> Option<Self> {
        let map = MmapRegion::<()>::new(queue_bytes(entries).max(1)).ok()?;
        let all = vm_memory::VolatileMemory::as_volatile_slice(&map);
        all.copy_from(bytes);
        let place = Place::new(Arc::new(map), 0, queue_bytes(entries))?;
        (entries <= QUEUE_SIZE_MAX).then(|| Self::new(place, entries))
    }

    /// Reads what the process before left, given the used index that the guest sees: heads of the
    /// chains that are to be done again, the one taken first coming first.
    ///
    /// # Errors
    /// The region is of a queue of another size, or a list in it leaves it.
    pub fn recover(&mut self, used_index: u16) -> Result<Vec<u16>, Broken> {
        self.batch.clear();
        if self.load16(VERSION_AT) == 0 {
            self.store16(ENTRIES_AT, self.entries);
            self.store16(USED_INDEX_AT, used_index);
            self.store16(VERSION_AT, VERSION);
            return Ok(Vec::new());
        }
        if self.load16(ENTRIES_AT) != self.entries {
            return Err(Broken::Inflight);
        }
        self.forget_last_batch(used_index)?;
        let mut taken = Vec::new();
        for head in 0..self.entries {
            let at = self.entry(head);
            let inflight = self.place.load::<AtomicU8>(at, Ordering::Relaxed);
            if inflight.unwrap_or_default() != 0 {
                let counter = at.saturating_add(COUNTER_AT);
                let counter = self.place.load::<AtomicU64>(counter, Ordering::Relaxed);
                taken.push((counter.unwrap_or_default(), head));
            }
        }
        taken.sort_unstable();
        let last = taken.last().map_or(0, |(counter, _)| *counter);
        self.counter = last.wrapping_add(1);
        Ok(taken.into_iter().map(|(_, head)| head).collect())
    }

    /// The guest saw a batch whose entries may still be marked: follows the links back.
    fn forget_last_batch(&mut self, used_index: u16) -> Result<(), Broken> {
        let batch = used_index.wrapping_sub(self.load16(USED_INDEX_AT));
        if batch > self.entries {
            return Err(Broken::Inflight);
        }
        let mut head = self.load16(LAST_BATCH_HEAD_AT);
        for _ in 0..batch {
            if head >= self.entries {
                return Err(Broken::Inflight);
            }
            self.mark(head, 0);
            head = self.load16(self.entry(head).saturating_add(NEXT_AT));
        }
        self.store16(USED_INDEX_AT, used_index);
        Ok(())
    }

    /// A chain was taken.
    pub fn taken(&mut self, head: u16) {
        let at = self.entry(head).saturating_add(COUNTER_AT);
        self.place
            .store::<AtomicU64>(at, self.counter, Ordering::Relaxed);
        self.counter = self.counter.wrapping_add(1);
        self.mark(head, 1);
    }

    /// A chain is about to be given back.
    pub fn giving_back(&mut self, head: u16) {
        let last = self.load16(LAST_BATCH_HEAD_AT);
        self.store16(self.entry(head).saturating_add(NEXT_AT), last);
        self.store16(LAST_BATCH_HEAD_AT, head);
        self.batch.push(head);
    }

    /// What was given back is visible, up to this used index.
    pub fn given_back(&mut self, used_index: u16) {
        self.batch.iter().for_each(|head| self.mark(*head, 0));
        self.batch.clear();
        self.store16(USED_INDEX_AT, used_index);
    }

    fn entry(&self, head: u16) -> usize {
        let before = usize::from(head).saturating_mul(ENTRY_BYTES);
        HEADER_BYTES.saturating_add(before)
    }

    fn mark(&self, head: u16, inflight: u8) {
        // Release: seen in the order of the program by whoever maps the region next.
        self.place
            .store::<AtomicU8>(self.entry(head), inflight, Ordering::Release);
    }

    fn load16(&self, at: usize) -> u16 {
        let value = self.place.load::<AtomicU16>(at, Ordering::Acquire);
        value.unwrap_or_default()
    }

    fn store16(&self, at: usize, value: u16) {
        self.place.store::<AtomicU16>(at, value, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes three chains and gives two of them back, dying before step `cut`; what is then done
    /// again.
    fn dying_at(cut: usize) -> Vec<u16> {
        let map = Arc::new(MmapRegion::<()>::new(queue_bytes(8)).expect("memory"));
        let place = Place::new(map, 0, queue_bytes(8)).expect("its size");
        let mut dying = Inflight::new(place.clone(), 8);
        assert_eq!(dying.recover(100), Ok(Vec::new()));
        [3, 1, 2].into_iter().for_each(|head| dying.taken(head));
        let mut used = 100;
        let steps: [&mut dyn FnMut(&mut Inflight); 6] = [
            &mut |dying| dying.giving_back(1),
            &mut |dying| dying.giving_back(3),
            &mut |_| used = 102,
            &mut |dying| dying.mark(1, 0),
            &mut |dying| dying.mark(3, 0),
            &mut |dying| dying.given_back(102),
        ];
        for step in steps.into_iter().take(cut) {
            step(&mut dying);
        }
        drop(dying);
        let mut next = Inflight::new(place, 8);
        let again = next.recover(used).expect("a region of ours");
        // The next process may die before it does anything.
        assert_eq!(next.recover(used), Ok(again.clone()));
        again
    }

    #[test]
    fn what_the_guest_has_not_seen_is_done_again_and_nothing_else() {
        for cut in 0..=2 {
            assert_eq!(dying_at(cut), [3, 1, 2], "before step {cut}");
        }
        for cut in 3..=6 {
            assert_eq!(dying_at(cut), [2], "before step {cut}");
        }
    }
}
