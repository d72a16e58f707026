//! xenstored: the store that domains and the toolstack share.
//!
//! [`Xenstore`] is the handle that dom0's parts hold: each part makes a [`Client`] of the handle and calls the methods
//! of [`Nodes`]. Domains speak the wire protocol on their rings, which [`serve_rings`] serves. Only `rings` touches the
//! machine:
//!
//! - `store`, `transaction`, `view`: nodes, what a transaction sees of nodes, the operations on both;
//! - `watch`, `connection`, `server`: clients, and the events that clients get; `deferred`: the work that requests
//!   leave;
//! - `stream`, `request`: messages, in pieces and whole; `control`: what dom0 asks of the daemon itself;
//! - `price`, `quota`: what all this takes of dom0's memory, and how much a domain may take.
//!
//! Behaviour follows Xen's `docs/misc/xenstore.txt`; where that document is silent, xenstored of Xen 4.17.
#![forbid(unsafe_code)]

mod burial;
mod client;
mod connection;
mod control;
mod deferred;
mod domains;
mod error;
#[cfg(test)]
mod looks;
mod named;
mod path;
mod perms;
mod price;
mod quota;
mod request;
mod rings;
mod serve;
mod server;
mod store;
pub mod stream;
mod transaction;
mod view;
mod watch;

#[cfg(test)]
mod tests;

pub use client::{Client, Nodes, Transaction, Xenstore};
pub use connection::{ConnId, Failure};
pub use error::XsError;
pub use named::domain_named;
pub use path::{Path, set_hash_seed};
pub use perms::{Access, Perm, Perms};
pub use quota::{DomainFigures, Figures, Quotas};
pub use rings::serve_rings;
pub use serve::{Exchange, Ring};
pub use server::{Effect, Server, WatchEvent};
pub use watch::{INTRODUCE_DOMAIN, RELEASE_DOMAIN};
