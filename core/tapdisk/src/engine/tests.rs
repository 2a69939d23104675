//! The engine against independent models: on memory, under faults, and on real files. The package
//! `xylem-crash` has the power cuts.

mod cbt;
mod edges;
mod facts;
mod faults;
mod files;
mod limits;
mod live;
mod memory;
mod pause;
mod random;
mod settle;
mod slow;
mod write_through;

use super::testing::{model, rig};
