//! Reads: one operation per run of sectors that lie together in one file.

use super::Engine;
use super::request::{Error, ErrorKind};
use super::state::{Context, Kind, Part};
use block::{Action, Payload};
use units::SECTOR_BYTES;

impl Engine {
    pub(super) fn start_read(&mut self, part: Part) {
        let mut pieces = std::mem::take(&mut self.pieces);
        pieces.clear();
        if self
            .map
            .resolve(part.block, part.start..part.end, &mut pieces)
            .is_err()
        {
            self.pieces = pieces;
            return self.wait_for_bitmaps(part, true);
        }
        let only_one = pieces.len() == 1;
        let disk_start = part.disk_sector();
        for piece in pieces.drain(..) {
            let into_part = u64::from(piece.sectors.start.saturating_sub(part.start));
            let first = disk_start.saturating_add(into_part);
            let len = u64::from(piece.sectors.end.saturating_sub(piece.sectors.start));
            self.read_piece(
                part.request,
                first,
                len * SECTOR_BYTES,
                piece.place,
                only_one,
            );
        }
        self.pieces = pieces;
        self.part_done(part.request, Ok(()));
    }

    /// Fills the request's buffer from disk sector `first` on with what is at `place`.
    fn read_piece(
        &mut self,
        index: u32,
        first: u64,
        len_bytes: u64,
        place: Option<(u16, u64)>,
        only_one: bool,
    ) {
        let Some(request) = self.requests.get_mut(index) else {
            return;
        };
        let Kind::Read { span, buffer } = &mut request.kind else {
            return;
        };
        let at = first
            .saturating_sub(span.first)
            .saturating_mul(SECTOR_BYTES) as usize;
        let len = len_bytes as usize;
        let Some((layer, sector)) = place else {
            let zeros = buffer
                .as_mut()
                .and_then(|b| b.as_mut_slice().get_mut(at..at + len));
            zeros.unwrap_or_default().fill(0);
            return;
        };
        // A request in one piece is read straight into its own buffer.
        let whole = only_one && len_bytes == span.len_bytes();
        let target = if whole { buffer.take() } else { None };
        let target = target.unwrap_or_else(|| self.pool.take(len));
        request.pending = request.pending.saturating_add(1);
        let Some(file) = self.map.layers.get(usize::from(layer)).map(|l| l.file) else {
            return;
        };
        let offset = sector.saturating_mul(SECTOR_BYTES);
        let action = Action::Read {
            offset,
            buffer: target,
        };
        self.emit(
            file,
            action,
            Context::Read {
                request: index,
                at,
                whole,
            },
        );
    }

    pub(super) fn read_done(
        &mut self,
        index: u32,
        at: usize,
        whole: bool,
        result: Result<(), block::Error>,
        payload: Payload,
    ) {
        let mut outcome = result.map_err(Error::from);
        if let (Some(request), Payload::Read(data)) = (self.requests.get_mut(index), payload)
            && let Kind::Read { buffer, .. } = &mut request.kind
        {
            if whole {
                *buffer = Some(data);
            } else {
                let target = buffer
                    .as_mut()
                    .and_then(|b| b.as_mut_slice().get_mut(at..at.saturating_add(data.len())));
                match target {
                    Some(target) if outcome.is_ok() => target.copy_from_slice(data.as_slice()),
                    Some(_) => {}
                    None => {
                        let text = "a piece of a read does not fit its request";
                        outcome = Err(Error::new(ErrorKind::Io, text));
                    }
                }
                self.pool.give(data);
            }
        }
        self.part_done(index, outcome);
    }
}
