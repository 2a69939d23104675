//! Files on a disk with a volatile cache, and what a power cut may leave of them.
//!
//! ```text
//!  submit ──> queued ──poll──> done, but only in the cache ──fdatasync──> durable
//!                │                        │
//!                └───────── crash ────────┴──> each may be there, be missing, be torn at 512 bytes,
//!                                              in any order
//! ```
//! A flush covers what completed before the flush was *submitted*; that is the least a kernel gives.

use crate::ram::{Effect, check_range, no_such_file, read_into};
use crate::{
    Action, BlockIo, Completion, Cuts, Error, ErrorKind, FileId, Grain, Op, RamDisk, Rng,
    SparseBytes, Wait,
};

/// Which queued operation finishes next.
#[derive(Debug, Clone)]
pub enum Order {
    /// The oldest.
    Fifo,
    /// Any, drawn from this generator.
    Random(Rng),
}

/// What a power cut leaves of the changes that were not durable.
#[derive(Debug, Clone)]
pub enum Crash {
    /// The changes whose bit is set in the mask (bit 0 is the oldest), whole and in order. Changes
    /// beyond the 64th are lost.
    Subset(u64),
    /// A subset in a random order with random tears, drawn from this seed; see [`Cuts::sample`].
    Torn(u64),
}

#[derive(Debug, Clone, Default)]
struct SimFile {
    live: SparseBytes,
    durable: SparseBytes,
    /// Changes in `live` that are not in `durable`, with the serial number of their completion.
    cached: Vec<(u64, Effect)>,
}

#[derive(Debug)]
struct Queued {
    op: Op,
    /// Completions given out before this was submitted: what a flush covers.
    after: u64,
}

/// A simulated disk. Each poll finishes one operation, so that a test can cut the power anywhere.
#[derive(Debug)]
pub struct SimDisk {
    files: Vec<SimFile>,
    queue: Vec<Queued>,
    order: Order,
    completed: u64,
}

impl SimDisk {
    /// Makes a disk without files.
    pub fn new(order: Order) -> Self {
        Self {
            files: Vec::new(),
            queue: Vec::new(),
            order,
            completed: 0,
        }
    }

    /// Makes a disk whose files hold what `disk` holds, durably.
    pub fn from_ram(disk: &RamDisk, order: Order) -> Self {
        let mut sim = Self::new(order);
        for file in disk.files() {
            sim.add_file(file.clone());
        }
        sim
    }

    /// Adds a file with this durable content.
    pub fn add_file(&mut self, content: impl Into<SparseBytes>) -> FileId {
        let live = content.into();
        self.files.push(SimFile {
            durable: live.clone(),
            live,
            cached: Vec::new(),
        });
        FileId(u32::try_from(self.files.len() - 1).unwrap_or(u32::MAX))
    }

    /// The content of a file as a reader sees it now.
    pub fn live(&self, file: FileId) -> Option<&SparseBytes> {
        self.files.get(file.0 as usize).map(|f| &f.live)
    }

    /// How many changes a crash now could keep or lose, those not finished yet included.
    pub fn volatile(&self) -> usize {
        self.changes().len().saturating_add(self.queued().count())
    }

    /// What a barrier that fails does to a file: what was written before it still reads back, and no
    /// later barrier makes it durable.
    pub fn fail_sync(&mut self, file: FileId) {
        if let Some(file) = self.files.get_mut(file.0 as usize) {
            file.cached.retain(|(_, effect)| {
                matches!(effect, Effect::Truncate { .. } | Effect::Extend { .. })
            });
        }
    }

    /// Changes that are not finished, which may have reached the disk as well.
    fn queued(&self) -> impl Iterator<Item = (usize, Effect)> + '_ {
        let sound = self.queue.iter().filter(|q| check_range(&q.op).is_ok());
        sound.filter_map(|q| Some((q.op.file.0 as usize, Effect::of(&q.op.action)?)))
    }

    fn changes(&self) -> Vec<(usize, &Effect)> {
        let cached = self
            .files
            .iter()
            .enumerate()
            .flat_map(|(file, f)| f.cached.iter().map(move |(serial, e)| (*serial, file, e)));
        let mut changes: Vec<_> = cached.collect();
        changes.sort_by_key(|(serial, ..)| *serial);
        changes
            .into_iter()
            .map(|(_, file, effect)| (file, effect))
            .collect()
    }

    /// Everything that a power cut at this moment may leave.
    pub fn cuts(&self, grain: Grain) -> Cuts {
        let durable = self.files.iter().map(|f| f.durable.clone()).collect();
        let cached = self.changes().into_iter();
        let cached = cached.map(|(file, effect)| (file, effect.clone()));
        Cuts::new(durable, cached.chain(self.queued()).collect(), grain)
    }

    /// The files after a power cut at this moment.
    pub fn crash(&self, crash: &Crash) -> RamDisk {
        match crash {
            Crash::Torn(seed) => self.cuts(Grain::Sector).sample(&mut Rng::new(*seed)),
            Crash::Subset(mask) => {
                let kept = |index: usize| index < 64 && mask & (1 << index) != 0;
                let mut files: Vec<SparseBytes> =
                    self.files.iter().map(|f| f.durable.clone()).collect();
                let queued: Vec<(usize, Effect)> = self.queued().collect();
                let mut changes = self.changes();
                changes.extend(queued.iter().map(|(file, effect)| (*file, effect)));
                for (index, (file, effect)) in changes.into_iter().enumerate() {
                    if kept(index)
                        && let Some(content) = files.get_mut(file)
                    {
                        effect.apply(content);
                    }
                }
                RamDisk::from(files)
            }
        }
    }

    fn finish(&mut self, Queued { mut op, after }: Queued) -> Completion {
        self.completed = self.completed.saturating_add(1);
        let result = self.try_finish(&mut op, after);
        Completion {
            token: op.token,
            result,
            payload: op.action.into_payload(),
        }
    }

    fn try_finish(&mut self, op: &mut Op, after: u64) -> Result<(), Error> {
        check_range(op)?;
        let missing = op.error(ErrorKind::NoSuchFile, None);
        let serial = self.completed;
        let file = self.files.get_mut(op.file.0 as usize).ok_or(missing)?;
        if let Some(effect) = Effect::of(&op.action) {
            effect.apply(&mut file.live);
            file.cached.push((serial, effect));
        }
        if matches!(op.action, Action::Fdatasync) {
            let SimFile {
                durable, cached, ..
            } = file;
            cached.retain(|(serial, effect)| {
                let covered = *serial <= after;
                if covered {
                    effect.apply(durable);
                }
                !covered
            });
        }
        read_into(op, &file.live)
    }
}

