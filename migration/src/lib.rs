//! Xen's migration stream for PV domains, as `xl save` writes it and `xl restore` reads it.
//!
//! A saved domain is three formats, one inside the other, each with a public description in Xen's sources: `xl`'s header with the
//! domain's configuration (`tools/xl`), libxl's stream of records (`docs/specs/libxl-migration-stream.pandoc`), and in one of them
//! libxc's stream, which holds memory and vCPUs (`docs/specs/libxc-migration-stream.pandoc`, version 3, and 2 for reading).
//!
//! microhv adds one record, with the bit that lets Xen's tools skip it: a hash over everything before it. A stream that has one is
//! refused unless all are right and one stands right before the end.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod contexts;
pub mod error;
pub mod format;
pub mod io;
mod order;
mod part;
pub mod read;
pub mod tables;
#[cfg(test)]
mod tests;
pub mod write;

pub use error::{Place, StreamError};
pub use io::{IoFailure, Sink, Source};
pub use part::VcpuPart;
pub use read::{Reader, Record};
pub use write::Writer;
