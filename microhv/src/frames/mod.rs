//! Machine frames: what each is used as, which are free, and the bits of page-table entries. Nothing here knows a domain.
//!
//! - `info`, `table`, `buddy`: a frame's two words, all of them, and the allocator in them
//! - `copies`: which level 4 tables a CPU has copies of
//! - `regions`: where the frames of one owner are
//! - `pte`: bits of entries and the rules that need no state

#![forbid(unsafe_code)]

pub(crate) mod buddy;
pub mod copies;
pub mod info;
pub mod pte;
pub(crate) mod regions;
pub mod table;

pub use info::{FrameInfo, PageType};
pub use table::FrameTable;
