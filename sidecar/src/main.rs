//! Merit.
fn main() {}
