//! Version 2: entries of 16 bytes, status words beside them, parts of pages, grants passed on.

pub mod copying;
#[cfg(freestanding)]
mod kit;
pub mod mapping;
pub mod status;
pub mod versions;
