//! Which station has which IPv4 address, on each network: what ARP is for.
//!
//! Source: RFC 826; RFC 1122, section 2.3.2.

use alloc::collections::BTreeMap;
use core::net::Ipv4Addr;

use super::{BridgeId, PortId};
use crate::net::MacAddr;

/// Most addresses that the stations behind one port are known by.
pub const PER_PORT: usize = 16;
/// The same on an uplink, where one port has all stations behind.
pub const PER_UPLINK: usize = 256;
/// Most addresses that are asked for at a time on one network, the way to the world not counted.
pub const MAX_ASKED: usize = 64;

const SECOND: u64 = 1_000_000_000;
/// How long a station is known without a word from the station.
const KNOWN_NS: u64 = 300 * SECOND;
/// How long before that the station is asked again, so that no packet waits.
const REFRESH_NS: u64 = 30 * SECOND;
/// The least time between two questions for one address.
const ASK_NS: u64 = SECOND;

struct Known {
    mac: MacAddr,
    port: PortId,
    until_ns: u64,
}

/// What is known of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// The station; `None`: not known.
    pub mac: Option<MacAddr>,
    /// The network shall be asked now.
    pub ask: bool,
}

/// The stations of all networks.
#[derive(Default)]
pub struct Neighbours {
    known: BTreeMap<(BridgeId, Ipv4Addr), Known>,
    /// When each address was last asked for.
    asked: BTreeMap<(BridgeId, Ipv4Addr), u64>,
    /// The uplinks, and which station there is the way to the world. All guests need that one, so that no others drive it out.
    uplinks: BTreeMap<BridgeId, Option<Ipv4Addr>>,
}

impl Neighbours {
    /// A network is an uplink, where `way` leads to the world.
    pub fn set_uplink(&mut self, network: BridgeId, way: Option<Ipv4Addr>) {
        self.uplinks.insert(network, way);
    }

    fn is_way(&self, (network, address): &(BridgeId, Ipv4Addr)) -> bool {
        self.uplinks.get(network) == Some(&Some(*address))
    }

    /// Whether a word about the address is of use: the address is known already, or was asked for.
    pub fn is_wanted(&self, network: BridgeId, address: Ipv4Addr) -> bool {
        let key = (network, address);
        self.known.contains_key(&key) || self.asked.contains_key(&key)
    }

    /// Station `mac` behind `port` says that it has `address`, or a server gave the station the address.
    ///
    /// An address moves to another port only when the first has been silent, or when the network was asked for the
    /// address: else any guest could take over another's address by a word.
    pub fn learn(&mut self, now_ns: u64, network: BridgeId, port: PortId, address: Ipv4Addr, mac: MacAddr) {
        let key = (network, address);
        let was_asked = self.asked.remove(&key).is_some();
        if let Some(known) = self.known.get_mut(&key) {
            if known.port == port || was_asked || known.until_ns <= now_ns + REFRESH_NS {
                *known = Known { mac, port, until_ns: now_ns + KNOWN_NS };
            }
            return;
        }
        let of_port = |(_, known): &(&(BridgeId, Ipv4Addr), &Known)| known.port == port;
        let most = if self.uplinks.contains_key(&network) { PER_UPLINK } else { PER_PORT };
        if self.known.iter().filter(of_port).count() >= most {
            let others = self.known.iter().filter(of_port).filter(|(key, _)| !self.is_way(key));
            let oldest = others.min_by_key(|(_, known)| known.until_ns);
            let Some(oldest) = oldest.map(|(key, _)| *key) else { return };
            self.known.remove(&oldest);
        }
        self.known.insert(key, Known { mac, port, until_ns: now_ns + KNOWN_NS });
    }

    /// The address is now the guest's behind `port`: another's word of it counts no more.
    pub fn assign(&mut self, network: BridgeId, port: PortId, address: Ipv4Addr) {
        self.known.retain(|key, known| *key != (network, address) || known.port == port);
    }

