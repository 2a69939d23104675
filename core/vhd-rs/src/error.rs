//! The one error type of the crate: what callers branch on, and the field, value and rule for the
//! operator. It never carries file contents.

use std::borrow::Cow;
use std::fmt::Display;
use std::io;

/// What callers branch on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// No valid footer, so this is no VHD (or nothing is left of it).
    NotVhd,
    /// A field or a region has a value that no sound image has.
    Corrupt,
    /// A checksum does not match its bytes.
    Checksum,
    /// A sound image, but of a version, block size or feature this crate does not handle.
    Unsupported,
    /// The footer says "v_poison": another tool's resize journal is in progress.
    Poisoned,
    /// The medium could not be read or written; see the source.
    Io,
    /// The container or the 32-bit sector numbers of the format are used up.
    NoSpace,
    /// A new parent's path does not fit the space the image reserves for it.
    NameTooLong,
    /// The caller asked for something that makes no sense for this image.
    Argument,
    /// The parent given is not the one the child names.
    ParentMismatch,
    /// An image occurs twice in a chain.
    ChainLoop,
    /// The chain is longer than the caller allows.
    ChainTooDeep,
    /// The image is encrypted and no key or another one is at hand, or a key is and the image is not
    /// encrypted.
    Key,
}

/// Why an image, a field or a request was refused.
///
/// Displays as `header.block_size is 3: must be a power of two from 512 to 2097152`.
#[derive(Debug, thiserror::Error)]
#[error("{field} is {value}: {rule}")]
pub struct Error {
    kind: ErrorKind,
    field: Cow<'static, str>,
    value: String,
    rule: Cow<'static, str>,
    source: Option<io::Error>,
}

impl Error {
    pub(crate) fn new(
        kind: ErrorKind,
        field: impl Into<Cow<'static, str>>,
        value: impl Display,
        rule: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self {
            kind,
            field: field.into(),
            value: value.to_string(),
            rule: rule.into(),
            source: None,
        }
    }

    pub(crate) fn corrupt(
        field: impl Into<Cow<'static, str>>,
        value: impl Display,
        rule: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self::new(ErrorKind::Corrupt, field, value, rule)
    }

    pub(crate) fn argument(
        field: impl Into<Cow<'static, str>>,
        value: impl Display,
        rule: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self::new(ErrorKind::Argument, field, value, rule)
    }

    pub(crate) fn checksum(field: &'static str, stored: u32, computed: u32) -> Self {
        let rule = format!("the bytes sum up to {computed:#010x}");
        Self::new(
            ErrorKind::Checksum,
            field,
            format_args!("{stored:#010x}"),
            rule,
        )
    }

    pub(crate) fn io(region: &'static str, offset: u64, source: io::Error) -> Self {
        Self {
            kind: ErrorKind::Io,
            field: region.into(),
            value: format!("at byte {offset}"),
            rule: "input or output failed".into(),
            source: Some(source),
        }
    }

    /// What callers branch on.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The field or region, such as `header.block_size` or `bat[17]`.
    pub fn field(&self) -> &str {
        &self.field
    }

    /// The offending value as text.
    pub fn value(&self) -> &str {
        &self.value
    }

    /// What the value should have been.
    pub fn rule(&self) -> &str {
        &self.rule
    }
}
