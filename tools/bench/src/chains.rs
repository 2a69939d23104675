//! P7: chains. Reads through many layers beside reads through one, and what a deep chain costs in
//! memory and to open.

mod build;
mod open;
mod speed;

pub(crate) use open::measure as measure_open;
pub(crate) use speed::measure as measure_speed;
