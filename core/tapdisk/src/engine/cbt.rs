//! The log of changed blocks: which 64 KiB of the disk were changed since it was begun.
//!
//! ```text
//!  change ──> marked in memory ──> is what it changes visible on disk?
//!                │                    no:  data goes out, the flush that makes it visible takes
//!                │                         the mark along, before its table is written
//!                │                    yes: waits until the mark is durable, then data goes out
//!                └──> marked pages ──> fdatasync of the log     one for all who wait
//! ```
//! After a power cut the log may have marks for changes that were lost, never the reverse. Most
//! first changes cost nothing for that: after a snapshot the leaf is empty, and what is written into
//! a new block or to a sector without its bit cannot be seen before the next flush. Only an
//! overwrite of what was there before waits, once for each 64 KiB, and together with all others.
//! (XenServer's data path sets the bit in a mapping before the write and never syncs it, so its log
//! is worth nothing after a crash.)
//!
//! The log's `consistent` flag is cleared, durably, before the first change, and gets the value it
//! had when the log is done with in order: stopped, handed over at a snapshot, or the disk closed.
//! So a reader that believes logs with the flag only is right. A log that cannot be written is
//! *broken*: the disk goes on without it, and its flag stays clear.

use super::Engine;
use super::layer::Place;
use super::request::{Error, ErrorKind};
use super::state::{Context, Part};
use block::{Action, FileId};
use std::ops::Range;
use units::SECTOR_BYTES;
use vhd_rs::cbt::{CBT_BLOCK_BYTES, CBT_HEADER_BYTES, CbtHeader};
use vhd_rs::{Step, bitmap};

/// The log is kept and written by pages of this many bytes of its file.
const PAGE: usize = 512;

/// A log given to [`super::LiveOp::CbtStart`] or [`Engine::stage_log`].
#[derive(Debug)]
pub struct LogSpec {
    /// Its file, as the operations will name it. Writes are not aligned to anything.
    pub file: FileId,
    /// Its header.
    pub header: CbtHeader,
    /// Its bitmap as it is in the file.
    pub bitmap: Vec<u8>,
}

/// How the log in use stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogState {
    /// Its file.
    pub file: FileId,
    /// Whether it will say that it is consistent when it is done with.
    pub trusted: bool,
    /// Bytes of the disk that are marked, in whole blocks of 64 KiB.
    pub changed_bytes: u64,
    /// Why it misses changes from some time on.
    pub broken: Option<String>,
}

#[derive(Debug)]
struct Page {
    bytes: [u8; PAGE],
    /// What is durable, while that is less.
    durable: Option<Box<[u8; PAGE]>>,
    /// What the sync under way makes durable.
    writing: Option<Box<[u8; PAGE]>>,
    /// Marked since the last sync began.
    dirty: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Idle,
    Writing,
    Syncing,
}

/// The log in use.
#[derive(Debug)]
pub(super) struct Log {
    header: CbtHeader,
    state: LogState,
    /// Those that are not empty, by their number in the file.
    pages: Vec<Option<Box<Page>>>,
    dirty: Vec<u32>,
    writing: Vec<u32>,
    pending: u32,
    phase: Phase,
    /// Syncs that began and that are done.
    begun: u64,
    done: u64,
    /// Another sync is to begin, whether marks or parts wait for it.
    wanted: bool,
    waiters: Vec<Part>,
}

impl Log {
    /// Checks that the log is one of a disk of this size.
    pub(super) fn new(spec: LogSpec, disk_bytes: u64) -> Result<Self, Error> {
        let LogSpec {
            file,
            mut header,
            bitmap,
        } = spec;
        let (has, needs) = (bitmap.len() as u64, header.bitmap_bytes());
        if header.size_bytes < disk_bytes || has != needs {
            let text = format!(
                "a log for {} bytes with a bitmap of {has} does not fit a disk of {disk_bytes} bytes",
                header.size_bytes
            );
            return Err(Error::new(ErrorKind::Invalid, text));
        }
        let trusted = std::mem::take(&mut header.consistent);
        let content: Vec<u8> = header.to_bytes().into_iter().chain(bitmap).collect();
        let marked: u64 = content
            .iter()
            .skip(CBT_HEADER_BYTES)
            .map(|byte| u64::from(byte.count_ones()))
            .sum();
        let page = |bytes: &[u8]| {
            let mut page = [0; PAGE];
            page.iter_mut()
                .zip(bytes)
                .for_each(|(to, from)| *to = *from);
            let empty = page.iter().all(|byte| *byte == 0);
            (!empty).then(|| Box::new(Page::of(page)))
        };
        Ok(Self {
            header,
            state: LogState {
                file,
                trusted,
                changed_bytes: marked.saturating_mul(CBT_BLOCK_BYTES),
                broken: None,
            },
            pages: content.chunks(PAGE).map(page).collect(),
            dirty: Vec::new(),
            writing: Vec::new(),
            pending: 0,
            phase: Phase::Idle,
            begun: 0,
            done: 0,
            wanted: false,
            waiters: Vec::new(),
        })
    }

