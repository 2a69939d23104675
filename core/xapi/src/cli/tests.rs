//! The CLI over a real interface: what clients see.
