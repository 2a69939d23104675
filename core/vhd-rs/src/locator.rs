//! Parent locators: the paths by which a differencing image names its parent, in three encodings.
//! Paths are returned as text and never opened here; they are input of unknown origin.

use crate::wire::{bytes_at, pad_sector, put, u32_at, u64_at};
use crate::{Error, ErrorKind};

/// Bytes of one entry in the header.
pub(crate) const ENTRY_BYTES: usize = 24;

/// Longest encoded path that is read.
pub const LOCATOR_BYTES_MAX: u32 = 64 * 1024;

/// Longest path that is written, in bytes.
const PATH_BYTES_MAX: usize = 1023;
const URL: &str = "file://";

/// How a locator's path is encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LocatorCode {
    /// The entry is not used.
    None,
    /// `MacX`: a `file://` URL in UTF-8, without percent-encoding.
    MacX,
    /// `W2ku`: UTF-16LE with backslashes, absolute by the specification. XenServer's tools write
    /// the relative path here too.
    W2ku,
    /// `W2ru`: UTF-16LE with backslashes, relative.
    W2ru,
    /// `Mac `, `Wi2r` or `Wi2k`: obsolete; accepted and not decoded.
    Obsolete([u8; 4]),
}

impl LocatorCode {
    fn parse(index: usize, code: [u8; 4]) -> Result<Self, Error> {
        Ok(match &code {
            [0, 0, 0, 0] => Self::None,
            b"MacX" => Self::MacX,
            b"W2ku" => Self::W2ku,
            b"W2ru" => Self::W2ru,
            b"Mac " | b"Wi2r" | b"Wi2k" => Self::Obsolete(code),
            _ => {
                let field = format!("header.locator[{index}].code");
                let value = format!("\"{}\"", code.escape_ascii());
                return Err(Error::corrupt(
                    field,
                    value,
                    "must be a known platform code",
                ));
            }
        })
    }

    fn to_bytes(self) -> [u8; 4] {
        match self {
            Self::None => [0; 4],
            Self::MacX => *b"MacX",
            Self::W2ku => *b"W2ku",
            Self::W2ru => *b"W2ru",
            Self::Obsolete(code) => code,
        }
    }

    /// Whether this crate reads and writes paths of this encoding.
    pub fn is_decoded(self) -> bool {
        matches!(self, Self::MacX | Self::W2ku | Self::W2ru)
    }
}

/// A locator's entry in the header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LocatorEntry {
    /// How the path is encoded.
    pub code: LocatorCode,
    /// Space reserved for the path as stored: bytes, or sectors if below 512.
    pub data_space: u32,
    /// Bytes of the encoded path.
    pub data_len: u32,
    /// Byte offset of the path in the file.
    pub data_offset: u64,
}

impl LocatorEntry {
    /// An entry that is not used.
    pub const NONE: Self = Self {
        code: LocatorCode::None,
        data_space: 0,
        data_len: 0,
        data_offset: 0,
    };

    pub(crate) fn parse(index: usize, bytes: &[u8; ENTRY_BYTES]) -> Result<Self, Error> {
        let code = LocatorCode::parse(index, bytes_at(bytes, 0))?;
        if code == LocatorCode::None {
            return Ok(Self::NONE);
        }
        let entry = Self {
            code,
            data_space: u32_at(bytes, 4),
            data_len: u32_at(bytes, 8),
            data_offset: u64_at(bytes, 16),
        };
        entry.check(index)?;
        Ok(entry)
    }

    fn check(&self, index: usize) -> Result<(), Error> {
        let field = |name: &str| format!("header.locator[{index}].{name}");
        let space = self.space_bytes();
        if space == 0 {
            let rule = "must be a count of sectors below 512 or a multiple of 512 bytes";
            return Err(Error::corrupt(field("data_space"), self.data_space, rule));
        }
        if u64::from(self.data_len) > space {
            let rule = format!("must fit its space of {space} bytes");
            return Err(Error::corrupt(field("data_len"), self.data_len, rule));
        }
        if self.data_len > LOCATOR_BYTES_MAX {
            let rule = format!("paths are read up to {LOCATOR_BYTES_MAX} bytes");
            return Err(Error::corrupt(field("data_len"), self.data_len, rule));
        }
        if self.data_offset.checked_add(space).is_none() {
            let rule = "must lie inside the file";
            return Err(Error::corrupt(field("data_offset"), self.data_offset, rule));
        }
        Ok(())
    }

    pub(crate) fn to_bytes(self) -> [u8; ENTRY_BYTES] {
        let mut bytes = [0; ENTRY_BYTES];
        put(&mut bytes, 0, &self.code.to_bytes());
        put(&mut bytes, 4, &self.data_space.to_be_bytes());
        put(&mut bytes, 8, &self.data_len.to_be_bytes());
        put(&mut bytes, 16, &self.data_offset.to_be_bytes());
        bytes
    }

    /// Bytes reserved for the path. The specification counts sectors, XenServer's tools write
    /// bytes: below 512 it is sectors, a multiple of 512 is bytes, anything else is 0 (invalid).
    pub fn space_bytes(&self) -> u64 {
        match self.data_space {
            sectors if sectors < 512 => u64::from(sectors) * 512,
            bytes if bytes.is_multiple_of(512) => u64::from(bytes),
            _ => 0,
        }
    }
}

