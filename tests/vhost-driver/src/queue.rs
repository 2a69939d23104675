//! The driver's side of a split virtqueue with block requests (VIRTIO 1.2, 2.7 and 5.2.6).
//!
//! A queue has as many slots as requests fit into it. A slot has its descriptors, a header, a
//! status, an indirect table and its data at fixed places, so that a request is a few stores.

use crate::Guest;
use anyhow::Result;
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering, fence};

const DESCRIPTOR_BYTES: u64 = 16;
const FLAG_NEXT: u16 = 1;
const FLAG_WRITE: u16 = 2;
const FLAG_INDIRECT: u16 = 4;

/// Descriptors of a request without an indirect table: header, data, status.
const DIRECT: u16 = 3;

/// Room of a slot before its data: header, status and a table of eight descriptors.
const SLOT_HEAD_BYTES: u64 = 256;
const STATUS_AT: u64 = 16;
const TABLE_AT: u64 = 64;
const TABLE_ENTRIES_MAX: u64 = 12;

/// What the data path may answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// Done.
    Ok,
    /// Not done.
    IoError,
    /// Not known.
    Unsupported,
    /// Nothing a device may answer.
    Other(u8),
}

/// A request. Data is the slot's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ask {
    /// Reads into the slot's data.
    Read {
        /// Where to start.
        sector: u64,
        /// How much.
        bytes: u32,
    },
    /// Writes the slot's data.
    Write {
        /// Where to start.
        sector: u64,
        /// How much.
        bytes: u32,
    },
    /// Makes durable what was answered.
    Flush,
    /// Reads the serial number into the slot's data.
    Serial,
    /// Gives space back.
    Discard {
        /// Where to start.
        sector: u64,
        /// How much.
        sectors: u32,
    },
    /// Makes a range read as zeroes.
    WriteZeroes {
        /// Where to start.
        sector: u64,
        /// How much.
        sectors: u32,
        /// Whether space may be given back.
        unmap: bool,
    },
    /// Any type with data to be read by the device and data to be written by it.
    Odd {
        /// Its type.
        kind: u32,
        /// Its sector.
        sector: u64,
        /// Bytes of the slot's data for the device to read.
        out: u32,
        /// Bytes after those for the device to write.
        back: u32,
    },
}

/// A request that was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Done {
    /// The slot it was in.
    pub slot: u16,
    /// What came of it.
    pub status: Status,
    /// Bytes the device says it wrote.
    pub written: u32,
}

/// Where the parts of a queue lie, as offsets in the guest's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// Entries.
    pub size: u16,
    /// Descriptor table.
    pub table: u64,
    /// Available ring.
    pub available: u64,
    /// Used ring.
    pub used: u64,
    /// First slot.
    pub slots: u64,
    /// Data of a slot.
    pub data_bytes: u32,
    /// Requests have indirect tables.
    pub indirect: bool,
    /// The other side says by index what it waits for.
    pub event_idx: bool,
}

impl Layout {
    /// Puts a queue at an offset that is a multiple of 4096.
    pub fn at(offset: u64, size: u16, data_bytes: u32, indirect: bool, event_idx: bool) -> Self {
        let entries = u64::from(size);
        let available = offset + entries * DESCRIPTOR_BYTES;
        let used = (available + 6 + entries * 2).next_multiple_of(64);
        let slots = (used + 6 + entries * 8).next_multiple_of(4096);
        Self {
            size,
            table: offset,
            available,
            used,
            slots,
            data_bytes,
            indirect,
            event_idx,
        }
    }

    /// Requests that fit.
    pub fn slot_count(&self) -> u16 {
        match self.indirect {
            true => self.size,
            false => self.size / DIRECT,
        }
    }

    fn slot_bytes(&self) -> u64 {
        (SLOT_HEAD_BYTES + u64::from(self.data_bytes)).next_multiple_of(4096)
    }

    /// Where a slot's header is.
    pub fn header_of(&self, slot: u16) -> u64 {
        self.slots + u64::from(slot) * self.slot_bytes()
    }

    /// Where a slot's data is.
    pub fn data_of(&self, slot: u16) -> u64 {
        self.header_of(slot) + SLOT_HEAD_BYTES
    }

    /// First byte after the queue, a multiple of 4096.
    pub fn end(&self) -> u64 {
        self.header_of(self.slot_count()).next_multiple_of(4096)
    }
}

/// A queue as the driver has it.
#[derive(Debug)]
pub struct Queue {
    guest: Guest,
    layout: Layout,
    kick: OwnedFd,
    call: OwnedFd,
    error: OwnedFd,
    free: Vec<u16>,
    /// The next available entry, how far the device was told, how far it was asked about kicks.
    next: u16,
    told: u16,
    /// The next used entry to look at.
    seen: u16,
    /// Kicks given.
    kicks: u64,
}

