//! The entry point of the repository.
fn main() {}
