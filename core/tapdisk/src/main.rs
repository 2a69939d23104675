//! xylem-tapdisk entry point.
fn main() {}
