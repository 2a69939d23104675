//! The engine on one image, sound or damaged: what is written is what is read, then, after a kill
//! and after closing, and what was not written stays what it was.

use crate::images::{self, Wish};
use crate::input::Input;
use crate::oracle::{self, Medium, OnDisk};
use block::{Buffer, FileId, RamDisk, SparseBytes};
use datapath::protocol::{Access, Format};
use std::collections::{BTreeMap, BTreeSet};
use tapdisk::engine::testing::rig::{Peek, Rig, load_chain};
use tapdisk::engine::{Done, ErrorKind, LiveOp, Request, Ticket};
use vhd_checker::Strictness;

/// Requests of one run.
const STEPS_MAX: u64 = 24;

type Sector = [u8; 512];

/// See the module's page.
pub fn target(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let with_parent = input.one_in(3);
    let parent = with_parent.then_some([0; 16]);
    let by_tap = !input.one_in(3);
    let mut made = images::sparse(
        &mut input,
        Wish {
            number: 1,
            parent,
            blocks_max: 5,
            by_tap,
        },
    );
    if input.one_in(2) {
        images::damage(&mut input, &mut made);
    }
    let mut ram = RamDisk::new();
    let mut files = vec![(ram.add_file(made.medium.0.clone()), Format::Vhd)];
    if with_parent {
        files.push((ram.add_file(raw(&mut input)), Format::Raw));
    }
    let sound = oracle::is_whole(&made.medium.0);
    let Some(mut world) = World::open(ram, files, sound) else {
        return;
    };
    for _ in 0..STEPS_MAX {
        if input.is_used_up() || !world.step(&mut input) {
            break;
        }
    }
    world.finish();
}

/// A raw base with something in it, shorter or longer than what lies above.
pub(super) fn raw(input: &mut Input<'_>) -> SparseBytes {
    let mut bytes = SparseBytes::zeroed(512 * input.pick(&[1, 9, 4096, 3 * 4096 + 8]));
    for _ in 0..input.below(5) {
        let sector = input.pick(&[0, 1, 7, 8, 63, 4095, 4096, 8191, 12_288]);
        if sector * 512 < bytes.size_bytes() {
            bytes.write(sector * 512, &[0xE0 ^ sector as u8; 512]);
        }
    }
    bytes
}

/// What an engine may hold at a time beside the data it is given: marks and a map by block, caches.
pub(super) fn engine_limit_bytes(ram: &RamDisk) -> u64 {
    let size: u64 = ram
        .files()
        .iter()
        .map(|f| oracle::open_limit_bytes(&Medium(f.clone())))
        .sum();
    (1 << 20) + 2 * size
}

struct World {
    rig: Option<Rig<RamDisk>>,
    files: Vec<(FileId, Format)>,
    /// What sectors are filled with that were written.
    written: BTreeMap<u64, u8>,
    /// Sectors that may be zero instead, because they were trimmed.
    trimmed: BTreeSet<u64>,
    /// What sectors held that were looked at before they were written.
    old: BTreeMap<u64, Sector>,
    running: Vec<Ticket>,
    /// The image was sound: then nothing may fail.
    sound: bool,
    fill: u8,
}

impl World {
    fn open(ram: RamDisk, files: Vec<(FileId, Format)>, sound: bool) -> Option<Self> {
        let layers = match load_chain(&ram, &files, Access::ReadWrite) {
            Ok(layers) => layers,
            Err(_) => return None,
        };
        let limit = engine_limit_bytes(&ram);
        let opened = crate::guard::bounded("an engine", limit, || {
            Rig::with_layers(ram, layers, Access::ReadWrite)
        });
        let rig = match opened {
            Ok(rig) => rig,
            // A dynamic disk on a parent, or a child without one.
            Err(e) if e.kind == ErrorKind::Chain => return None,
            Err(e) => panic!("it loads and does not open: {e}"),
        };
        let mut world = Self {
            rig: Some(rig),
            files,
            written: BTreeMap::new(),
            trimmed: BTreeSet::new(),
            old: BTreeMap::new(),
            running: Vec::new(),
            sound,
            fill: 0,
        };
        world.note_old_content();
        Some(world)
    }