impl Queue {
    /// Makes a queue in memory that is zero there.
    pub fn new(guest: &Guest, layout: Layout) -> Result<Self> {
        let fd = || eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        Ok(Self {
            guest: guest.clone(),
            layout,
            kick: fd()?,
            call: fd()?,
            error: fd()?,
            free: (0..layout.slot_count()).rev().collect(),
            next: 0,
            told: 0,
            seen: 0,
            kicks: 0,
        })
    }

    /// Where its parts lie.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Kick, call and error eventfds.
    pub fn fds(&self) -> [BorrowedFd<'_>; 3] {
        [self.kick.as_fd(), self.call.as_fd(), self.error.as_fd()]
    }

    /// The used index, where a device that knows nothing else goes on.
    pub fn used_index(&self) -> u16 {
        self.guest
            .load::<AtomicU16>(self.layout.used + 2, Ordering::Acquire)
    }

    /// Requests in flight.
    pub fn in_flight(&self) -> usize {
        usize::from(self.layout.slot_count()) - self.free.len()
    }

    /// Kicks given so far.
    pub fn kicks(&self) -> u64 {
        self.kicks
    }

    /// Takes a free slot.
    pub fn slot(&mut self) -> Option<u16> {
        self.free.pop()
    }

    /// Copies into a slot's data.
    pub fn fill(&self, slot: u16, data: &[u8]) {
        self.guest.write(self.layout.data_of(slot), data);
    }

    /// Copies out of a slot's data.
    pub fn data(&self, slot: u16, bytes: u32) -> Vec<u8> {
        let mut data = vec![0; bytes as usize];
        self.guest.read(self.layout.data_of(slot), &mut data);
        data
    }

    /// Puts a request into a slot that was taken. The device sees it after [`Queue::tell`].
    pub fn put(&mut self, slot: u16, ask: Ask) {
        let (kind, sector, out, back) = match ask {
            Ask::Read { sector, bytes } => (0, sector, 0, bytes),
            Ask::Write { sector, bytes } => (1, sector, bytes, 0),
            Ask::Flush => (4, 0, 0, 0),
            Ask::Serial => (8, 0, 0, 20),
            Ask::Discard { sector, sectors } => (11, 0, self.range(slot, sector, sectors, 0), 0),
            Ask::WriteZeroes {
                sector,
                sectors,
                unmap,
            } => (13, 0, self.range(slot, sector, sectors, unmap.into()), 0),
            Ask::Odd {
                kind,
                sector,
                out,
                back,
            } => (kind, sector, out, back),
        };
        let header = self.layout.header_of(slot);
        self.guest
            .store::<AtomicU64>(header, u64::from(kind), Ordering::Relaxed);
        self.guest
            .store::<AtomicU64>(header + 8, sector, Ordering::Relaxed);
        self.guest.write(header + STATUS_AT, &[0xff]);
        let data = self.layout.data_of(slot);
        let parts = [
            (header, 16, 0),
            (data, out, 0),
            (data + u64::from(out), back, FLAG_WRITE),
            (header + STATUS_AT, 1, FLAG_WRITE),
        ];
        let parts = parts.into_iter().filter(|(_, len, _)| *len > 0);
        let head = self.describe(slot, parts);
        self.push(head);
    }

    fn range(&self, slot: u16, sector: u64, sectors: u32, flags: u32) -> u32 {
        let mut range = sector.to_le_bytes().to_vec();
        range.extend(sectors.to_le_bytes());
        range.extend(flags.to_le_bytes());
        self.fill(slot, &range);
        range.len() as u32
    }

    /// Writes a slot's descriptors; returns the head.
    fn describe(&self, slot: u16, parts: impl Iterator<Item = (u64, u32, u16)>) -> u16 {
        let (table, first, head) = match self.layout.indirect {
            true => (self.layout.header_of(slot) + TABLE_AT, 0, slot),
            false => (self.layout.table, slot * DIRECT, slot * DIRECT),
        };
        let mut count = 0_u16;
        let mut parts = parts.peekable();
        while let Some((at, len, flags)) = parts.next() {
            let more = if parts.peek().is_some() { FLAG_NEXT } else { 0 };
            let next = first + count + 1;
            self.descriptor(table, first + count, at, len, flags | more, next);
            count += 1;
        }
        assert!(u64::from(count) <= TABLE_ENTRIES_MAX && (self.layout.indirect || count <= DIRECT));
        if self.layout.indirect {
            let len = u32::from(count) * DESCRIPTOR_BYTES as u32;
            self.descriptor(self.layout.table, head, table, len, FLAG_INDIRECT, 0);
        }
        head
    }

