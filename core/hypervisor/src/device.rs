//! Names of block devices as guests see them. Knows nothing of buses or back ends.

use crate::error::{Error, ErrorKind};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

const LETTERS: u32 = 26;

/// A guest's block device: `xvda` is position 0, `xvdz` 25, `xvdaa` 26, up to position 255.
///
/// # Source
/// `xen-vbd-interface(7)`: the extended scheme names disks by position.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DeviceName(u8);

impl DeviceName {
    /// Names the device at a position.
    pub fn from_position(position: u8) -> Self {
        Self(position)
    }

    /// Returns the position, 0 for `xvda`.
    pub fn position(self) -> u8 {
        self.0
    }
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let letter = |n: u32| char::from_u32('a' as u32 + n % LETTERS).unwrap_or('a');
        let position = u32::from(self.0);
        f.write_str("xvd")?;
        if let Some(high) = (position / LETTERS).checked_sub(1) {
            write!(f, "{}", letter(high))?;
        }
        write!(f, "{}", letter(position))
    }
}

impl fmt::Debug for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for DeviceName {
    type Err = Error;

    /// Reads `xvdb`, or the bare position `1` that API clients write.
    fn from_str(text: &str) -> Result<Self, Error> {
        let position = match text.strip_prefix("xvd") {
            Some(letters) if (1..=2).contains(&letters.len()) => {
                letters.bytes().try_fold(0u32, |sum, letter| {
                    let digit = u32::from(letter).checked_sub(u32::from(b'a'))?;
                    (digit < LETTERS).then_some(sum * LETTERS + digit + 1)
                })
            }
            Some(_) => None,
            None => text
                .parse::<u8>()
                .ok()
                .map(|position| u32::from(position) + 1),
        };
        position
            .and_then(|position| u8::try_from(position.checked_sub(1)?).ok())
            .map(Self)
            .ok_or_else(|| {
                let shown: String = text.chars().take(32).collect();
                Error::new(
                    ErrorKind::Invalid,
                    format!("no such device name: {shown:?}"),
                )
            })
    }
}

impl TryFrom<String> for DeviceName {
    type Error = Error;
    fn try_from(text: String) -> Result<Self, Error> {
        text.parse()
    }
}

impl From<DeviceName> for String {
    fn from(name: DeviceName) -> String {
        name.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_position_has_one_name_and_is_read_back() {
        let mut seen = std::collections::BTreeSet::new();
        for position in 0..=u8::MAX {
            let name = DeviceName::from_position(position).to_string();
            assert_eq!(
                name.parse::<DeviceName>().unwrap().position(),
                position,
                "{name}"
            );
            assert!(seen.insert(name));
        }
    }

    #[test]
    fn known_names_are_where_xen_puts_them() {
        for (name, position) in [
            ("xvda", 0),
            ("xvdb", 1),
            ("xvdz", 25),
            ("xvdaa", 26),
            ("xvdba", 52),
            ("3", 3),
        ] {
            assert_eq!(
                name.parse::<DeviceName>().unwrap().position(),
                position,
                "{name}"
            );
        }
    }

    #[test]
    fn other_texts_are_refused() {
        for text in [
            "", "xvd", "xvdA", "xvda1", "xvdzz", "xvdaaa", "sda", "256", "-1", "é", "xvdé",
        ] {
            assert_eq!(
                text.parse::<DeviceName>().unwrap_err().kind(),
                ErrorKind::Invalid,
                "{text}"
            );
        }
    }
}