/// A locator with its path's bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Locator {
    /// Place among the header's eight entries.
    pub index: usize,
    /// The entry.
    pub entry: LocatorEntry,
    /// The encoded path.
    pub data: Vec<u8>,
}

impl Locator {
    /// The path with slashes, as the image gives it: absolute, relative, or with `..` in it. The
    /// caller decides whether it may be followed.
    ///
    /// # Errors
    /// `Corrupt` for bytes that are not of the encoding, `Unsupported` for obsolete codes.
    pub fn path(&self) -> Result<String, Error> {
        let field = || format!("header.locator[{}].data", self.index);
        let path = match self.entry.code {
            LocatorCode::MacX => decode_url(&self.data),
            LocatorCode::W2ku | LocatorCode::W2ru => decode_windows(&self.data),
            LocatorCode::None | LocatorCode::Obsolete(_) => {
                let value = format!("\"{}\"", self.entry.code.to_bytes().escape_ascii());
                let rule = "paths of this code are not decoded";
                return Err(Error::new(ErrorKind::Unsupported, field(), value, rule));
            }
        };
        let path = path.map_err(|(value, rule)| Error::corrupt(field(), value, rule))?;
        if path.is_empty() || path.contains('\0') {
            let value = format!("\"{}\"", path.escape_debug());
            return Err(Error::corrupt(field(), value, "must be a path without NUL"));
        }
        Ok(path)
    }
}

fn decode_url(data: &[u8]) -> Result<String, (String, &'static str)> {
    let text = std::str::from_utf8(data).map_err(|bad| {
        (
            format!("bad after byte {}", bad.valid_up_to()),
            "must be UTF-8",
        )
    })?;
    let Some(path) = text.trim_end_matches('\0').strip_prefix(URL) else {
        return Err((
            format!("\"{}\"", text.escape_debug()),
            "must begin with file://",
        ));
    };
    Ok(path.to_owned())
}

fn decode_windows(data: &[u8]) -> Result<String, (String, &'static str)> {
    let pairs = data.chunks_exact(2);
    if !pairs.remainder().is_empty() {
        return Err((
            format!("{} bytes long", data.len()),
            "UTF-16 comes in pairs of bytes",
        ));
    }
    let units = pairs.map(|pair| u16::from_le_bytes([pair[0], pair[1]]));
    let text: String = char::decode_utf16(units)
        .collect::<Result<_, _>>()
        .map_err(|bad| {
            let value = format!("with the lone surrogate {:#06x}", bad.unpaired_surrogate());
            (value, "must be UTF-16")
        })?;
    let text = text.trim_end_matches('\0').replace('\\', "/");
    let without_drive = text.strip_prefix("C:").or_else(|| text.strip_prefix("c:"));
    Ok(without_drive.unwrap_or(&text).to_owned())
}

/// A parent's path made ready to be written: relative paths begin with `./` or `../`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ParentPath(String);

impl ParentPath {
    pub(crate) fn new(path: &str) -> Result<Self, Error> {
        let anchored = ["./", "../", "/"]
            .iter()
            .any(|prefix| path.starts_with(prefix));
        let path = if anchored {
            path.to_owned()
        } else {
            format!("./{path}")
        };
        let name = path.rsplit('/').next().unwrap_or_default();
        if matches!(name, "" | "." | "..") || path.contains(['\0', '\\']) {
            let rule = "must be a path with slashes that ends in a file's name";
            return Err(Error::argument(
                "parent.path",
                format_args!("{path:?}"),
                rule,
            ));
        }
        if path.len() > PATH_BYTES_MAX {
            let rule = format!("paths are written up to {PATH_BYTES_MAX} bytes");
            return Err(Error::new(
                ErrorKind::NameTooLong,
                "parent.path",
                path.len(),
                rule,
            ));
        }
        Ok(Self(path))
    }

    /// The base name, which goes into the header.
    pub(crate) fn file_name(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or_default()
    }

    /// The path's bytes for one code; empty for codes that are not written.
    pub(crate) fn encode(&self, code: LocatorCode) -> Vec<u8> {
        match code {
            LocatorCode::MacX => format!("{URL}{}", self.0).into_bytes(),
            LocatorCode::W2ku | LocatorCode::W2ru => self.encode_windows(),
            LocatorCode::None | LocatorCode::Obsolete(_) => Vec::new(),
        }
    }

    fn encode_windows(&self) -> Vec<u8> {
        let path = self.0.replace('/', "\\");
        let anchored = path.starts_with(".\\") || path.starts_with('\\');
        let path = if anchored { path } else { format!(".\\{path}") };
        path.encode_utf16().flat_map(u16::to_le_bytes).collect()
    }

    /// The three locators with their padded data, laid out from `offset` on in the order and with
    /// the byte-counted space that XenServer's tools use.
    pub(crate) fn lay_out(&self, offset: u64) -> Vec<(LocatorEntry, Vec<u8>)> {
        let mut at = offset;
        let mut laid_out = Vec::with_capacity(3);
        for code in [LocatorCode::MacX, LocatorCode::W2ku, LocatorCode::W2ru] {
            let mut data = self.encode(code);
            let data_len = data.len() as u32;
            let space = pad_sector(data.len() as u64);
            data.resize(space as usize, 0);
            let entry = LocatorEntry {
                code,
                data_space: space as u32,
                data_len,
                data_offset: at,
            };
            laid_out.push((entry, data));
            at += space;
        }
        laid_out
    }
}
