//! The one machine there is.

pub(crate) mod x86_64;
