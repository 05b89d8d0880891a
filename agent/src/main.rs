//! The `tipstaff` binary.
fn main() {}
