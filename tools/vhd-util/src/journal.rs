//! Resizes under an undo journal, and what becomes of one that was cut off. Works on anything that
//! reads and writes like a file; the crash tests run it on disks that lose what was not flushed.

use uuid::Uuid;
use vhd_rs::journal::{
    ENTRY_HEADER_BYTES, Entry, JOURNAL_HEADER_BYTES, JournalHeader, finish_plan, poisoned_footer,
};
use vhd_rs::{Error, Extent, FOOTER_BYTES, Footer, ReadAt, Relayout, SECTOR_BYTES, Save, WriteAt};

/// Bytes copied at a time.
const COPY_BYTES: u64 = 1 << 20;

/// What a journal and an image are kept on.
pub trait Medium: ReadAt + WriteAt {}

impl<T: ReadAt + WriteAt> Medium for T {}

/// A medium and the name it has in errors.
#[derive(Debug)]
pub struct Named<'a, M> {
    /// Such as "image" or "journal".
    pub name: &'static str,
    /// The medium.
    pub medium: &'a mut M,
}

impl<M: Medium> Named<'_, M> {
    fn size(&self) -> Result<u64, Failure> {
        self.medium.size_bytes().map_err(|e| self.io(0, e))
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), Failure> {
        let read = self.medium.read_exact_at(offset, buffer);
        read.map_err(|e| self.io(offset, e))
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), Failure> {
        let written = self.medium.write_all_at(offset, bytes);
        written.map_err(|e| self.io(offset, e))
    }

    fn flush(&mut self) -> Result<(), Failure> {
        let flushed = self.medium.flush();
        flushed.map_err(|e| self.io(0, e))
    }

    fn io(&self, offset: u64, source: std::io::Error) -> Failure {
        Failure::Io {
            name: self.name,
            offset,
            source,
        }
    }
}

/// Why a journaled resize or its repair stopped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Failure {
    /// The format's library refuses what it is given.
    #[error("{0}")]
    Format(#[from] Error),
    /// A medium fails.
    #[error("{name} fails at byte {offset}")]
    Io {
        /// Which.
        name: &'static str,
        /// Where.
        offset: u64,
        /// How.
        source: std::io::Error,
    },
    /// What the journal keeps as a footer is none.
    #[error("the journal keeps no footer where it says so")]
    NoFooter,
    /// An entry would put bytes where the image had none.
    #[error("the journal has {len} bytes for byte {offset}, the image had {limit}")]
    Outside {
        /// Where in the image.
        offset: u64,
        /// How many.
        len: u32,
        /// Size of the image before the resize.
        limit: u64,
    },
    /// The journal is another image's.
    #[error("the journal belongs to {0}, of which the image has no footer")]
    OtherImage(Uuid),
}

/// What became of a resize that may have been cut off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The image is what it was before.
    Reverted,
    /// The resize had come to its end; its last step was done again.
    Finished,
    /// The image had not been touched, or everything was done.
    Nothing,
}

/// Performs a resize under a journal. When it returns the journal is of no more use. If it fails
/// the image is disabled or untouched, and [`revert`] brings it back.
///
/// # Errors
/// Those of the media, and of what is found on them.
pub fn perform<I: Medium, J: Medium>(
    image: &mut Named<'_, I>,
    journal: &mut Named<'_, J>,
    (uuid, extent): (Uuid, Extent),
    relayout: &Relayout,
) -> Result<(), Failure> {
    let mut header = record(image, journal, uuid, relayout)?;
    relayout.disable.apply(image.medium)?;
    for block in &relayout.moves {
        copy(image, block.from, block.to, block.len)?;
    }
    image.flush()?;
    relayout.rewrite.apply(image.medium)?;
    header.data_entries = 0;
    header.metadata_entries = 0;
    header.footer_offset = relayout.footer_after;
    journal.write(0, &header.to_bytes())?;
    journal.flush()?;
    finish(image, relayout.footer_after, extent)
}

