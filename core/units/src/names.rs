//! Names that end up in paths, sockets or log lines, checked when they are made.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// Why a text is not a usable name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind} {text:?} is not valid: {reason}")]
pub struct NameError {
    kind: &'static str,
    text: String,
    reason: &'static str,
}

fn check(
    kind: &'static str,
    text: &str,
    max: usize,
    allowed: fn(char) -> bool,
) -> Result<(), NameError> {
    let reason = if text.is_empty() {
        "it is empty"
    } else if text.len() > max {
        "it is too long"
    } else if text.starts_with('.') {
        "it starts with a dot"
    } else if !text.chars().all(allowed) {
        "it has a character outside the allowed set"
    } else {
        return Ok(());
    };
    Err(NameError {
        kind,
        text: text.chars().take(64).collect(),
        reason,
    })
}

macro_rules! name {
    ($(#[$doc:meta])+ $name:ident, $kind:literal, $max:literal, $allowed:expr) => {
        $(#[$doc])+
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// Returns the name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = NameError;
            fn try_from(text: String) -> Result<Self, NameError> {
                check($kind, &text, $max, $allowed)?;
                Ok(Self(text))
            }
        }

        impl FromStr for $name {
            type Err = NameError;
            fn from_str(text: &str) -> Result<Self, NameError> {
                Self::try_from(text.to_owned())
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({:?})", stringify!($name), self.0)
            }
        }
    };
}

name! {
    /// Names one byte container inside an SR: a file name, an LV name, an object key.
    /// 1 to 128 characters of `A-Z a-z 0-9 . _ -`, not starting with a dot.
    ContainerId, "container id", 128,
    |c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-')
}

name! {
    /// Names a datapath: chosen by whoever attaches, e.g. `vbd/3/xvda` or `export/<uuid>`.
    /// 1 to 128 characters of `A-Z a-z 0-9 . _ - /`, not starting with a dot.
    DpId, "datapath id", 128,
    |c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '/')
}

name! {
    /// Follows one client call through daemon, plugin and data path in the logs.
    /// 1 to 64 characters of `A-Z a-z 0-9 - :`.
    RequestId, "request id", 64,
    |c| c.is_ascii_alphanumeric() || matches!(c, '-' | ':')
}

impl RequestId {
    /// Makes a fresh random id, `R:` and 12 hexadecimal digits.
    pub fn random() -> Self {
        let uuid = uuid::Uuid::new_v4().simple().to_string();
        Self(format!("R:{}", &uuid[..12]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn container_ids_cannot_leave_their_directory() {
        for bad in [
            "",
            ".",
            "..",
            ".hidden",
            "a/b",
            "a\0b",
            "é",
            &"x".repeat(129),
        ] {
            assert!(bad.parse::<ContainerId>().is_err(), "{bad:?} was accepted");
        }
        for good in ["a", "a.vhd", "VHD-0_1", &"x".repeat(128)] {
            assert_eq!(good.parse::<ContainerId>().unwrap().as_str(), good);
        }
    }

    #[test]
    fn names_are_checked_when_they_are_deserialised() {
        assert!(serde_json::from_str::<ContainerId>("\"../x\"").is_err());
        assert!(serde_json::from_str::<DpId>("\"vbd/3/xvda\"").is_ok());
    }

    #[test]
    fn a_random_request_id_is_a_valid_one() {
        let id = RequestId::random();
        assert_eq!(id.as_str().parse::<RequestId>().unwrap(), id);
    }
}
