//! The guest's memory, as far as the front end lets us see it.
//!
//! A region is a piece of a file that the front end sent. It has two addresses: the guest's, which
//! descriptors speak of, and the front end's own, which it names the rings by. Every look-up checks
//! both ends; what is not mapped is an error, never an address.

use super::protocol::{Violation, violation};
use rustix::fs::{SealFlags, fcntl_get_seals, fstat};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use vm_memory::mmap::MmapRegion;
use vm_memory::volatile_memory::{VolatileMemory, VolatileSlice};
use vm_memory::{AtomicInteger, FileOffset};

/// Most regions of a device; QEMU without memory hotplug has three.
pub const REGIONS_MAX: usize = 32;

/// A piece of memory as a message describes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Region {
    /// Where the guest has it.
    pub guest_address: u64,
    /// How long it is.
    pub size_bytes: u64,
    /// Where the front end has it.
    pub front_address: u64,
    /// Where it starts in its file.
    pub file_offset: u64,
}

impl Region {
    fn is_like(&self, other: &Self) -> bool {
        // The offset is left out: a front end may not say it again when it takes a region back.
        self.guest_address == other.guest_address
            && self.size_bytes == other.size_bytes
            && self.front_address == other.front_address
    }

    fn overlaps(&self, other: &Self) -> bool {
        let ends = |region: &Self| region.guest_address.saturating_add(region.size_bytes);
        self.guest_address < ends(other) && other.guest_address < ends(self)
    }
}

/// A region that is mapped. The mapping starts with the file, whatever the region's offset: an
/// offset need not be one that a mapping of huge pages can start at.
#[derive(Debug, Clone)]
struct Mapped {
    region: Region,
    map: Arc<MmapRegion>,
    start: usize,
}

/// What is mapped.
#[derive(Debug, Clone, Default)]
pub struct Memory {
    regions: Vec<Mapped>,
}

/// Nothing is mapped there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotMapped;

impl Memory {
    /// Maps regions, each from its own descriptor.
    ///
    /// # Errors
    /// Regions that are empty, wrap around, overlap or do not lie in their file.
    pub fn map(regions: &[Region], fds: Vec<OwnedFd>) -> Result<Self, Violation> {
        let mut memory = Self::default();
        for (region, fd) in regions.iter().zip(fds) {
            memory.add(*region, fd)?;
        }
        Ok(memory)
    }

    /// Memory of our own with these bytes at guest address zero, for tests and fuzzers.
    ///
    /// # Errors
    /// No bytes, or no memory.
    pub fn of_bytes(bytes: &[u8]) -> Result<Self, Violation> {
        let map = MmapRegion::new(bytes.len())
            .map_err(|e| Violation(format!("{} bytes cannot be mapped: {e}", bytes.len())))?;
        map.as_volatile_slice().copy_from(bytes);
        let region = Region {
            guest_address: 0,
            size_bytes: bytes.len() as u64,
            front_address: 0,
            file_offset: 0,
        };
        Ok(Self {
            regions: vec![Mapped {
                region,
                map: Arc::new(map),
                start: 0,
            }],
        })
    }

    /// Maps one more region.
    ///
    /// # Errors
    /// As [`Memory::map`], and one over [`REGIONS_MAX`].
    pub fn add(&mut self, region: Region, fd: OwnedFd) -> Result<(), Violation> {
        if self.regions.len() >= REGIONS_MAX {
            return violation(format!("more than {REGIONS_MAX} regions of memory"));
        }
        let fits = region.size_bytes > 0
            && region
                .guest_address
                .checked_add(region.size_bytes)
                .is_some()
            && region
                .front_address
                .checked_add(region.size_bytes)
                .is_some();
        let free = !self.regions.iter().any(|m| m.region.overlaps(&region));
        if !fits || !free {
            return violation(format!("{region:x?} wraps around or overlaps another"));
        }
        let (map, start) = map_region(&region, fd)?;
        self.regions.push(Mapped {
            region,
            map: Arc::new(map),
            start,
        });
        Ok(())
    }

    /// Forgets a region.
    ///
    /// # Errors
    /// There is none like it.
    pub fn remove(&mut self, region: &Region) -> Result<(), Violation> {
        let Some(at) = self.regions.iter().position(|m| m.region.is_like(region)) else {
            return violation(format!("no {region:x?} is mapped"));
        };
        self.regions.remove(at);
        Ok(())
    }

    /// Copies from the guest's address on.
    ///
    /// # Errors
    /// Some of it is not mapped; the bytes are then undefined.
    pub fn read(&self, address: u64, into: &mut [u8]) -> Result<(), NotMapped> {
        let mut rest = into;
        self.pieces(address, rest.len(), |piece| {
            let now = std::mem::take(&mut rest);
            let (now, later) = now.split_at_mut(piece.len().min(now.len()));
            piece.copy_to(now);
            rest = later;
        })
    }

    /// Copies to the guest's address on.
    ///
    /// # Errors
    /// Some of it is not mapped; what lies before is written.
    pub fn write(&self, address: u64, from: &[u8]) -> Result<(), NotMapped> {
        let mut rest = from;
        self.pieces(address, from.len(), |piece| {
            let (now, later) = rest.split_at(piece.len().min(rest.len()));
            piece.copy_from(now);
            rest = later;
        })
    }

