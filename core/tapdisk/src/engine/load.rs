//! Bitmaps read while the disk is served: all that one block needs, together.

use super::request::{Error, ErrorKind};
use super::state::{Context, Part};
use super::{Engine, cache::BITMAP_BYTES};
use block::{Action, Buffer, Payload};
use units::SECTOR_BYTES;

/// The bitmaps of one block on their way in, and who waits for them.
#[derive(Debug)]
pub(super) struct Loading {
    pending: u32,
    with_lower: bool,
    bitmaps: Vec<(u16, Buffer)>,
    waiters: Vec<Part>,
    error: Option<Error>,
    /// Layers have other numbers since it began: it brings nothing.
    stale: bool,
}

impl Loading {
    pub(super) fn spoil(&mut self) {
        self.stale = true;
    }
}

impl Engine {
    /// Parks a part until its block's bitmaps are known; with `with_lower` those of the layers
    /// below the leaf too.
    pub(super) fn wait_for_bitmaps(&mut self, part: Part, with_lower: bool) {
        if let Some(loading) = self.loading.get_mut(&part.block) {
            // If that load brings less than this part needs, the part will ask again.
            loading.waiters.push(part);
            return;
        }
        let needed = self.map.bitmaps_needed(part.block, with_lower);
        let pending = u32::try_from(needed.len()).unwrap_or(u32::MAX);
        let (bitmaps, waiters) = (Vec::with_capacity(needed.len()), vec![part]);
        let loading = Loading {
            pending,
            with_lower,
            bitmaps,
            waiters,
            error: None,
            stale: false,
        };
        self.loading.insert(part.block, loading);
        for (layer, sector) in needed {
            let Some(file) = self.map.layers.get(usize::from(layer)).map(|l| l.file) else {
                continue;
            };
            let buffer = self.pool.take(BITMAP_BYTES);
            let offset = sector.saturating_mul(SECTOR_BYTES);
            let action = Action::Read { offset, buffer };
            self.emit(
                file,
                action,
                Context::Bitmap {
                    block: part.block,
                    layer,
                },
            );
        }
        if pending == 0 {
            self.bitmaps_loaded(part.block);
        }
    }

    pub(super) fn bitmap_done(
        &mut self,
        block: u32,
        layer: u16,
        result: Result<(), block::Error>,
        payload: Payload,
    ) {
        let Some(loading) = self.loading.get_mut(&block) else {
            return;
        };
        match (result, payload) {
            (Ok(()), Payload::Read(buffer)) => loading.bitmaps.push((layer, buffer)),
            (Err(error), _) => {
                let text = format!("bitmap of block {block}: {error}");
                loading.error.get_or_insert(Error::new(ErrorKind::Io, text));
            }
            (Ok(()), _) => {}
        }
        loading.pending = loading.pending.saturating_sub(1);
        if loading.pending == 0 {
            self.bitmaps_loaded(block);
        }
    }

    fn bitmaps_loaded(&mut self, block: u32) {
        let Some(loading) = self.loading.remove(&block) else {
            return;
        };
        if loading.stale {
            self.give_bitmaps(loading.bitmaps);
            return loading
                .waiters
                .into_iter()
                .for_each(|part| self.start_part(part));
        }
        if loading.error.is_none() {
            self.map.learn(block, &loading.bitmaps, loading.with_lower);
        }
        self.give_bitmaps(loading.bitmaps);
        for part in loading.waiters {
            match &loading.error {
                None => self.start_part(part),
                Some(error) => self.part_done(part.request, Err(error.clone())),
            }
        }
    }

    fn give_bitmaps(&mut self, bitmaps: Vec<(u16, Buffer)>) {
        for (_, buffer) in bitmaps {
            self.pool.give(buffer);
        }
    }
}
