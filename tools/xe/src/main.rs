//! xe: placeholder until the client lands.
fn main() {}
