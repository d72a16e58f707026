//! A domain in its user's words, for messages.

use alloc::format;
use alloc::string::String;

use ring_abi::types::DomId;

use super::{Client, Nodes};

/// `d3 web`: the domain's number, as before its lines on the console, and its name if it has one.
pub fn domain_named(client: &Client, domain: DomId) -> String {
    match client.read_str(&format!("/local/domain/{domain}/name")) {
        Ok(name) => format!("d{domain} {name}"),
        Err(_) => format!("d{domain}"),
    }
}