    /// The steps that write its header, durably.
    fn header_steps(&self, header: &CbtHeader) -> [(FileId, Step); 2] {
        let bytes = header.to_bytes().to_vec();
        let write = Step::Write { offset: 0, bytes };
        [(self.state.file, write), (self.state.file, Step::Flush)]
    }

    /// Where the marks of a range of the disk are: page, byte in it, bit. The range is within one
    /// block of the disk, so these are few.
    fn places(&self, bytes: &Range<u64>) -> impl Iterator<Item = (usize, usize, u8)> + use<> {
        let extents = self.header.size_bytes.div_ceil(CBT_BLOCK_BYTES);
        let first = bytes.start / CBT_BLOCK_BYTES;
        let end = bytes.end.div_ceil(CBT_BLOCK_BYTES).min(extents);
        (first..end).map(|extent| {
            let at = usize::try_from(extent / 8).unwrap_or(usize::MAX);
            let at = at.saturating_add(CBT_HEADER_BYTES);
            (at / PAGE, at % PAGE, 1 << (extent % 8))
        })
    }

    fn mark(&mut self, bytes: &Range<u64>) {
        for (number, at, bit) in self.places(bytes) {
            let Some(place) = self.pages.get_mut(number) else {
                continue;
            };
            let page = place.get_or_insert_with(|| Box::new(Page::of([0; PAGE])));
            if !page.mark(at, bit) {
                continue;
            }
            self.state.changed_bytes = self.state.changed_bytes.saturating_add(CBT_BLOCK_BYTES);
            if !std::mem::replace(&mut page.dirty, true) {
                self.dirty.push(u32::try_from(number).unwrap_or(u32::MAX));
            }
        }
    }

    fn is_durable(&self, bytes: &Range<u64>) -> bool {
        self.places(bytes).all(|(number, at, bit)| {
            let page = self.pages.get(number).and_then(Option::as_ref);
            page.is_some_and(|page| page.is_durable(at, bit))
        })
    }

    /// Number of the sync after which all present marks are durable.
    fn needed(&self) -> u64 {
        self.begun.saturating_add(u64::from(!self.dirty.is_empty()))
    }

    /// Begins a sync: what is to be written where.
    fn begin(&mut self) -> Vec<(u64, Vec<u8>)> {
        let end = CBT_HEADER_BYTES as u64 + self.header.bitmap_bytes();
        self.begun += 1;
        self.wanted = false;
        self.phase = Phase::Writing;
        self.writing = std::mem::take(&mut self.dirty);
        self.writing.sort_unstable();
        let mut writes = Vec::with_capacity(self.writing.len());
        for number in &self.writing {
            let page = self.pages.get_mut(*number as usize);
            if let Some(page) = page.and_then(Option::as_mut) {
                page.dirty = false;
                page.writing = Some(Box::new(page.bytes));
                let offset = u64::from(*number) * PAGE as u64;
                let inside = end.saturating_sub(offset).min(PAGE as u64) as usize;
                let bytes = page.bytes.get(..inside).unwrap_or_default();
                writes.push((offset, bytes.to_vec()));
            }
        }
        self.pending = 1;
        writes
    }

    fn finish(&mut self) {
        self.phase = Phase::Idle;
        self.done = self.begun;
        for number in std::mem::take(&mut self.writing) {
            let page = self.pages.get_mut(number as usize);
            if let Some(page) = page.and_then(Option::as_mut) {
                let written = page.writing.take();
                page.durable = written.filter(|_| page.dirty);
            }
        }
    }
}

