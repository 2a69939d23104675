//! A `device_config` as authors read it.

use crate::{Error, Result};

/// Keys and values that an administrator gave, in their order.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Config(Vec<(String, String)>);

impl Config {
    /// Returns the value of `key`.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(name, _)| name == key)
            .map(|(_, value)| value.as_str())
    }

    /// Returns the value of `key`.
    ///
    /// # Errors
    ///
    /// `invalid` if it is missing or empty.
    pub fn require(&self, key: &str) -> Result<&str> {
        self.get(key)
            .filter(|value| !value.is_empty())
            .ok_or_else(|| Error::invalid(format!("device_config has no {key}")))
    }

    /// Returns an absolute path without a trailing slash.
    ///
    /// # Errors
    ///
    /// `invalid` if it is missing or not absolute.
    pub fn require_path(&self, key: &str) -> Result<&str> {
        let path = self.require(key)?;
        if !path.starts_with('/') {
            return Err(Error::invalid(format!(
                "{key} {path:?} is not an absolute path"
            )));
        }
        Ok(path.trim_end_matches('/'))
    }

    /// Sets `key` to `value`.
    pub fn set(&mut self, key: &str, value: impl Into<String>) {
        self.0.retain(|(name, _)| name != key);
        self.0.push((key.to_owned(), value.into()));
    }
}

impl From<Vec<(String, String)>> for Config {
    fn from(pairs: Vec<(String, String)>) -> Self {
        Self(pairs)
    }
}

impl From<Config> for Vec<(String, String)> {
    fn from(config: Config) -> Self {
        config.0
    }
}
