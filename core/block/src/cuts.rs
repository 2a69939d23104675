//! Everything a power cut may leave of a disk at one moment, as choices that can be counted.
//!
//! Each volatile change is cut into pieces, and where changes lie on each other their pieces have
//! the same bounds. Of each place either nothing new is there, or the piece of any of the changes
//! on it: that is every subset, every order and every tear at once, for a subset in some order
//! leaves at each place one change as the last one there. Changes of a file's size are there or
//! not, whole; a write may also come after a cut that followed it, and makes the file longer again.

use crate::ram::Effect;
use crate::{RamDisk, Rng, SharedBuffer, SparseBytes};
use std::collections::{BTreeMap, BTreeSet};

/// The unit in which a change can be torn.
const SECTOR_BYTES: u64 = 512;

/// Most pieces of one change; longer ones are torn more coarsely.
const PIECES_MAX: u64 = 64;

/// How finely changes are torn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grain {
    /// Only where changes begin and end: subsets and orders, and no tears but those.
    Change,
    /// At every sector.
    Sector,
}

/// One thing that a place may hold instead of what is durable.
#[derive(Debug, Clone, Copy)]
struct Choice {
    /// Which change.
    change: usize,
    /// It comes after all others.
    late: bool,
}

/// A place, or a change of size.
#[derive(Debug)]
struct Slot {
    file: usize,
    offset: u64,
    /// Zero for a change of size.
    len: u64,
    choices: Vec<Choice>,
}

/// What a power cut may leave.
#[derive(Debug)]
pub struct Cuts {
    durable: Vec<SparseBytes>,
    changes: Vec<(usize, Effect)>,
    slots: Vec<Slot>,
}

impl Cuts {
    /// Of these durable files and volatile changes, oldest first.
    pub(crate) fn new(
        durable: Vec<SparseBytes>,
        changes: Vec<(usize, Effect)>,
        grain: Grain,
    ) -> Self {
        let mut cuts = Self {
            durable,
            changes,
            slots: Vec::new(),
        };
        let files: BTreeSet<usize> = cuts.changes.iter().map(|(file, _)| *file).collect();
        for file in files {
            cuts.add_places(file, grain);
        }
        for (change, (file, effect)) in cuts.changes.iter().enumerate() {
            if range_of(effect).is_none() {
                cuts.slots.push(Slot {
                    file: *file,
                    offset: 0,
                    len: 0,
                    choices: vec![Choice {
                        change,
                        late: false,
                    }],
                });
            }
        }
        cuts
    }

    fn add_places(&mut self, file: usize, grain: Grain) {
        let of_file = self
            .changes
            .iter()
            .enumerate()
            .filter(|(_, (of, _))| *of == file);
        let ranged: Vec<(usize, (u64, u64))> = of_file
            .filter_map(|(n, (_, effect))| Some((n, range_of(effect)?)))
            .collect();
        let mut edges = BTreeSet::new();
        for (_, (start, end)) in &ranged {
            edges.extend([*start, *end]);
            if grain == Grain::Sector {
                edges.extend(tears(*start, *end));
            }
        }
        let edges: Vec<u64> = edges.into_iter().collect();
        let mut places: BTreeMap<u64, Slot> = BTreeMap::new();
        for (change, (start, end)) in ranged {
            let first = edges.partition_point(|edge| *edge < start);
            let inside = edges.get(first..).unwrap_or_default();
            for (from, to) in inside.iter().zip(inside.iter().skip(1)) {
                if *to > end {
                    break;
                }
                let slot = places.entry(*from).or_insert_with(|| Slot {
                    file,
                    offset: *from,
                    len: to.saturating_sub(*from),
                    choices: Vec::new(),
                });
                let cut_later = self.changes.iter().skip(change).any(|(of, effect)| {
                    *of == file
                        && matches!(effect, Effect::Truncate { size_bytes } if size_bytes < to)
                });
                let late: &[bool] = if cut_later { &[false, true] } else { &[false] };
                slot.choices.extend(late.iter().map(|late| Choice {
                    change,
                    late: *late,
                }));
            }
        }
        let sized = self
            .changes
            .iter()
            .any(|(of, e)| *of == file && range_of(e).is_none());
        for mut slot in places.into_values() {
            // The last one in order stays last, so that it is what is there when all is.
            slot.choices
                .sort_by_key(|choice| (!choice.late, choice.change));
            if !sized {
                self.drop_equal(&mut slot);
            }
            if !slot.choices.is_empty() {
                self.slots.push(slot);
            }
        }
    }