impl BlockIo for SimDisk {
    fn submit(&mut self, op: Op) {
        self.queue.push(Queued {
            op,
            after: self.completed,
        });
    }

    fn poll(&mut self, _wait: Wait, done: &mut Vec<Completion>) -> std::io::Result<()> {
        if self.queue.is_empty() {
            return Ok(());
        }
        let index = match &mut self.order {
            Order::Fifo => 0,
            Order::Random(rng) => rng.below(self.queue.len() as u64) as usize,
        };
        let queued = self.queue.remove(index);
        done.push(self.finish(queued));
        Ok(())
    }

    fn in_flight(&self) -> usize {
        self.queue.len()
    }

    fn size_bytes(&mut self, file: FileId) -> Result<u64, Error> {
        self.live(file)
            .map(SparseBytes::size_bytes)
            .ok_or_else(|| no_such_file(file))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Buffer;

    fn write(disk: &mut SimDisk, file: FileId, offset: u64, byte: u8, len: usize) {
        let data = Buffer::copy_of(&vec![byte; len]).share();
        let op = Op {
            token: 0,
            file,
            action: Action::Write { offset, data },
        };
        disk.run(op, &mut Vec::new()).expect("write");
    }

    fn sync(disk: &mut SimDisk, file: FileId) {
        disk.run(
            Op {
                token: 1,
                file,
                action: Action::Fdatasync,
            },
            &mut Vec::new(),
        )
        .expect("sync");
    }

    #[test]
    fn a_flush_makes_durable_and_a_crash_takes_any_subset_of_the_rest() {
        let mut disk = SimDisk::new(Order::Fifo);
        let file = disk.add_file(SparseBytes::zeroed(2048));
        write(&mut disk, file, 0, 1, 512);
        sync(&mut disk, file);
        write(&mut disk, file, 512, 2, 512);
        write(&mut disk, file, 1024, 3, 512);
        assert_eq!(disk.volatile(), 2);
        for (mask, second, third) in [(0b00, 0, 0), (0b01, 2, 0), (0b10, 0, 3), (0b11, 2, 3)] {
            let left = disk.crash(&Crash::Subset(mask)).files()[0].to_vec();
            assert_eq!(
                [left[0], left[512], left[1024]],
                [1, second, third],
                "mask {mask}"
            );
        }
    }

    #[test]
    fn what_was_written_before_a_failed_flush_reads_back_and_is_never_durable() {
        let mut disk = SimDisk::new(Order::Fifo);
        let file = disk.add_file(SparseBytes::zeroed(1024));
        write(&mut disk, file, 0, 1, 512);
        disk.fail_sync(file);
        write(&mut disk, file, 512, 2, 512);
        sync(&mut disk, file);
        let live = disk.live(file).expect("a file").to_vec();
        assert_eq!([live[0], live[512]], [1, 2]);
        let left = disk.crash(&Crash::Subset(u64::MAX)).files()[0].to_vec();
        assert_eq!([left[0], left[512]], [0, 2]);
    }

    #[test]
    fn a_flush_does_not_cover_a_write_that_was_in_flight_beside_it() {
        let mut disk = SimDisk::new(Order::Fifo);
        let file = disk.add_file(SparseBytes::zeroed(512));
        let data = Buffer::copy_of(&[7; 512]).share();
        disk.submit(Op {
            token: 1,
            file,
            action: Action::Write { offset: 0, data },
        });
        disk.submit(Op {
            token: 2,
            file,
            action: Action::Fdatasync,
        });
        let mut done = Vec::new();
        disk.poll(Wait::No, &mut done).expect("poll");
        disk.poll(Wait::No, &mut done).expect("poll");
        assert_eq!(done.len(), 2);
        assert_eq!(
            disk.crash(&Crash::Subset(0)).files()[0].to_vec(),
            vec![0; 512]
        );
    }

    #[test]
    fn a_torn_write_is_torn_at_sectors() {
        let mut disk = SimDisk::new(Order::Fifo);
        let file = disk.add_file(SparseBytes::zeroed(4096));
        write(&mut disk, file, 0, 9, 4096);
        let mut torn = 0;
        for seed in 0..64 {
            let left = disk.crash(&Crash::Torn(seed)).files()[0].to_vec();
            let sectors: Vec<u8> = left.chunks(512).map(|s| s[0]).collect();
            assert!(left.chunks(512).all(|s| s.iter().all(|b| *b == s[0])));
            torn += usize::from(sectors.contains(&0) && sectors.contains(&9));
        }
        assert!(torn > 8, "only {torn} of 64 crashes tore the write");
    }
}
