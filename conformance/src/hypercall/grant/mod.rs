//! `grant_table_op`: what is granted, mapped, copied; all with this domain at both ends.

pub mod copying;
#[cfg(freestanding)]
pub(super) mod granted;
pub mod mapping;
pub mod table;
pub mod wide;