/// Writes all that is to be saved, then the header that makes it count.
fn record<I: Medium, J: Medium>(
    image: &Named<'_, I>,
    journal: &mut Named<'_, J>,
    uuid: Uuid,
    relayout: &Relayout,
) -> Result<JournalHeader, Failure> {
    // An old journal there must not be taken for this one.
    journal.write(0, &[0; JOURNAL_HEADER_BYTES])?;
    journal.flush()?;
    let mut header = JournalHeader {
        image: uuid,
        footer_offset: relayout.footer_before,
        data_entries: 0,
        metadata_entries: 0,
        data_offset: 0,
        metadata_offset: JOURNAL_HEADER_BYTES as u64,
        end: JOURNAL_HEADER_BYTES as u64,
    };
    for save in &relayout.saves {
        if save.kind == vhd_rs::journal::EntryKind::Data {
            if header.data_entries == 0 {
                header.data_offset = header.end;
            }
            header.data_entries += 1;
        } else {
            header.metadata_entries += 1;
        }
        header.end += record_entry(image, journal, header.end, save)?;
    }
    if header.data_entries == 0 {
        header.data_offset = header.end;
    }
    journal.flush()?;
    journal.write(0, &header.to_bytes())?;
    journal.flush()?;
    Ok(header)
}

fn record_entry<I: Medium, J: Medium>(
    image: &Named<'_, I>,
    journal: &mut Named<'_, J>,
    offset: u64,
    save: &Save,
) -> Result<u64, Failure> {
    let mut data = vec![0; save.len as usize];
    image.read(save.offset, &mut data)?;
    let entry = Entry::new(save.kind, save.offset, &data)?;
    journal.write(offset, &entry.to_bytes())?;
    journal.write(offset + ENTRY_HEADER_BYTES as u64, &data)?;
    Ok(ENTRY_HEADER_BYTES as u64 + data.len() as u64)
}

fn copy<I: Medium>(image: &mut Named<'_, I>, from: u64, to: u64, len: u64) -> Result<(), Failure> {
    let mut buffer = vec![0; COPY_BYTES as usize];
    let mut done = 0;
    while done < len {
        let part = (len - done).min(COPY_BYTES);
        let bytes = buffer.get_mut(..part as usize).unwrap_or_default();
        image.read(from + done, bytes)?;
        image.write(to + done, bytes)?;
        done += part;
    }
    Ok(())
}

/// Makes the footers of a committed resize valid, which enables the image.
fn finish<I: Medium>(
    image: &mut Named<'_, I>,
    footer_offset: u64,
    extent: Extent,
) -> Result<(), Failure> {
    let mut footer = [0; FOOTER_BYTES];
    image.read(footer_offset, &mut footer)?;
    finish_plan(&footer, footer_offset, extent)?.apply(image.medium)?;
    Ok(())
}

/// Brings an image back to a state that opens, by its journal: the one before the resize, or, if
/// the resize was committed, the one after it. Interrupted, it can be done again.
///
/// # Errors
/// `OtherImage`, `Format` for a damaged journal of an image that needs one, and those of the media.
pub fn revert<I: Medium, J: Medium>(
    image: &mut Named<'_, I>,
    journal: &mut Named<'_, J>,
    extent: Extent,
) -> Result<Outcome, Failure> {
    let header = match read_header(journal) {
        Ok(header) => header,
        // One cut off while it was recorded: the image had not been touched.
        Err(_) if is_enabled(image, extent) => return Ok(Outcome::Nothing),
        Err(error) => return Err(error),
    };
    if !is_disabled(image, &header)? {
        return Ok(Outcome::Nothing);
    }
    if header.is_committed() {
        finish(image, header.footer_offset, extent)?;
        return Ok(Outcome::Finished);
    }
    let limit = match extent {
        Extent::Grows => header.footer_offset.saturating_add(SECTOR_BYTES),
        Extent::Reserved => image.size()?,
    };
    let metadata = (header.metadata_offset, header.metadata_entries, limit);
    restore(image, journal, metadata, Pass::Disabled)?;
    image.flush()?;
    restore(image, journal, metadata, Pass::Content)?;
    let data = (header.data_offset, header.data_entries, limit);
    restore(image, journal, data, Pass::Content)?;
    image.flush()?;
    if extent == Extent::Grows {
        let size = header.footer_offset.saturating_add(SECTOR_BYTES);
        let cut = image.medium.set_size(size);
        cut.map_err(|e| image.io(size, e))?;
        image.flush()?;
    }
    restore(image, journal, metadata, Pass::Enabled)?;
    image.flush()?;
    Ok(Outcome::Reverted)
}