    /// Writes one descriptor of the table at an offset; `at` is an offset too.
    pub fn descriptor(&self, table: u64, index: u16, at: u64, len: u32, flags: u16, next: u16) {
        let place = table + u64::from(index) * DESCRIPTOR_BYTES;
        let rest = u64::from(len) | u64::from(flags) << 32 | u64::from(next) << 48;
        let address = Guest::ADDRESS.wrapping_add(at);
        self.guest
            .store::<AtomicU64>(place, address, Ordering::Relaxed);
        self.guest
            .store::<AtomicU64>(place + 8, rest, Ordering::Relaxed);
    }

    /// Makes a head available, whatever it leads to.
    pub fn push(&mut self, head: u16) {
        let at = self.layout.available + 4 + u64::from(self.next % self.layout.size) * 2;
        self.guest.store::<AtomicU16>(at, head, Ordering::Relaxed);
        self.next = self.next.wrapping_add(1);
    }

    /// Shows the device what was put, and kicks it if it wants that.
    pub fn tell(&mut self) {
        if self.next == self.told {
            return;
        }
        let index = self.layout.available + 2;
        self.guest
            .store::<AtomicU16>(index, self.next, Ordering::Release);
        fence(Ordering::SeqCst);
        let wanted = if self.layout.event_idx {
            let at = self.layout.used + 4 + u64::from(self.layout.size) * 8;
            let event = self.guest.load::<AtomicU16>(at, Ordering::Relaxed);
            let passed = self.next.wrapping_sub(event).wrapping_sub(1);
            passed < self.next.wrapping_sub(self.told)
        } else {
            let flags = self
                .guest
                .load::<AtomicU16>(self.layout.used, Ordering::Relaxed);
            flags & 1 == 0
        };
        self.told = self.next;
        if wanted {
            self.kick();
        }
    }

    /// Kicks.
    pub fn kick(&mut self) {
        self.kicks += 1;
        let _ = rustix::io::write(&self.kick, &1_u64.to_ne_bytes());
    }

    /// Takes what was answered; slots are free again.
    pub fn poll(&mut self, done: &mut Vec<Done>) {
        let index = self.used_index();
        while self.seen != index {
            let at = self.layout.used + 4 + u64::from(self.seen % self.layout.size) * 8;
            let head = self.guest.load::<AtomicU32>(at, Ordering::Relaxed) as u16;
            let written = self.guest.load::<AtomicU32>(at + 4, Ordering::Relaxed);
            let slot = match self.layout.indirect {
                true => head,
                false => head / DIRECT,
            };
            let mut status = [0];
            let place = self.layout.header_of(slot) + STATUS_AT;
            self.guest.read(place, &mut status);
            debug_assert!(!self.free.contains(&slot), "slot {slot} is answered twice");
            self.free.push(slot);
            self.seen = self.seen.wrapping_add(1);
            done.push(Done {
                slot,
                status: match status {
                    [0] => Status::Ok,
                    [1] => Status::IoError,
                    [2] => Status::Unsupported,
                    [other] => Status::Other(other),
                },
                written,
            });
        }
    }

    /// Says that no calls are wanted, as the queue is polled.
    pub fn refuse_calls(&self) {
        self.guest
            .store::<AtomicU16>(self.layout.available, 1, Ordering::Relaxed);
    }

    /// Waits until something is answered or the queue's error eventfd is raised; what is answered
    /// is taken. `false` when neither happens in time.
    pub fn wait(&mut self, done: &mut Vec<Done>, timeout_ms: i64) -> Result<bool> {
        let before = done.len();
        let timeout = rustix::event::Timespec {
            tv_sec: timeout_ms / 1000,
            tv_nsec: timeout_ms % 1000 * 1_000_000,
        };
        loop {
            // Asks for a call with the next answer, then looks.
            let at = self.layout.available + 4 + u64::from(self.layout.size) * 2;
            self.guest
                .store::<AtomicU16>(at, self.seen, Ordering::Relaxed);
            fence(Ordering::SeqCst);
            self.poll(done);
            if done.len() > before {
                return Ok(true);
            }
            let mut fds = [
                PollFd::new(&self.call, PollFlags::IN),
                PollFd::new(&self.error, PollFlags::IN),
            ];
            if poll(&mut fds, Some(&timeout))? == 0 {
                return Ok(false);
            }
            if !fds[1].revents().is_empty() {
                return Ok(true);
            }
            // It may be a call for what was taken without waiting.
            let _ = rustix::io::read(&self.call, &mut [0; 8]);
        }
    }

    /// Whether the device said that the queue is broken.
    pub fn is_broken(&self) -> bool {
        rustix::io::read(&self.error, &mut [0; 8]).is_ok()
    }
}
