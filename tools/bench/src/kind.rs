//! Who serves: our process, and the peers in each way they can do their I/O.

use crate::ours::Cache;

/// A server and the format it serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Family {
    /// `xylem-tapdisk` with a dynamic VHD.
    Ours,
    /// `qemu-nbd` with a raw file.
    QemuRaw,
    /// `qemu-nbd` with a copy of our VHD.
    QemuVpc,
    /// `qemu-nbd` with a qcow2 of its default cluster size, 64 KiB.
    QemuQcow2,
    /// `nbdkit` with a raw file; it has no `O_DIRECT`: on a disk it starts with nothing
    /// cached and drops what it read, but its writes stay in the page cache until a flush.
    NbdkitFile,
    /// `nbdkit` with nothing: what the protocol and the client cost.
    NbdkitNull,
}

/// How a server does its I/O.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Aio {
    /// It has one way only.
    Own,
    /// Linux AIO; wants `O_DIRECT`.
    Native,
    /// A pool of threads.
    Threads,
    /// io_uring.
    Uring,
}

/// One server as it is started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Kind {
    pub(crate) family: Family,
    pub(crate) aio: Aio,
}

impl Kind {
    /// Ours.
    pub(crate) const OURS: Self = Self {
        family: Family::Ours,
        aio: Aio::Own,
    };

    /// Its name in tables.
    pub(crate) fn name(self) -> String {
        let aio = match self.aio {
            Aio::Own => "",
            Aio::Native => " native",
            Aio::Threads => " threads",
            Aio::Uring => " io_uring",
        };
        format!("{}{aio}", self.family.name())
    }

    /// The file it serves, by the end of its name.
    pub(crate) fn file(self) -> &'static str {
        self.family.file()
    }
}

impl Family {
    /// Every way it can be run with that cache.
    pub(crate) fn kinds(self, cache: Cache) -> Vec<Kind> {
        let ways: &[Aio] = match (self, cache) {
            (Self::Ours | Self::NbdkitFile | Self::NbdkitNull, _) => &[Aio::Own],
            (_, Cache::Direct) => &[Aio::Native, Aio::Threads, Aio::Uring],
            (_, Cache::Page) => &[Aio::Threads, Aio::Uring],
        };
        let kinds = ways.iter().map(|aio| Kind {
            family: self,
            aio: *aio,
        });
        kinds.collect()
    }

    /// Its name in tables.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ours => "xylem-tapdisk vhd",
            Self::QemuRaw => "qemu-nbd raw",
            Self::QemuVpc => "qemu-nbd vpc",
            Self::QemuQcow2 => "qemu-nbd qcow2",
            Self::NbdkitFile => "nbdkit file",
            Self::NbdkitNull => "nbdkit null",
        }
    }

    /// The file it serves, by the end of its name.
    pub(crate) fn file(self) -> &'static str {
        match self {
            Self::Ours => "ours.vhd",
            Self::QemuVpc => "peer.vhd",
            Self::QemuQcow2 => "peer.qcow2",
            Self::QemuRaw | Self::NbdkitFile | Self::NbdkitNull => "peer.raw",
        }
    }

    /// What an answered write and an answered flush are worth there.
    pub(crate) fn promise(self) -> &'static str {
        match self {
            Self::Ours => {
                "a write may be lost until a flush; a flush makes data, bitmaps and BAT durable in \
                 that order, with two barriers"
            }
            Self::QemuRaw => "a write may be lost until a flush; a flush is one fdatasync",
            Self::QemuVpc => {
                "a write may be lost until a flush; bitmap and BAT are written at once, in no order \
                 that a power cut would respect; a flush is one fdatasync"
            }
            Self::QemuQcow2 => {
                "a write may be lost until a flush; a flush writes the tables, refcounts before \
                 mappings, and is fdatasync"
            }
            Self::NbdkitFile => {
                "a write is in the page cache until a flush, whatever the medium; a flush is one \
                 fdatasync"
            }
            Self::NbdkitNull => "none: nothing is stored",
        }
    }
}

/// What XenServer's tapdisk promises; it cannot run here.
pub(crate) const TAPDISK_PROMISE: &str = "no flush at all: a write is answered when the device has it, and may be lost until the device \
     writes its cache";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linux_aio_is_never_asked_of_the_page_cache() {
        let native = |cache| {
            Family::QemuRaw
                .kinds(cache)
                .iter()
                .any(|k| k.aio == Aio::Native)
        };
        assert!(native(Cache::Direct));
        assert!(!native(Cache::Page));
    }

    #[test]
    fn names_tell_the_ways_of_a_family_apart() {
        let names: Vec<String> = Family::QemuVpc
            .kinds(Cache::Direct)
            .iter()
            .map(|k| k.name())
            .collect();
        assert_eq!(
            names,
            [
                "qemu-nbd vpc native",
                "qemu-nbd vpc threads",
                "qemu-nbd vpc io_uring"
            ]
        );
        assert_eq!(Kind::OURS.name(), "xylem-tapdisk vhd");
    }
}
