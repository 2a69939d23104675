//! Block status, straight from the map: bitmaps are read where they are not known yet, data never.

use super::Engine;
use super::layer::BLOCK_SECTORS;
use super::request::{Extent, ExtentState, Scope};
use super::state::{Kind, Part};
use units::SECTOR_BYTES;

impl Engine {
    /// Answers block by block until the range or the number of extents is used up.
    pub(super) fn go_on_with_status(&mut self, index: u32) {
        let mut pieces = std::mem::take(&mut self.pieces);
        while let Some(request) = self.requests.get(index) {
            let Kind::Status {
                next,
                end,
                extents,
                extents_max,
                scope,
            } = &request.kind
            else {
                break;
            };
            if next >= end || extents.len() > *extents_max {
                break;
            }
            let scope = *scope;
            let block = u32::try_from(next / u64::from(BLOCK_SECTORS)).unwrap_or(u32::MAX);
            let start = (next % u64::from(BLOCK_SECTORS)) as u32;
            let left = end
                .saturating_sub(*next)
                .min(u64::from(BLOCK_SECTORS - start));
            let end = start + left as u32;
            pieces.clear();
            if self.map.resolve(block, start..end, &mut pieces).is_err() {
                self.pieces = pieces;
                let part = Part {
                    request: index,
                    block,
                    start,
                    end,
                    pinned: false,
                };
                return self.wait_for_bitmaps(part, true);
            }
            let Some(request) = self.requests.get_mut(index) else {
                break;
            };
            let Kind::Status { next, extents, .. } = &mut request.kind else {
                break;
            };
            *next = next.saturating_add(left);
            let leaf = self.map.leaf_number();
            for piece in pieces.drain(..) {
                let sectors = piece.sectors.end.saturating_sub(piece.sectors.start);
                let is_data = counts(scope, piece.place, leaf);
                let state = if is_data {
                    ExtentState::Data
                } else {
                    ExtentState::Zero
                };
                append(extents, u64::from(sectors) * SECTOR_BYTES, state);
            }
        }
        self.pieces = pieces;
        if let Some(request) = self.requests.get_mut(index)
            && let Kind::Status {
                extents,
                extents_max,
                ..
            } = &mut request.kind
        {
            extents.truncate(*extents_max);
        }
        self.part_done(index, Ok(()));
    }
}

/// Whether what lies there is in scope.
fn counts(scope: Scope, place: Option<(u16, u64)>, leaf: u16) -> bool {
    match (scope, place) {
        (_, None) => false,
        (Scope::Chain, Some(_)) => true,
        (Scope::Layer(depth), Some((layer, _))) => leaf.checked_sub(depth) == Some(layer),
    }
}

fn append(extents: &mut Vec<Extent>, len_bytes: u64, state: ExtentState) {
    match extents.last_mut() {
        Some(last) if last.state == state => {
            last.len_bytes = last.len_bytes.saturating_add(len_bytes);
        }
        _ => extents.push(Extent { len_bytes, state }),
    }
}
