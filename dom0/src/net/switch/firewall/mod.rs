//! A firewall for each vif (I43): rules for what begins, and a memory of what goes on.
//!
//! The first rule that fits a packet decides, or else the direction's default. What was let pass goes on, in both
//! directions, without a look at the rules, and so do ICMP errors about it: `flows` remembers, within a budget. Where
//! nothing can be refused in either direction, nothing is remembered.
//!
//! - [`rules`]: rules, as a person writes them;
//! - `flows`: what has begun and goes on;
//! - `fragments`: later fragments have no ports; they pass if the first fragment did.
//!
//! ARP, neighbour discovery and multicast listeners pass in any case, since without them there is no network; what they may
//! say is `guard`'s matter. Nothing else than ARP and IP passes: behind another protocol there may be any packet.

mod flows;
mod fragments;
pub mod rules;
#[cfg(test)]
mod tests;

use self::flows::{Flows, Key};
use self::fragments::Fragments;
pub use self::rules::{Action, Direction, MAX_RULES, Rule, Rules};
use super::Reason;
use super::guard::is_whole;
use super::hash::Seed;
use crate::net::headers::{Fragment, Head, Network, Transport};

/// Bytes of heap that a vif's firewall keeps at most, whatever is sent.
pub const BYTES_PER_FIREWALL: usize = flows::BYTES + fragments::BYTES + rules::MAX_RULES * size_of::<Rule>();

/// Rules, and what they let pass.
pub(super) struct Firewall {
    rules: Rules,
    /// Whether any packet to the guest, and any from the guest, can be refused.
    refuses: [bool; 2],
    flows: Flows,
    fragments: Fragments,
}

impl Firewall {
    pub(super) fn new(rules: Rules, seed: Seed) -> Firewall {
        let refuses = [Direction::In, Direction::Out].map(|direction| rules.may_refuse(direction));
        Firewall { rules, refuses, flows: Flows::new(seed), fragments: Fragments::new(seed) }
    }

    pub(super) fn rules(&self) -> &Rules {
        &self.rules
    }

    /// Flows that go on.
    pub(super) fn flows(&self, now_s: u32) -> usize {
        self.flows.count(now_s)
    }

    fn refuses(&self, direction: Direction) -> bool {
        self.refuses[direction as usize]
    }

    /// Lets a packet pass in that direction.
    ///
    /// # Errors
    /// Why the packet is dropped.
    #[inline]
    pub(super) fn check(&mut self, direction: Direction, head: &Head<'_>, now_s: u32) -> Result<(), Reason> {
        if self.refuses(direction) {
            return self.judge(direction, head, now_s);
        }
        // The packet passes, and its answers may.
        if self.refuses(direction.other())
            && let Some(ends) = head.ends()
        {
            self.remember(direction, head, Key::of(direction, ends), now_s);
        }
        Ok(())
    }

    fn judge(&mut self, direction: Direction, head: &Head<'_>, now_s: u32) -> Result<(), Reason> {
        match head.network() {
            Network::Ipv4 | Network::Ipv6 => {}
            Network::Arp => return Ok(()),
            Network::Other => return Err(Reason::NotIp),
            Network::Malformed => return Err(Reason::Malformed),
        }
        is_whole(head)?;
        if let Fragment::Later(..) = head.fragment() {
            let passes = self.fragments.passed(direction, head, now_s);
            return if passes { Ok(()) } else { Err(Reason::Fragment) };
        }
        let key = Key::of(direction, head.ends().ok_or(Reason::Malformed)?);
        if !self.goes_on(direction, head, &key, now_s) {
            let flow = head.flow().ok_or(Reason::Malformed)?;
            if self.rules.action(direction, &flow) == Action::Drop {
                return Err(match direction {
                    Direction::In => Reason::RuleIn,
                    Direction::Out => Reason::RuleOut,
                });
            }
            self.remember(direction, head, key, now_s);
        }
        if let Fragment::First(_) = head.fragment() {
            self.fragments.pass(direction, head, now_s);
        }
        Ok(())
    }

    /// Whether the packet passes without a look at the rules.
    fn goes_on(&mut self, direction: Direction, head: &Head<'_>, key: &Key, now_s: u32) -> bool {
        if !begins_anew(head) && self.flows.goes_on(key, direction, head.tcp_flags(), now_s) {
            return true;
        }
        if is_neighbourly(head) {
            return true;
        }
        // The packet that an error quotes went the other way, and the error is for its sender.
        let Some(quoted) = head.quoted_flow().filter(|_| !is_redirect(head)) else { return false };
        let is_for_sender = head.addresses().is_some_and(|(_, to)| to == quoted.source);
        is_for_sender && self.flows.has(&Key::of(direction.other(), quoted.ends()), now_s)
    }

    /// Notes a packet that passes by the rules, so that answers pass.
    fn remember(&mut self, direction: Direction, head: &Head<'_>, key: Key, now_s: u32) {
        // Of ICMP only queries have answers.
        if head.icmp().is_some_and(|icmp| !icmp.is_query) {
            return;
        }
        if begins_anew(head) || !self.flows.goes_on(&key, direction, head.tcp_flags(), now_s) {
            self.flows.begin(key, direction, now_s);
        }
    }
}

/// Whether the packet asks for something new, whatever went on between its ends: such a packet answers nothing.
fn begins_anew(head: &Head<'_>) -> bool {
    match head.transport() {
        Transport::Tcp => head.tcp_flags().is_some_and(|flags| flags.syn() && !flags.ack()),
        Transport::Icmp => head.icmp().is_some_and(|icmp| matches!(icmp.kind, 8 | 13 | 15 | 17)),
        Transport::Icmpv6 => head.icmp().is_some_and(|icmp| icmp.kind == 128),
        _ => false,
    }
}

/// Whether the packet is one of neighbour discovery straight from a neighbour, other than a redirect, or one about the groups
/// that somebody wants.
fn is_neighbourly(head: &Head<'_>) -> bool {
    if head.transport() != Transport::Icmpv6 {
        return false;
    }
    match head.icmp().map(|icmp| icmp.kind) {
        Some(133..=136) => head.ipv6().is_some_and(|header| header.hop_limit == 255),
        Some(130..=132 | 143) => true,
        _ => false,
    }
}

/// Whether an ICMP message names another router: no error of a flow's.
fn is_redirect(head: &Head<'_>) -> bool {
    head.transport() == Transport::Icmp && head.icmp().is_some_and(|icmp| icmp.kind == 5)
}