    /// Forgets choices that make no difference.
    fn drop_equal(&self, slot: &mut Slot) {
        let mut seen: Vec<Option<Vec<u8>>> = Vec::new();
        if let Some(durable) = self.durable.get(slot.file)
            && slot.offset.saturating_add(slot.len) <= durable.size_bytes()
        {
            let mut bytes = vec![0; usize::try_from(slot.len).unwrap_or(0)];
            durable.read(slot.offset, &mut bytes);
            seen.push(Some(bytes));
        }
        let (offset, len) = (slot.offset, slot.len);
        slot.choices.retain(|choice| {
            let bytes = self
                .changes
                .get(choice.change)
                .map(|(_, effect)| match effect {
                    Effect::Write { offset: at, data } => {
                        piece(*at, data, offset, len).map(|bytes| bytes.as_slice().to_vec())
                    }
                    _ => Some(vec![0; usize::try_from(len).unwrap_or(0)]),
                });
            let bytes = bytes.flatten();
            let new = !seen.contains(&bytes);
            seen.push(bytes);
            new
        });
    }

    /// Volatile changes.
    pub fn changes(&self) -> usize {
        self.changes.len()
    }

    /// In how many ways they can be there or not; some may leave the same.
    pub fn count(&self) -> u64 {
        let ways = self.slots.iter().map(|slot| slot.choices.len() as u64 + 1);
        ways.fold(1, u64::saturating_mul)
    }

    /// The `index`th of them; the first has nothing of the changes, the last one all.
    pub fn nth(&self, mut index: u64) -> RamDisk {
        self.leave(|slot| {
            let ways = slot.choices.len() as u64 + 1;
            let (chosen, rest) = (index % ways, index / ways);
            index = rest;
            chosen as usize
        })
    }

    /// One of them, drawn so that corners come up: nearly nothing and nearly all of the changes,
    /// torn ones and whole ones.
    pub fn sample(&self, rng: &mut Rng) -> RamDisk {
        let keep_of_8 = [1, 4, 4, 7]
            .get(rng.below(4) as usize)
            .copied()
            .unwrap_or(4);
        let torn_of_8 = [0, 2, 8].get(rng.below(3) as usize).copied().unwrap_or(2);
        let kept: Vec<bool> = self
            .changes
            .iter()
            .map(|_| rng.below(8) < keep_of_8)
            .collect();
        let torn: Vec<bool> = self
            .changes
            .iter()
            .map(|_| rng.below(8) < torn_of_8)
            .collect();
        let is = |of: &[bool], change: usize| of.get(change).copied().unwrap_or(false);
        let shuffled = rng.one_in(2);
        self.leave(|slot| {
            let mut there = slot.choices.iter().enumerate().filter(|(_, choice)| {
                let piece_kept = slot.len == 0 || !is(&torn, choice.change) || rng.one_in(2);
                is(&kept, choice.change) && piece_kept && (!choice.late || shuffled)
            });
            if shuffled {
                let there: Vec<usize> = there.map(|(index, _)| index + 1).collect();
                let index = rng.below(there.len() as u64) as usize;
                there.get(index).copied().unwrap_or(0)
            } else {
                there.next_back().map_or(0, |(index, _)| index + 1)
            }
        })
    }

