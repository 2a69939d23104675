//! Fuzz targets for everything in the data path that parses bytes of others.
//!
//! A target is a plain function of bytes. The bytes are not the image or the stream itself: they
//! choose how one is made ([`images`], [`input`]), with right checksums, and where it is damaged
//! then, so that what is reached is the code behind the checks.
//!
//! Rules for every target: no panic, no more memory than the input justifies, no more than a second
//! ([`guard`]), and agreement with an oracle that shares no code with what is tested: the checker
//! and the naive reader of `vhd-checker`, a model of the disk's content, a reader of NBD replies
//! written here from the specification.
//!
//! Two drivers: the tests replay `corpus/` and mutations of it that follow from a seed, and
//! `cargo xtask fuzz TARGET` searches under coverage. A found input is replayed by
//! `cargo xtask fuzz TARGET --replay PATH`.

#![forbid(unsafe_code)]

pub mod guard;
pub mod images;
pub mod input;
pub mod mutate;
pub mod oracle;
pub mod targets;

/// A target and its name.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// As on the command line, and of its folder in `corpus/`.
    pub name: &'static str,
    /// The function.
    pub run: fn(&[u8]),
}

/// All of them.
pub const TARGETS: &[Target] = &[
    Target {
        name: "open",
        run: targets::open::target,
    },
    Target {
        name: "write",
        run: targets::write::target,
    },
    Target {
        name: "chain",
        run: targets::chain::target,
    },
    Target {
        name: "locators",
        run: targets::locators::target,
    },
    Target {
        name: "batmap",
        run: targets::batmap::target,
    },
    Target {
        name: "journal",
        run: targets::journal::target,
    },
    Target {
        name: "nbd",
        run: targets::nbd::target,
    },
    Target {
        name: "control",
        run: targets::control::target,
    },
    Target {
        name: "vhost",
        run: targets::vhost::target,
    },
];

/// The target of a name.
pub fn target(name: &str) -> Option<Target> {
    TARGETS.iter().copied().find(|target| target.name == name)
}

impl Target {
    /// Runs one input under all rules.
    ///
    /// # Panics
    /// If one of them is broken.
    pub fn check(&self, bytes: &[u8]) {
        guard::timed(|| (self.run)(bytes));
    }
}
