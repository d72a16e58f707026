//! The multicast addresses that a frontend wants.

use alloc::vec::Vec;

/// Most addresses of one frontend, as many as Linux's xen-netback keeps.
pub const MAX_MULTICAST: usize = 64;

/// An Ethernet address.
pub type MacAddress = [u8; 6];

/// What a frontend says of the multicast packets that the frontend wants. The frontend names addresses whether or not
/// the frontend has asked for the filter; the filter keeps packets away only if the frontend has asked.
#[derive(Debug, Default)]
pub struct MulticastFilter {
    asked: bool,
    addresses: Vec<MacAddress>,
}

impl MulticastFilter {
    /// The frontend's `request-multicast-control`.
    pub fn ask(&mut self, asked: bool) {
        self.asked = asked;
    }

    /// Adds an address; false: there is no room. An address may be added twice, and is then removed twice.
    pub(super) fn add(&mut self, address: MacAddress) -> bool {
        if self.addresses.len() == MAX_MULTICAST || self.addresses.try_reserve(1).is_err() {
            return false;
        }
        self.addresses.push(address);
        true
    }

    /// Removes an address, if the filter has the address.
    pub(super) fn remove(&mut self, address: MacAddress) {
        if let Some(at) = self.addresses.iter().position(|known| *known == address) {
            self.addresses.swap_remove(at);
        }
    }

    /// Whether the frontend wants packets for `destination`. Broadcast and addresses of one station always pass.
    #[must_use]
    pub fn wants(&self, destination: MacAddress) -> bool {
        let multicast = destination[0] & 1 != 0 && destination != [0xff; 6];
        !self.asked || !multicast || self.addresses.contains(&destination)
    }
}
