//! Files by number, and what the kernel's error numbers mean.

use block::{Error, ErrorKind, FileId, Op, Verb};
use rustix::fs::{AtFlags, FileType, OFlags, SeekFrom, StatxFlags};
use rustix::io::Errno;
use std::os::fd::OwnedFd;

/// Largest offset a file has, as `off_t` allows it.
const OFFSET_MAX: u64 = i64::MAX as u64;

/// Unit of all operations of the data path.
const SECTOR_BYTES: u32 = 512;

/// Bits of a file's number that name its place; the rest counts how often the place was used.
const PLACE_BITS: u32 = 20;

/// Magic numbers in `statfs` of file systems whose files are in memory (`linux/magic.h`).
const MEMORY_FILE_SYSTEMS: [i64; 2] = [0x0102_1994, 0x8584_58f6];

/// An open file.
#[derive(Debug)]
pub(crate) struct File {
    pub(crate) fd: OwnedFd,
    /// Its place in the ring's table of registered descriptors.
    pub(crate) slot: Option<u32>,
    /// Whether its I/O is performed by plain system calls.
    pub(crate) inline: bool,
}

/// Open files; numbers are given out once.
#[derive(Debug, Default)]
pub(crate) struct Files {
    places: Vec<(u32, Option<File>)>,
    free: Vec<u32>,
}

impl Files {
    pub(crate) fn add(&mut self, file: File) -> FileId {
        let index = self.free.pop().unwrap_or_else(|| {
            self.places.push((0, None));
            u32::try_from(self.places.len() - 1).expect("descriptors are fewer")
        });
        assert!(index >> PLACE_BITS == 0, "at most 2^20 files are open");
        let mut generation = 0;
        if let Some(place) = self.places.get_mut(index as usize) {
            generation = place.0;
            place.1 = Some(file);
        }
        FileId(generation << PLACE_BITS | index)
    }

    pub(crate) fn remove(&mut self, file: FileId) -> Option<File> {
        self.get(file)?;
        let index = file.0 & ((1 << PLACE_BITS) - 1);
        let place = self.places.get_mut(index as usize)?;
        place.0 += 1;
        // A place whose numbers are used up is not used again.
        if place.0 >> (u32::BITS - PLACE_BITS) == 0 {
            self.free.push(index);
        }
        place.1.take()
    }

    pub(crate) fn get(&self, file: FileId) -> Option<&File> {
        let index = file.0 & ((1 << PLACE_BITS) - 1);
        let (generation, open) = self.places.get(index as usize)?;
        open.as_ref()
            .filter(|_| *generation == file.0 >> PLACE_BITS)
    }

    /// The file of an operation that can be performed at all.
    pub(crate) fn check(&self, op: &Op) -> Result<&File, Error> {
        let end = op.action.offset().checked_add(op.action.len_bytes());
        if end.is_none_or(|end| end > OFFSET_MAX) {
            return Err(op.error(ErrorKind::Invalid, None));
        }
        self.get(op.file)
            .ok_or_else(|| op.error(ErrorKind::NoSuchFile, None))
    }

    /// Size of a file, capacity of a block device.
    pub(crate) fn size_bytes(&self, file: FileId) -> Result<u64, Error> {
        let error = |kind, errno: Option<Errno>| Error {
            kind,
            verb: Verb::Read,
            file,
            offset: 0,
            os_error: errno.map(Errno::raw_os_error),
        };
        let open = self
            .get(file)
            .ok_or_else(|| error(ErrorKind::NoSuchFile, None))?;
        let failed = |errno| error(ErrorKind::Io, Some(errno));
        let stat = rustix::fs::fstat(&open.fd).map_err(failed)?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::BlockDevice {
            return rustix::fs::seek(&open.fd, SeekFrom::End(0)).map_err(failed);
        }
        Ok(u64::try_from(stat.st_size).unwrap_or(0))
    }
}

/// Switches direct I/O of an open file on or off. What is in flight goes on as it was.
pub(crate) fn set_direct(file: &File, direct: bool) -> Result<(), String> {
    let failed = |e: Errno| format!("the file's flags cannot be changed: {e}");
    if direct {
        check_direct(&file.fd)?;
    }
    let flags = rustix::fs::fcntl_getfl(&file.fd).map_err(failed)?;
    let mut wanted = flags;
    wanted.set(OFlags::DIRECT, direct);
    if wanted == flags {
        return Ok(());
    }
    rustix::fs::fcntl_setfl(&file.fd, wanted).map_err(failed)
}

/// Says why direct I/O in units of a sector is not possible, where that can be known before.
fn check_direct(fd: &OwnedFd) -> Result<(), String> {
    if is_in_memory(fd) {
        return Err("the file is in memory".to_owned());
    }
    let flags = StatxFlags::DIOALIGN;
    let Ok(stat) = rustix::fs::statx(fd, "", AtFlags::EMPTY_PATH, flags) else {
        return Ok(());
    };
    if stat.stx_mask & flags.bits() == 0 {
        // An older kernel does not know; a write that does not fit fails.
        return Ok(());
    }
    let aligns = (stat.stx_dio_mem_align, stat.stx_dio_offset_align);
    match aligns {
        (0, _) | (_, 0) => Err("the file system has no direct I/O".to_owned()),
        (memory, offset) if memory.max(offset) > SECTOR_BYTES => Err(format!(
            "direct I/O needs units of {offset} bytes at addresses in units of {memory}"
        )),
        _ => Ok(()),
    }
}

/// Whether the file's bytes are in memory, so that I/O never waits for a device.
pub(crate) fn is_in_memory(fd: &OwnedFd) -> bool {
    let of_file = rustix::fs::fstat(fd).is_ok_and(|stat| {
        // A device node may lie on a tmpfs too.
        FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
    });
    of_file && rustix::fs::fstatfs(fd).is_ok_and(|fs| MEMORY_FILE_SYSTEMS.contains(&fs.f_type))
}

/// The error of an operation for an error number.
pub(crate) fn error_of(op: &Op, errno: Errno) -> Error {
    let verb = op.action.verb();
    let kind = match errno {
        Errno::NOSPC | Errno::DQUOT | Errno::FBIG => ErrorKind::NoSpace,
        Errno::OPNOTSUPP | Errno::NOSYS | Errno::NODEV => ErrorKind::Unsupported,
        // A punch that a block device cannot do at this alignment.
        Errno::INVAL if verb == Verb::Punch => ErrorKind::Unsupported,
        _ => ErrorKind::Io,
    };
    op.error(kind, Some(errno.raw_os_error()))
}