impl Page {
    fn of(bytes: [u8; PAGE]) -> Self {
        Self {
            bytes,
            durable: None,
            writing: None,
            dirty: false,
        }
    }

    /// Sets a bit; whether it was clear.
    fn mark(&mut self, at: usize, bit: u8) -> bool {
        let before = self.bytes;
        let Some(byte) = self.bytes.get_mut(at).filter(|byte| **byte & bit == 0) else {
            return false;
        };
        *byte |= bit;
        self.durable.get_or_insert_with(|| Box::new(before));
        true
    }

    fn is_durable(&self, at: usize, bit: u8) -> bool {
        let durable = self.durable.as_deref().unwrap_or(&self.bytes);
        durable.get(at).is_some_and(|byte| byte & bit != 0)
    }
}

impl Engine {
    /// The log in use, if there is one.
    pub fn log_state(&self) -> Option<&LogState> {
        self.log.as_deref().map(|log| &log.state)
    }

    /// The log that the next [`super::LiveOp::SnapshotSwitch`] hands over to; without one the present
    /// log goes on. Forgotten if that operation fails.
    ///
    /// # Errors
    /// `Invalid` for a log of another disk, `Busy` while a live operation is under way.
    pub fn stage_log(&mut self, spec: LogSpec) -> Result<(), Error> {
        if self.live.is_some() {
            let text = "another live operation is under way";
            return Err(Error::new(ErrorKind::Busy, text));
        }
        let log = Log::new(spec, self.size_bytes())?;
        self.staged_log = Some(Box::new(log));
        Ok(())
    }

    /// Marks what a part is about to change. `false`: it must not be changed yet, and the part will
    /// be started again.
    pub(super) fn note_change(&mut self, part: Part) -> bool {
        let visible = self.is_visible(part);
        let Some(log) = self.log.as_mut().filter(|log| log.state.broken.is_none()) else {
            return true;
        };
        let start = part.disk_sector().saturating_mul(SECTOR_BYTES);
        let bytes = start..start.saturating_add(part.len_bytes());
        log.mark(&bytes);
        if !visible || log.is_durable(&bytes) {
            return true;
        }
        log.waiters.push(part);
        // Else the sync under way has them all.
        log.wanted |= !log.dirty.is_empty();
        false
    }

    /// Whether a crash right after the part's sectors were changed in the file could show that.
    fn is_visible(&mut self, part: Part) -> bool {
        let place = self.map.leaf().place(part.block);
        if matches!(place, Place::Full(_)) {
            return true;
        }
        match self.map.leaf_blocks.get(part.block) {
            Some(known) if known.fresh.is_some() => false,
            Some(known) => {
                let mut runs = bitmap::runs(known.bits.as_slice(), part.start..part.end);
                runs.any(|run| run.present)
            }
            None => !matches!(place, Place::Absent),
        }
    }

    /// Begins the sync that parts wait for, if none is under way.
    pub(super) fn start_due_log_sync(&mut self) {
        let due = |log: &Log| log.wanted && log.phase == Phase::Idle;
        if self.log.as_deref().is_some_and(due) {
            self.start_log_sync();
        }
    }

    /// For a flush: begins a sync if there are marks that are not durable, and says which one makes
    /// them so; zero if all are.
    pub(super) fn sync_log(&mut self) -> u64 {
        let Some(log) = self.log.as_mut().filter(|log| log.state.broken.is_none()) else {
            return 0;
        };
        let needed = log.needed();
        if needed > log.begun {
            log.wanted = true;
            self.start_due_log_sync();
        }
        needed
    }

    /// Whether the sync with this number is done, or will never be.
    pub(super) fn log_is_synced(&self, number: u64) -> bool {
        let undone = |log: &Log| log.done < number && log.state.broken.is_none();
        !self.log.as_deref().is_some_and(undone)
    }

    /// Whether some mark is not durable.
    pub(super) fn log_is_behind(&self) -> bool {
        let number = self.log.as_deref().map_or(0, Log::needed);
        !self.log_is_synced(number)
    }

    fn start_log_sync(&mut self) {
        let Some(log) = &mut self.log else { return };
        let file = log.state.file;
        let writes = log.begin();
        log.pending = log
            .pending
            .saturating_add(u32::try_from(writes.len()).unwrap_or(0));
        for (offset, bytes) in writes {
            let mut buffer = self.pool.take(bytes.len());
            buffer.as_mut_slice().copy_from_slice(&bytes);
            let data = buffer.share();
            self.emit(file, Action::Write { offset, data }, Context::LogWrite);
        }
        self.log_write_done(Ok(()));
    }

