//! Reading metadata: whole images before a chain is opened, single bitmaps while it is served.

use super::layer::{LayerImage, LayerSpec};
use super::request::{Error, ErrorKind};
use super::state::{Context, Part};
use super::{Engine, cache::BITMAP_BYTES};
use block::{Action, BlockIo, Buffer, FileId, Op, Payload};
use datapath::protocol::{Access, Extent, Format};
use std::cell::RefCell;
use std::io;
use units::SECTOR_BYTES;
use vhd_rs::{Image, OpenOptions, ReadAt};

/// Reads what a layer is, blocking, through the files' own carrier. Nothing else may be in flight
/// on `io`.
///
/// # Errors
/// `Io` when it cannot be read, `Unsupported` when it is no image that can be served; the text
/// names the field.
pub fn load<I: BlockIo>(
    io: &mut I,
    file: FileId,
    format: Format,
    extent: Extent,
    access: Access,
) -> Result<LayerSpec, Error> {
    let file_bytes = io.size_bytes(file)?;
    let image = match format {
        Format::Raw => LayerImage::Raw,
        Format::Vhd => {
            let options = OpenOptions {
                extent: match extent {
                    Extent::Grows => vhd_rs::Extent::Grows,
                    Extent::Reserved => vhd_rs::Extent::Reserved,
                },
                access: match access {
                    Access::ReadOnly => vhd_rs::Access::ReadOnly,
                    Access::ReadWrite => vhd_rs::Access::ReadWrite,
                },
            };
            let medium = Medium {
                io: RefCell::new(io),
                file,
                file_bytes,
            };
            let image = Image::open(&medium, options).map_err(|e| {
                let is_io = e.kind() == vhd_rs::ErrorKind::Io;
                let kind = if is_io {
                    ErrorKind::Io
                } else {
                    ErrorKind::Unsupported
                };
                Error::new(kind, format!("file {}: {e}", file.0))
            })?;
            LayerImage::Vhd(Box::new(image))
        }
    };
    Ok(LayerSpec {
        file,
        file_bytes,
        image,
    })
}

/// A file of a [`BlockIo`] as the format library reads it: whole sectors, so that `O_DIRECT` works.
struct Medium<'a, I> {
    io: RefCell<&'a mut I>,
    file: FileId,
    file_bytes: u64,
}

impl<I: BlockIo> ReadAt for Medium<'_, I> {
    fn size_bytes(&self) -> io::Result<u64> {
        Ok(self.file_bytes)
    }

    fn read_exact_at(&self, offset: u64, target: &mut [u8]) -> io::Result<()> {
        let end = offset
            .checked_add(target.len() as u64)
            .ok_or(io::ErrorKind::InvalidInput)?;
        if end > self.file_bytes {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let start = offset / SECTOR_BYTES * SECTOR_BYTES;
        let whole_end = end.next_multiple_of(SECTOR_BYTES).min(self.file_bytes);
        let len = usize::try_from(whole_end - start).map_err(io::Error::other)?;
        let action = Action::Read {
            offset: start,
            buffer: Buffer::zeroed(len),
        };
        let op = Op {
            token: u64::MAX,
            file: self.file,
            action,
        };
        let payload = self
            .io
            .borrow_mut()
            .run(op, &mut Vec::new())
            .map_err(io::Error::other)?;
        let skip = (offset - start) as usize;
        let Payload::Read(buffer) = payload else {
            return Err(io::Error::other("a read came back without its buffer"));
        };
        let bytes = buffer
            .as_slice()
            .get(skip..skip.saturating_add(target.len()));
        target.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

/// The bitmaps of one block on their way in, and who waits for them.
#[derive(Debug)]
pub(super) struct Loading {
    pending: u32,
    with_lower: bool,
    bitmaps: Vec<(u16, Buffer)>,
    waiters: Vec<Part>,
    error: Option<Error>,
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
        if loading.error.is_none() {
            self.map.learn(block, &loading.bitmaps, loading.with_lower);
        }
        for (_, buffer) in loading.bitmaps {
            self.pool.give(buffer);
        }
        for part in loading.waiters {
            match &loading.error {
                None => self.start_part(part),
                Some(error) => self.part_done(part.request, Err(error.clone())),
            }
        }
    }
}
