//! xylem-plugin entry point.
fn main() {}