    pub(super) fn log_write_done(&mut self, result: Result<(), block::Error>) {
        let Some(log) = &mut self.log else { return };
        if let Err(error) = result {
            log.state.broken.get_or_insert_with(|| error.to_string());
        }
        log.pending = log.pending.saturating_sub(1);
        if log.pending > 0 {
            return;
        }
        if log.state.broken.is_some() {
            return self.log_sync_ended();
        }
        log.phase = Phase::Syncing;
        let file = log.state.file;
        self.emit(file, Action::Fdatasync, Context::LogSync);
    }

    pub(super) fn log_sync_done(&mut self, result: Result<(), block::Error>) {
        let Some(log) = &mut self.log else { return };
        match result {
            Ok(()) => log.finish(),
            Err(error) => {
                log.state.broken.get_or_insert_with(|| error.to_string());
            }
        }
        self.log_sync_ended();
    }

    fn log_sync_ended(&mut self) {
        let Some(log) = &mut self.log else { return };
        log.phase = Phase::Idle;
        let waiters = std::mem::take(&mut log.waiters);
        if log.wanted && log.state.broken.is_none() {
            // Whoever waits for marks that were made meanwhile asks again and finds it under way.
            self.start_log_sync();
        }
        for part in waiters {
            self.start_part(part);
        }
        self.flush_log_synced();
    }

    /// The steps of a live operation on logs: those before everything else, and those behind it,
    /// after which nothing is marked in the log any more.
    pub(super) fn log_steps(&self, grown_to: Option<u64>, ends: bool) -> [Vec<(FileId, Step)>; 2] {
        let (mut before, mut behind) = (Vec::new(), Vec::new());
        if let Some(log) = &self.staged_log {
            before.extend(log.header_steps(&log.header));
        }
        let Some(log) = self.log.as_deref().filter(|log| log.state.broken.is_none()) else {
            return [before, behind];
        };
        if let Some(size_bytes) = grown_to {
            // As the image rounds it.
            let block_bytes = u64::from(vhd_rs::BLOCK_BYTES);
            let size_bytes = size_bytes.checked_next_multiple_of(block_bytes);
            let size_bytes = size_bytes.unwrap_or(u64::MAX).max(log.header.size_bytes);
            let header = CbtHeader {
                size_bytes,
                ..log.header.clone()
            };
            let bytes = (CBT_HEADER_BYTES as u64).saturating_add(header.bitmap_bytes());
            before.push((log.state.file, Step::SetSize { bytes }));
            before.extend(log.header_steps(&header));
        }
        if ends || self.staged_log.is_some() {
            let header = CbtHeader {
                consistent: log.state.trusted,
                ..log.header.clone()
            };
            behind.extend(log.header_steps(&header));
        }
        [before, behind]
    }

    /// Goes on with the log of the engine that this one takes the place of.
    pub(super) fn take_log(&mut self, old: &mut Engine) {
        self.log = old.log.take();
        let Some(log) = &mut self.log else { return };
        if log.phase != Phase::Idle {
            let text = "it was handed over while it was written";
            log.state.broken.get_or_insert_with(|| text.to_owned());
            let waiters = std::mem::take(&mut log.waiters);
            waiters.into_iter().for_each(|part| old.start_part(part));
        }
    }

    /// The log's file and header are for a disk of this size now.
    pub(super) fn log_grown(&mut self, size_bytes: u64) {
        if let Some(log) = &mut self.log {
            log.header.size_bytes = log.header.size_bytes.max(size_bytes);
            let bytes = (CBT_HEADER_BYTES as u64).saturating_add(log.header.bitmap_bytes());
            let pages = usize::try_from(bytes.div_ceil(PAGE as u64)).unwrap_or(0);
            if pages > log.pages.len() {
                log.pages.resize_with(pages, || None);
            }
            if let Some(Some(page)) = log.pages.first_mut() {
                let header = log.header.to_bytes();
                page.bytes
                    .iter_mut()
                    .zip(header)
                    .for_each(|(to, from)| *to = from);
            }
        }
    }
}
