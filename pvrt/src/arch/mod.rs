//! The parts that only an image has: entry, trap stubs, memory functions, the panic handler.

pub(crate) mod entry;
mod memory;
pub(crate) mod panic;
pub(crate) mod traps;