    /// Whether all of a range is mapped.
    pub fn contains(&self, address: u64, len: usize) -> bool {
        self.pieces(address, len, |_| ()).is_ok()
    }

    /// The range as one piece.
    pub(super) fn slice(&self, address: u64, len: usize) -> Result<VolatileSlice<'_>, NotMapped> {
        let (region, at) = self.find(address).ok_or(NotMapped)?;
        let left = region.region.size_bytes.saturating_sub(at as u64);
        if left < len as u64 {
            return Err(NotMapped);
        }
        let offset = region.start.saturating_add(at);
        region.map.get_slice(offset, len).map_err(|_| NotMapped)
    }

    /// The range at an address of the front end, for a ring. It stays mapped as long as the place
    /// is kept. It must lie in one region and start on a multiple of `align`.
    pub(super) fn place(&self, address: u64, len: usize, align: u64) -> Option<Place> {
        let region = self.regions.iter().find(|m| {
            let at = address.checked_sub(m.region.front_address);
            at.is_some_and(|at| at < m.region.size_bytes)
        })?;
        let at = address.checked_sub(region.region.front_address)?;
        let left = region.region.size_bytes.checked_sub(at)?;
        let start = region.start.checked_add(usize::try_from(at).ok()?)?;
        let aligned = address.is_multiple_of(align) && (start as u64).is_multiple_of(align);
        (left >= len as u64 && aligned).then(|| Place {
            map: Arc::clone(&region.map),
            start,
            len,
        })
    }

    fn find(&self, address: u64) -> Option<(&Mapped, usize)> {
        self.regions.iter().find_map(|m| {
            let at = address.checked_sub(m.region.guest_address)?;
            (at < m.region.size_bytes).then_some((m, usize::try_from(at).ok()?))
        })
    }

    /// Cuts a range at the ends of regions; neighbours may lie in different files.
    fn pieces(
        &self,
        mut address: u64,
        mut len: usize,
        mut each: impl FnMut(VolatileSlice<'_>),
    ) -> Result<(), NotMapped> {
        while len > 0 {
            let (region, at) = self.find(address).ok_or(NotMapped)?;
            let left = region.region.size_bytes.saturating_sub(at as u64);
            let count = len.min(usize::try_from(left).unwrap_or(usize::MAX));
            let offset = region.start.saturating_add(at);
            each(region.map.get_slice(offset, count).map_err(|_| NotMapped)?);
            len = len.saturating_sub(count);
            address = address.checked_add(count as u64).ok_or(NotMapped)?;
        }
        Ok(())
    }
}

fn map_region(region: &Region, fd: OwnedFd) -> Result<(MmapRegion, usize), Violation> {
    let file = File::from(fd);
    let end = region.file_offset.checked_add(region.size_bytes);
    let Some((end, start)) = end.and_then(|end| {
        Some((
            usize::try_from(end).ok()?,
            usize::try_from(region.file_offset).ok()?,
        ))
    }) else {
        return violation(format!("{region:x?} ends beyond any file"));
    };
    let mapped = map_file(file, end)
        .map_err(|why| Violation(format!("{region:x?} cannot be mapped: {why}")))?;
    Ok((mapped, start))
}

/// Maps the first bytes of a file that must have them.
pub(super) fn map_file(file: File, len: usize) -> Result<MmapRegion, String> {
    let size = fstat(&file).map_err(|e| e.to_string())?.st_size;
    if u64::try_from(size).unwrap_or_default() < len as u64 {
        return Err(format!("its file has {size} bytes, {len} are needed"));
    }
    let sealed = fcntl_get_seals(&file).is_ok_and(|seals| seals.contains(SealFlags::SHRINK));
    if !sealed {
        // See the module's page: whoever can shrink the file can end this process.
        tracing::info!(
            bytes = len,
            "memory of the front end is not sealed against shrinking"
        );
    }
    MmapRegion::from_file(FileOffset::new(file, 0), len).map_err(|e| e.to_string())
}

/// A range that stays mapped as long as this lives: a ring, or an inflight region.
#[derive(Debug, Clone)]
pub(super) struct Place {
    map: Arc<MmapRegion>,
    start: usize,
    len: usize,
}

impl Place {
    pub(super) fn new(map: Arc<MmapRegion>, start: usize, len: usize) -> Option<Self> {
        let end = start.checked_add(len)?;
        (end <= map.size()).then_some(Self { map, start, len })
    }

    /// A value at an offset. One outside of the place, which no caller asks for, reads as nothing.
    pub(super) fn load<T: AtomicInteger>(&self, offset: usize, order: Ordering) -> Option<T::V> {
        self.cell::<T>(offset).map(|cell| cell.load(order))
    }

    pub(super) fn store<T: AtomicInteger>(&self, offset: usize, value: T::V, order: Ordering) {
        if let Some(cell) = self.cell::<T>(offset) {
            cell.store(value, order);
        }
    }

    fn cell<T: AtomicInteger>(&self, offset: usize) -> Option<&T> {
        let end = offset.checked_add(size_of::<T>())?;
        if end > self.len {
            return None;
        }
        self.map
            .get_atomic_ref(self.start.checked_add(offset)?)
            .ok()
    }
}
