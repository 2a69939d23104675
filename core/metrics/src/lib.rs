//! Data sources sampled on a fixed step, handed to monitor plugins.
