//! The guest's memory: a memfd that both sides map.

use anyhow::{Context, Result};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use vm_memory::mmap::MmapRegion;
use vm_memory::volatile_memory::VolatileMemory;
use vm_memory::{AtomicInteger, FileOffset};

/// Memory that is shared with the back end. Clones are the same memory.
#[derive(Debug, Clone)]
pub struct Guest {
    map: Arc<MmapRegion>,
    file: Arc<File>,
}

impl Guest {
    /// Where the guest has its memory. Not zero, so that a forgotten translation is noticed.
    pub const ADDRESS: u64 = 0x4000_0000;

    /// Where the front end says that it has it.
    pub const FRONT_ADDRESS: u64 = 0x7f00_0000_0000;

    /// Makes memory of so many bytes, which can be sealed against shrinking as QEMU's is.
    pub fn new(bytes: usize, sealed: bool) -> Result<Self> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = memfd_create("guest", flags)?;
        ftruncate(&file, bytes as u64)?;
        if sealed {
            fcntl_add_seals(&file, SealFlags::SHRINK)?;
        }
        let file = File::from(file);
        let offset = FileOffset::new(file.try_clone()?, 0);
        let map = MmapRegion::from_file(offset, bytes).context("mapping the guest's memory")?;
        Ok(Self {
            map: Arc::new(map),
            file: Arc::new(file),
        })
    }

    /// Its size.
    pub fn len_bytes(&self) -> u64 {
        self.map.size() as u64
    }

    /// The memfd.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Copies from an offset. Panics outside of the memory, as do all here.
    pub fn read(&self, at: u64, into: &mut [u8]) {
        let slice = self.map.get_slice(at as usize, into.len());
        slice.expect("inside the guest's memory").copy_to(into);
    }

    /// Copies to an offset.
    pub fn write(&self, at: u64, from: &[u8]) {
        let slice = self.map.get_slice(at as usize, from.len());
        slice.expect("inside the guest's memory").copy_from(from);
    }

    /// Reads a value that the other side may change.
    pub fn load<T: AtomicInteger>(&self, at: u64, order: Ordering) -> T::V {
        self.cell::<T>(at).load(order)
    }

    /// Writes a value that the other side may read.
    pub fn store<T: AtomicInteger>(&self, at: u64, value: T::V, order: Ordering) {
        self.cell::<T>(at).store(value, order);
    }

    fn cell<T: AtomicInteger>(&self, at: u64) -> &T {
        let cell = self.map.get_atomic_ref(at as usize);
        cell.expect("aligned and inside the guest's memory")
    }
}