    fn rig(&mut self) -> &mut Rig<RamDisk> {
        self.rig.as_mut().expect("open until the end")
    }

    fn sectors(&mut self) -> u64 {
        self.rig().engine.size_bytes() / 512
    }

    /// Sound images say by the naive reader what they held; others say it by the engine itself.
    fn note_old_content(&mut self) {
        let total = self.sectors();
        let near = [
            0,
            1,
            7,
            8,
            63,
            64,
            100,
            4095,
            4096,
            4097,
            8191,
            total - 1,
            total.saturating_sub(4096),
        ];
        for sector in near.into_iter().filter(|sector| *sector < total) {
            if let Some(found) = self.read(sector) {
                self.old.insert(sector, found);
            }
        }
        if self.sound {
            let naive = self.naive();
            for (sector, found) in &self.old {
                let wanted = naive.sector(*sector).expect("memory can be read");
                assert_eq!(*found, wanted, "sector {sector} before any write");
            }
        }
    }

    fn naive(&mut self) -> vhd_checker::Flat {
        let files = self.files.clone();
        let io = &self.rig().io;
        let layers: Vec<OnDisk> = files
            .iter()
            .map(|(file, _)| OnDisk::new(io.peek(*file)))
            .collect();
        oracle::naive(&layers).expect("a sound chain")
    }

    fn read(&mut self, sector: u64) -> Option<Sector> {
        match self.rig().read(sector * 512, 512) {
            Ok(bytes) => Some(*bytes.first_chunk().expect("512 bytes")),
            Err(e) if self.sound => panic!("sector {sector}: {e}"),
            Err(_) => None,
        }
    }

    fn step(&mut self, input: &mut Input<'_>) -> bool {
        let total = self.sectors();
        let block = input.below(4) * 4096;
        let near = input.pick(&[0, 1, 7, 8, 60, 4090, 4095]);
        let edge = if input.one_in(6) {
            total - 1
        } else {
            block + near
        };
        let first = edge.min(total - 1);
        let most = total - first;
        let count = input.pick(&[1, 2, 8, 9, 70]).min(most);
        match input.below(9) {
            0..=2 => self.write(first, count, input.one_in(3)),
            3 => {
                // A whole block is what sets the batmap's bits, and takes its time.
                let first = first / 4096 * 4096;
                let count = if input.one_in(3) { 4096 } else { 300 };
                self.write(first, count.min(total - first), false);
            }
            4 => self.zero(first, count, input.one_in(2), input.one_in(2)),
            5 => {
                let first = first / 4096 * 4096;
                self.zero(first, 4096.min(total - first), input.one_in(2), true);
            }
            6 => return self.quiesce() && self.flush(),
            7 => return self.reopen(input.one_in(2)),
            _ => return self.grow(),
        }
        true
    }

    fn write(&mut self, first: u64, count: u64, fua: bool) {
        self.fill = self.fill.wrapping_add(1).max(1);
        let data = Buffer::copy_of(&vec![self.fill; count as usize * 512]);
        self.note(first, count, self.fill);
        let ticket = self.rig().submit(Request::Write {
            offset: first * 512,
            data,
            fua,
        });
        self.running.push(ticket);
    }

    fn note(&mut self, first: u64, count: u64, fill: u8) {
        for sector in first..first + count {
            self.written.insert(sector, fill);
            self.trimmed.remove(&sector);
        }
    }

    fn zero(&mut self, first: u64, count: u64, trim: bool, may_trim: bool) {
        let (offset, len_bytes) = (first * 512, count * 512);
        if trim {
            self.trimmed.extend(first..first + count);
        } else {
            self.note(first, count, 0);
        }
        let request = if trim {
            Request::Trim {
                offset,
                len_bytes,
                fua: false,
            }
        } else {
            Request::WriteZeroes {
                offset,
                len_bytes,
                may_trim,
                fua: false,
            }
        };
        let ticket = self.rig().submit(request);
        self.running.push(ticket);
    }

