//! The engine against independent models: on memory, on a disk that loses power, under faults, and
//! on real files.

mod crash;
mod facts;
mod faults;
mod files;
mod limits;
mod live;
mod random;
mod write_through;

use super::testing::{model, power, rig};