    /// What is left if for each slot the choice counted from one is there; zero is none.
    fn leave(&self, mut choose: impl FnMut(&Slot) -> usize) -> RamDisk {
        let mut there: Vec<(Choice, &Slot)> = Vec::with_capacity(self.slots.len());
        for slot in &self.slots {
            if let Some(index) = choose(slot).checked_sub(1)
                && let Some(choice) = slot.choices.get(index)
            {
                there.push((*choice, slot));
            }
        }
        there.sort_by_key(|(choice, _)| (choice.late, choice.change));
        let mut files = self.durable.clone();
        for (choice, slot) in there {
            if let Some((_, effect)) = self.changes.get(choice.change)
                && let Some(file) = files.get_mut(slot.file)
            {
                apply_piece(effect, slot, file);
            }
        }
        RamDisk::from(files)
    }
}

/// The bytes a change lies on; none for a change of size.
fn range_of(effect: &Effect) -> Option<(u64, u64)> {
    let (start, len) = match effect {
        Effect::Write { offset, data } => (*offset, data.len() as u64),
        Effect::Punch { offset, len_bytes } => (*offset, *len_bytes),
        Effect::Truncate { .. } | Effect::Extend { .. } => return None,
    };
    (len > 0).then_some((start, start.saturating_add(len)))
}

/// Where a change can be torn.
fn tears(start: u64, end: u64) -> impl Iterator<Item = u64> {
    let sectors = end.saturating_sub(start) / SECTOR_BYTES;
    let step = SECTOR_BYTES * (sectors / PIECES_MAX + 1).next_power_of_two();
    let first = start - start % step + step;
    (0..PIECES_MAX * 2)
        .map(move |n| first.saturating_add(n * step))
        .take_while(move |at| *at < end)
}

fn piece(at: u64, data: &SharedBuffer, offset: u64, len: u64) -> Option<SharedBuffer> {
    let from = usize::try_from(offset.checked_sub(at)?).ok()?;
    data.slice(from..from.checked_add(usize::try_from(len).ok()?)?)
}

