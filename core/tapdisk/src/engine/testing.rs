//! What the tests of the engine stand on, and what other packages test it with: a rig that drives
//! one engine on a disk in memory, and the model of legal values.
//!
//! Only with the feature `testing`; nothing here is part of a data path.

pub mod model;
pub mod rig;