    /// False when the disk is of no more use, which a sound one never is.
    fn quiesce(&mut self) -> bool {
        let mut good = true;
        for ticket in std::mem::take(&mut self.running) {
            let result = match self.rig().take(ticket) {
                Some(result) => result,
                None => self.rig().wait(ticket),
            };
            if let Err(e) = result {
                assert!(!self.sound, "{e}");
                good = false;
            }
        }
        good && self.compare()
    }

    fn flush(&mut self) -> bool {
        let flushed = self.rig().flush();
        assert!(!self.sound || flushed.is_ok(), "{flushed:?}");
        flushed.is_ok()
    }

    fn grow(&mut self) -> bool {
        if !self.quiesce() {
            return false;
        }
        let virtual_bytes = self.rig().engine.size_bytes() + images::BLOCK;
        match self.rig().run_live(LiveOp::Resize { virtual_bytes }) {
            Ok(Done::Ok) => true,
            Ok(other) => panic!("a resize finished with {other:?}"),
            // It has no room in its table.
            Err(e) if matches!(e.kind, ErrorKind::NoSpace | ErrorKind::Unsupported) => true,
            Err(e) => panic!("{e}"),
        }
    }

    fn reopen(&mut self, close: bool) -> bool {
        if !self.quiesce() || !self.flush() {
            return false;
        }
        let mut rig = self.rig.take().expect("open until the end");
        if close {
            let closed = rig.run_live(LiveOp::Close);
            assert!(!self.sound || closed.is_ok(), "{closed:?}");
            if closed.is_err() {
                return false;
            }
        }
        let ram = rig.io;
        let layers = load_chain(&ram, &self.files, Access::ReadWrite);
        let layers = layers.unwrap_or_else(|e| panic!("it was open and opens no more: {e}"));
        let rig = Rig::with_layers(ram, layers, Access::ReadWrite);
        self.rig = Some(rig.unwrap_or_else(|e| panic!("it was open and opens no more: {e}")));
        self.compare()
    }

    fn compare(&mut self) -> bool {
        // Runs are long and alike: their edges and every 61st are looked at.
        let seen = self.written.iter().enumerate();
        let seen = seen.filter(|(index, (sector, _))| {
            index % 61 == 0 || [0, 1, 4095].contains(&(**sector % 4096))
        });
        let mut wanted = self.old.clone();
        wanted.retain(|sector, _| !self.written.contains_key(sector));
        wanted.extend(seen.map(|(_, (sector, fill))| (*sector, [*fill; 512])));
        for (sector, wanted) in wanted {
            let Some(found) = self.read(sector) else {
                return false;
            };
            self.judge(sector, &found, &wanted);
        }
        true
    }

    fn judge(&self, sector: u64, found: &Sector, wanted: &Sector) {
        let or_zero = self.trimmed.contains(&sector);
        let right = found == wanted || (or_zero && *found == [0; 512]);
        let (found, wanted) = (found[0], wanted[0]);
        assert!(
            right,
            "sector {sector} is {found:#x}, not {wanted:#x} (or zero: {or_zero})"
        );
    }

    fn finish(mut self) {
        if self.rig.is_none() || !self.quiesce() || !self.reopen(true) || !self.sound {
            return;
        }
        let naive = self.naive();
        for (sector, fill) in self.written.iter().step_by(97) {
            let found = naive.sector(*sector).expect("memory can be read");
            self.judge(*sector, &found, &[*fill; 512]);
        }
        // One that was left open and not written to stays as it was left.
        if self.fill == 0 {
            return;
        }
        let leaf = self.files[0].0;
        let report = oracle::report(self.rig().io.peek(leaf), Strictness::Closed);
        assert!(report.is_sound(), "after closing: {:?}", report.problems);
    }
}
