//! `grant_table_op`: grants, mappings and copies. This domain is granter and mapper at once.

pub mod copying;
#[cfg(freestanding)]
pub(super) mod granted;
pub mod mapping;
pub mod table;
pub mod wide;
