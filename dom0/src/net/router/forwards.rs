//! Ports of the uplink at which the world reaches guests.

use core::net::Ipv4Addr;

use super::flows::{End, Owner, TRANSLATED_PORTS};
use super::{Forward, Router};
use crate::net::headers::protocol;

/// Most forwards.
const MAX_FORWARDS: usize = 1024;

impl Router {
    /// Adds a forward and gives its number.
    ///
    /// # Errors
    /// The port at the uplink is taken by another forward, or belongs to translated connections.
    pub fn add_forward(&mut self, forward: Forward) -> Result<u16, &'static str> {
        if forward.port == 0 || forward.to_port == 0 {
            return Err("port 0 is no port");
        }
        if TRANSLATED_PORTS.contains(&forward.port) {
            return Err("ports from 32768 on are for the guests' own connections");
        }
        if self.number_of(forward.protocol, forward.port).is_some() {
            return Err("the port is forwarded already");
        }
        let free = self.forwards.iter().position(Option::is_none).unwrap_or(self.forwards.len());
        if free == MAX_FORWARDS {
            return Err("there are as many forwards as there can be");
        }
        match self.forwards.get_mut(free) {
            Some(place) => *place = Some(forward),
            None => self.forwards.push(Some(forward)),
        }
        Ok(free as u16)
    }

    /// Takes a forward away, and ends the connections by the forward. False: there is none at the port.
    #[must_use]
    pub fn remove_forward(&mut self, protocol: u8, port: u16) -> bool {
        let Some(number) = self.number_of(protocol, port) else { return false };
        self.forwards[usize::from(number)] = None;
        self.flows.forget(Owner::Forward(number));
        true
    }

    /// All forwards.
    pub fn forwards(&self) -> impl Iterator<Item = &Forward> {
        self.forwards.iter().flatten()
    }

    /// The forward of that number.
    pub fn forward(&self, number: u16) -> Option<&Forward> {
        self.forwards.get(usize::from(number))?.as_ref()
    }

    /// Where the guest of each forward is now: `address` gives the address of a guest by name or address.
    pub fn resolve_forwards(&mut self, address: impl Fn(&str) -> Option<Ipv4Addr>) {
        for forward in self.forwards.iter_mut().flatten() {
            forward.to = address(&forward.guest);
        }
    }

    /// Whether connections to TCP port `port` go to a guest.
    pub fn is_forwarded(&self, port: u16) -> bool {
        self.number_of(protocol::TCP, port).is_some()
    }

    fn number_of(&self, protocol: u8, port: u16) -> Option<u16> {
        let is_it = |forward: &Forward| (forward.protocol, forward.port) == (protocol, port);
        let at = self.forwards.iter().position(|forward| forward.as_ref().is_some_and(is_it))?;
        Some(at as u16)
    }

    /// The forward for connections to `port`: the forward's number, and the guest's end, if the guest is there.
    pub(super) fn forward_of(&self, protocol: u8, port: u16) -> Option<(u16, End)> {
        let number = self.number_of(protocol, port)?;
        let forward = self.forward(number)?;
        Some((number, End { address: forward.to?, port: forward.to_port }))
    }
}
