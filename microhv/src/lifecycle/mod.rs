//! How domains begin, stop and end. These operations reach into every room below: memory, event channels, grants, timers.
//!
//! - `making`: a domain and its vCPUs, in pieces; `context`: a vCPU's whole state
//! - `stop`: shutdown and crash
//! - `kill`, `ending`: what a domain has is given back, then what is left of the domain itself
//! - `unfinished`: those that are neither there nor gone

mod context;
mod ending;
mod kill;
mod making;
mod stop;
mod unfinished;

pub use unfinished::Unfinished;