fn read_header<J: Medium>(journal: &Named<'_, J>) -> Result<JournalHeader, Failure> {
    let mut sector = [0; JOURNAL_HEADER_BYTES];
    journal.read(0, &mut sector)?;
    Ok(JournalHeader::parse(&sector)?)
}

fn is_enabled<I: Medium>(image: &Named<'_, I>, extent: Extent) -> bool {
    let options = vhd_rs::OpenOptions {
        extent,
        access: vhd_rs::Access::ReadOnly,
    };
    vhd_rs::Image::open_with(&*image.medium, options, crate::disk::ALLOW).is_ok()
}

/// Whether any footer of the image says that a resize is under way.
fn is_disabled<I: Medium>(image: &Named<'_, I>, header: &JournalHeader) -> Result<bool, Failure> {
    let size = image.size()?;
    let last = (size / SECTOR_BYTES).saturating_sub(1) * SECTOR_BYTES;
    let mut known = false;
    for offset in [last, 0, header.footer_offset] {
        if offset.saturating_add(SECTOR_BYTES) > size {
            continue;
        }
        let mut sector = [0; FOOTER_BYTES];
        image.read(offset, &mut sector)?;
        match poisoned_footer(&sector, header.image) {
            Some(true) => return Ok(true),
            Some(false) => known = true,
            None => {}
        }
    }
    if known {
        Ok(false)
    } else {
        Err(Failure::OtherImage(header.image))
    }
}

/// Which entries are restored.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pass {
    /// Footers in their old places, still saying that the image is disabled: a fixed disk's only
    /// one may have been overwritten, and without any the image would not be known again.
    Disabled,
    /// All that are not footers.
    Content,
    /// Footers as they were.
    Enabled,
}

fn restore<I: Medium, J: Medium>(
    image: &mut Named<'_, I>,
    journal: &Named<'_, J>,
    (mut offset, count, limit): (u64, u32, u64),
    pass: Pass,
) -> Result<(), Failure> {
    let journal_bytes = journal.size()?;
    for _ in 0..count {
        let mut bytes = [0; ENTRY_HEADER_BYTES];
        journal.read(offset, &mut bytes)?;
        let entry = Entry::parse(&bytes)?;
        let data_at = offset.saturating_add(ENTRY_HEADER_BYTES as u64);
        // No memory for what cannot be there.
        if data_at.saturating_add(u64::from(entry.len)) > journal_bytes {
            return Err(journal.io(data_at, std::io::ErrorKind::UnexpectedEof.into()));
        }
        let mut data = vec![0; entry.len as usize];
        journal.read(data_at, &mut data)?;
        entry.check(&data)?;
        if entry.offset.saturating_add(u64::from(entry.len)) > limit {
            return Err(Failure::Outside {
                offset: entry.offset,
                len: entry.len,
                limit,
            });
        }
        match (entry.kind.is_footer(), pass) {
            (true, Pass::Disabled) => {
                let footer = data.first_chunk().ok_or(Failure::NoFooter)?;
                let footer = Footer::parse(footer)?;
                image.write(entry.offset, &footer.to_poisoned_bytes())?;
            }
            (false, Pass::Content) | (true, Pass::Enabled) => image.write(entry.offset, &data)?,
            (true, Pass::Content) | (false, Pass::Disabled | Pass::Enabled) => {}
        }
        offset = offset.saturating_add(ENTRY_HEADER_BYTES as u64 + data.len() as u64);
    }
    Ok(())
}

impl From<(&std::path::Path, Failure)> for crate::Error {
    fn from((path, failure): (&std::path::Path, Failure)) -> Self {
        match failure {
            Failure::Format(error) => Self::vhd(path, error),
            Failure::Io { source, .. } if source.kind() == std::io::ErrorKind::UnexpectedEof => {
                Self::invalid(format!("{}: the journal ends too early", path.display()))
            }
            Failure::Io {
                name,
                offset,
                source,
            } => Self::io(
                format!("{}: {name} fails at byte {offset}", path.display()),
                source,
            ),
            other @ (Failure::OtherImage(_) | Failure::NoFooter | Failure::Outside { .. }) => {
                Self::invalid(format!("{}: {other}", path.display()))
            }
        }
    }
}
