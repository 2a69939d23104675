//! The error every plugin call can end with.

use serde::{Deserialize, Serialize};

/// What callers branch on. The first group is the plugin saying no, the second is the plugin
/// breaking.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum PluginErrorKind {
    /// The named thing does not exist.
    NotFound,
    /// The named thing exists already, with other properties.
    Exists,
    /// The plugin may not do this.
    Denied,
    /// The plugin has not got this power.
    Unsupported,
    /// An argument or the configuration is wrong.
    Invalid,
    /// No space is left.
    NoSpace,
    /// The storage below answered with an error.
    Io,
    /// In use; the same call may succeed later.
    Busy,
    /// The plugin did not answer before its deadline.
    Timeout,
    /// The plugin trapped, crashed, ran out of its memory limit or left.
    Crashed,
    /// The plugin is not what it said it is: ABI, version, world or reply shape.
    Incompatible,
    /// Anything else; a defect.
    Internal,
}

/// A failed plugin call: what kind, which plugin and operation, and the plugin's own words.
#[derive(Debug, Clone, thiserror::Error)]
#[error("plugin {plugin}: {operation}: {message}")]
pub struct PluginError {
    /// What callers branch on.
    pub kind: PluginErrorKind,
    /// Which plugin.
    pub plugin: String,
    /// Which call, e.g. `containers.create`.
    pub operation: String,
    /// What happened, with the thing and the number.
    pub message: String,
}
