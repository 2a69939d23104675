//! xylemd entry point.
fn main() {}
