//! Whole-host tests: real daemon, plugins, data paths, clients.
