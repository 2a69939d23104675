//! The plugin to copy.