    /// The addresses that the stations behind one port are known by.
    pub fn behind(&self, port: PortId) -> impl Iterator<Item = Ipv4Addr> + '_ {
        self.known.iter().filter(move |(_, known)| known.port == port).map(|((_, address), _)| *address)
    }

    /// Looks for the station with `address`.
    pub fn find(&mut self, now_ns: u64, network: BridgeId, address: Ipv4Addr) -> Found {
        let key = (network, address);
        let known = self.known.get(&key).filter(|known| known.until_ns > now_ns);
        let mac = known.map(|known| known.mac);
        if known.is_some_and(|known| known.until_ns > now_ns + REFRESH_NS) {
            return Found { mac, ask: false };
        }
        let recently = self.asked.get(&key).is_some_and(|asked| now_ns < asked + ASK_NS);
        if recently {
            return Found { mac, ask: false };
        }
        if !self.is_way(&key) && !self.asked.contains_key(&key) && self.asked_on(network) >= MAX_ASKED {
            self.asked.retain(|_, asked| now_ns < *asked + ASK_NS);
            if self.asked_on(network) >= MAX_ASKED {
                return Found { mac, ask: false };
            }
        }
        self.asked.insert(key, now_ns);
        Found { mac, ask: true }
    }

    /// Number of addresses that were asked for on a network.
    fn asked_on(&self, network: BridgeId) -> usize {
        self.asked.keys().filter(|key| key.0 == network && !self.is_way(key)).count()
    }

    /// The station with `address`, if it is known.
    pub fn station(&self, now_ns: u64, network: BridgeId, address: Ipv4Addr) -> Option<MacAddr> {
        let known = self.known.get(&(network, address)).filter(|known| known.until_ns > now_ns);
        known.map(|known| known.mac)
    }

    /// The port behind which the station with `address` is, if it is known.
    pub fn port(&self, now_ns: u64, network: BridgeId, address: Ipv4Addr) -> Option<PortId> {
        let known = self.known.get(&(network, address)).filter(|known| known.until_ns > now_ns);
        known.map(|known| known.port)
    }

    /// The port is gone, and its stations with it.
    pub fn forget(&mut self, port: PortId) {
        self.known.retain(|_, known| known.port != port);
    }

    /// All that is known, by network and address.
    pub fn list(&self, now_ns: u64) -> impl Iterator<Item = (BridgeId, Ipv4Addr, MacAddr, PortId)> + '_ {
        let known = move |(_, known): &(&(BridgeId, Ipv4Addr), &Known)| known.until_ns > now_ns;
        self.known
            .iter()
            .filter(known)
            .map(|(&(network, address), known)| (network, address, known.mac, known.port))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NET: BridgeId = BridgeId::testing(0);
    const A: PortId = PortId::testing(1);
    const B: PortId = PortId::testing(2);

    fn ip(last: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 88, 0, last)
    }

    fn mac(last: u8) -> MacAddr {
        MacAddr([2, 0, 0, 0, 0, last])
    }

    const UNKNOWN: Found = Found { mac: None, ask: false };

    #[test]
    fn a_station_is_asked_for_once_a_second_until_it_answers() {
        let mut neighbours = Neighbours::default();
        assert_eq!(neighbours.find(0, NET, ip(1)), Found { ask: true, ..UNKNOWN });
        assert_eq!(neighbours.find(ASK_NS - 1, NET, ip(1)), UNKNOWN);
        assert_eq!(neighbours.find(ASK_NS, NET, ip(1)), Found { ask: true, ..UNKNOWN });
        neighbours.learn(ASK_NS, NET, A, ip(1), mac(1));
        let found = Found { mac: Some(mac(1)), ask: false };
        assert_eq!(neighbours.find(ASK_NS, NET, ip(1)), found);
        assert_eq!(
            neighbours.find(ASK_NS, BridgeId::testing(1), ip(1)),
            Found { ask: true, ..UNKNOWN },
            "another network"
        );
        // Asked again before it is forgotten, and then forgotten.
        let end = ASK_NS + KNOWN_NS;
        assert_eq!(neighbours.find(end - REFRESH_NS, NET, ip(1)), Found { ask: true, ..found });
        assert_eq!(neighbours.find(end - 1, NET, ip(1)), Found { ask: true, ..found });
        assert_eq!(neighbours.find(end, NET, ip(1)), UNKNOWN);
    }

    #[test]
    fn nobody_takes_anothers_address_by_a_word() {
        let mut neighbours = Neighbours::default();
        neighbours.learn(0, NET, A, ip(1), mac(1));
        neighbours.learn(1, NET, B, ip(1), mac(2));
        assert_eq!(neighbours.find(1, NET, ip(1)).mac, Some(mac(1)));
        // The station's own port may say what it likes.
        neighbours.learn(1, NET, A, ip(1), mac(3));
        assert_eq!(neighbours.find(1, NET, ip(1)).mac, Some(mac(3)));
        // After a silence whoever answers the question has the address.
        let late = 1 + KNOWN_NS - REFRESH_NS;
        assert!(neighbours.find(late, NET, ip(1)).ask);
        neighbours.learn(late, NET, B, ip(1), mac(2));
        assert_eq!(neighbours.find(late, NET, ip(1)).mac, Some(mac(2)));
        neighbours.forget(A);
        assert_eq!(neighbours.list(late).count(), 1);
        neighbours.forget(B);
        assert_eq!(neighbours.list(late).count(), 0);
    }

    #[test]
    fn tables_stay_small() {
        let mut neighbours = Neighbours::default();
        neighbours.learn(0, NET, B, ip(200), mac(200));
        for last in 0..100 {
            neighbours.learn(u64::from(last) + 1, NET, A, ip(last), mac(last));
        }
        assert_eq!(neighbours.list(0).count(), PER_PORT + 1);
        assert_eq!(neighbours.find(100, NET, ip(200)).mac, Some(mac(200)));
        assert_eq!(neighbours.find(100, NET, ip(99)).mac, Some(mac(99)), "the newest stay");
        let asked = (0..200).filter(|last| neighbours.find(100, BridgeId::testing(1), ip(*last)).ask).count();
        assert_eq!(asked, MAX_ASKED);
        assert!(neighbours.find(100, NET, ip(201)).ask, "questions on one network are not another's");
        assert!(neighbours.find(100 + ASK_NS, BridgeId::testing(1), ip(250)).ask, "the questions grow old");
    }
}