fn apply_piece(effect: &Effect, slot: &Slot, file: &mut SparseBytes) {
    match effect {
        Effect::Write { offset, data } => {
            if let Some(piece) = piece(*offset, data, slot.offset, slot.len) {
                file.write(slot.offset, piece.as_slice());
            }
        }
        Effect::Punch { .. } => Effect::Punch {
            offset: slot.offset,
            len_bytes: slot.len,
        }
        .apply(file),
        whole => whole.apply(file),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Buffer;
    use std::collections::HashSet;

    fn write(offset: u64, byte: u8, sectors: usize) -> Effect {
        let data = Buffer::copy_of(&vec![byte; sectors * 512]).share();
        Effect::Write { offset, data }
    }

    /// The first bytes of the sectors of every file that can be left, each once.
    fn left(durable: u64, effects: &[Effect], grain: Grain) -> HashSet<Vec<u8>> {
        let changes = effects.iter().map(|effect| (0, effect.clone())).collect();
        let cuts = Cuts::new(vec![SparseBytes::zeroed(durable)], changes, grain);
        let all = (0..cuts.count()).map(|index| cuts.nth(index));
        all.map(|disk| disk.files()[0].to_vec().chunks(512).map(|s| s[0]).collect())
            .collect()
    }

    /// The same by brute force: every subset in every order, each write torn in every way.
    fn brute(durable: u64, effects: &[Effect]) -> HashSet<Vec<u8>> {
        let pieces: Vec<Effect> = effects.iter().flat_map(pieces_of).collect();
        let mut left = HashSet::new();
        for mask in 0_u32..1 << pieces.len() {
            let kept = pieces
                .iter()
                .enumerate()
                .filter(|(i, _)| mask & (1 << i) != 0);
            for order in orders(&kept.map(|(_, piece)| piece.clone()).collect::<Vec<_>>()) {
                let mut file = SparseBytes::zeroed(durable);
                order.iter().for_each(|effect| effect.apply(&mut file));
                left.insert(file.to_vec().chunks(512).map(|s| s[0]).collect());
            }
        }
        left
    }

    fn pieces_of(effect: &Effect) -> Vec<Effect> {
        match effect {
            Effect::Write { offset, data } => {
                let piece = |n: u64| write(offset + n * 512, data.as_slice()[0], 1);
                (0..data.len() as u64 / 512).map(piece).collect()
            }
            Effect::Punch { offset, len_bytes } => (0..len_bytes / 512)
                .map(|n| Effect::Punch {
                    offset: offset + n * 512,
                    len_bytes: 512,
                })
                .collect(),
            whole => vec![whole.clone()],
        }
    }

    fn orders(effects: &[Effect]) -> Vec<Vec<Effect>> {
        if effects.is_empty() {
            return vec![Vec::new()];
        }
        let mut all = Vec::new();
        for first in 0..effects.len() {
            let mut rest = effects.to_vec();
            let head = rest.remove(first);
            for tail in orders(&rest) {
                all.push([vec![head.clone()], tail].concat());
            }
        }
        all
    }

    #[test]
    fn the_choices_are_every_subset_order_and_tear_and_no_other() {
        let punch = |offset, sectors: u64| Effect::Punch {
            offset,
            len_bytes: sectors * 512,
        };
        let cases = [
            vec![write(0, 1, 2), write(512, 2, 2), write(1024, 3, 1)],
            vec![write(0, 1, 3), punch(512, 1), write(512, 2, 2)],
            vec![write(2048, 1, 2), Effect::Extend { size_bytes: 4096 }],
            vec![write(0, 1, 1), write(0, 2, 1), write(0, 3, 1), punch(0, 2)],
            vec![
                write(512, 1, 1),
                write(2048, 2, 1),
                Effect::Truncate { size_bytes: 1024 },
            ],
            vec![
                write(512, 1, 2),
                Effect::Truncate { size_bytes: 512 },
                write(512, 2, 1),
            ],
        ];
        for effects in cases {
            assert_eq!(
                left(1536, &effects, Grain::Sector),
                brute(1536, &effects),
                "{effects:?}"
            );
        }
    }

    #[test]
    fn whole_changes_are_subsets_and_orders() {
        let apart = [write(0, 1, 2), write(1024, 2, 2)];
        let expected = [
            vec![0, 0, 0, 0],
            vec![1, 1, 0, 0],
            vec![0, 0, 2, 2],
            vec![1, 1, 2, 2],
        ];
        assert_eq!(left(2048, &apart, Grain::Change), HashSet::from(expected));
        let same = [write(0, 1, 2), write(0, 2, 2)];
        let expected = [vec![0, 0], vec![1, 1], vec![2, 2]];
        assert_eq!(left(1024, &same, Grain::Change), HashSet::from(expected));
    }

    #[test]
    fn a_change_that_changes_nothing_is_no_choice() {
        let cuts = |bytes: &[Effect]| {
            let changes = bytes.iter().map(|effect| (0, effect.clone())).collect();
            Cuts::new(vec![SparseBytes::zeroed(1024)], changes, Grain::Sector).count()
        };
        assert_eq!(cuts(&[write(0, 0, 2)]), 1);
        assert_eq!(cuts(&[write(0, 1, 2), write(0, 1, 1)]), 4);
    }

    #[test]
    fn samples_reach_nothing_all_and_tears() {
        let changes = vec![(0, write(0, 1, 2)), (0, write(512, 2, 2))];
        let cuts = Cuts::new(vec![SparseBytes::zeroed(1536)], changes, Grain::Sector);
        let mut rng = Rng::new(1);
        let seen: HashSet<Vec<u8>> = (0..500)
            .map(|_| cuts.sample(&mut rng).files()[0].to_vec())
            .map(|bytes| bytes.chunks(512).map(|s| s[0]).collect())
            .collect();
        let all: HashSet<Vec<u8>> = (0..cuts.count())
            .map(|index| cuts.nth(index).files()[0].to_vec())
            .map(|bytes| bytes.chunks(512).map(|s| s[0]).collect())
            .collect();
        assert_eq!(seen, all);
    }
}
