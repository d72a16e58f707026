//! The DHCP server of one network: which station has which address.
//!
//! The server is pure: a message in, a message out. An address belongs to a port and a station on the port; a port has few
//! addresses, so that no guest takes them all.
//!
//! Source: RFC 2131, RFC 2132.

use alloc::collections::BTreeMap;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::net::Ipv4Addr;

use smoltcp::wire::{DhcpMessageType as Kind, DhcpOption, DhcpPacket, DhcpRepr, EthernetAddress, Ipv4Cidr};

use super::PortId;

/// The port of servers.
pub const SERVER_PORT: u16 = 67;
/// The port of clients.
pub const CLIENT_PORT: u16 = 68;
/// Most addresses that the stations behind one port have at a time.
pub const ADDRESSES_PER_PORT: usize = 4;

/// How long a station has an address.
const LEASE_S: u32 = 3600;
/// How long an offer is kept for a station that has not asked for it yet.
const OFFER_S: u32 = 30;
/// How long an address that somebody else seems to use is left alone.
const DECLINED_S: u32 = 600;
/// Longest name of a station: one label of a domain name.
const NAME_MAX: usize = 63;
/// Bytes that every client takes (RFC 1542, section 2.1): a BOOTP message had as many.
const BOOTP_BYTES: usize = 300;

const OPTION_HOST_NAME: u8 = 12;
const OPTION_DOMAIN_NAME: u8 = 15;
const OPTION_MTU: u8 = 26;
const OPTION_BROADCAST: u8 = 28;

fn ns(seconds: u32) -> u64 {
    u64::from(seconds) * 1_000_000_000
}

/// What the server gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    /// The server's own address, which is the gateway and the name server too, and the network's prefix.
    pub server: Ipv4Cidr,
    /// First address to give.
    pub first: Ipv4Addr,
    /// Last address to give.
    pub last: Ipv4Addr,
    /// The network's MTU.
    pub mtu: u16,
    /// The domain in which the stations' names are.
    pub domain: String,
}

impl Pool {
    fn has(&self, address: Ipv4Addr) -> bool {
        (self.first..=self.last).contains(&address) && address != self.server.address()
    }
}

/// What an address is to its station.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Offered,
    Leased,
    /// The station found somebody else at the address.
    Declined,
}

/// An address that is taken.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    mac: EthernetAddress,
    port: PortId,
    name: Option<String>,
    state: State,
    until_ns: u64,
}

impl Entry {
    fn holds(&self, now_ns: u64) -> bool {
        self.state == State::Leased && self.until_ns > now_ns
    }
}

/// A lease, as an administrator sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The address.
    pub address: Ipv4Addr,
    /// The station.
    pub mac: EthernetAddress,
    /// The port behind which the station is.
    pub port: PortId,
    /// What the station calls itself, in lower case.
    pub name: Option<String>,
    /// When the lease ends: system time.
    pub until_ns: u64,
}

/// What the server has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Offers and acknowledgements.
    pub answered: u64,
    /// Refusals.
    pub refused: u64,
    /// Requests for which there was no address left, for the port or at all.
    pub exhausted: u64,
    /// Messages that are no DHCP, or another station's.
    pub malformed: u64,
}

/// An answer, to be sent from the server's address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The UDP payload.
    pub message: Vec<u8>,
    /// The station.
    pub mac: EthernetAddress,
    /// The station's address; `None`: the station has none, so the answer goes to all.
    pub address: Option<Ipv4Addr>,
    /// The address that the station has from now on, and had not before.
    pub newly: Option<Ipv4Addr>,
}

/// The server of one network.
pub struct Server {
    pool: Pool,
    /// Addresses that configurations set aside for a port, within the network.
    fixed: BTreeMap<PortId, Ipv4Addr>,
    taken: BTreeMap<Ipv4Addr, Entry>,
    counters: Counters,
}

impl Server {
    /// A server that has given nothing.
    pub fn new(pool: Pool) -> Self {
        Self { pool, fixed: BTreeMap::new(), taken: BTreeMap::new(), counters: Counters::default() }
    }

    /// What the server gives.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// What the server has done.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// From now on the port's station gets this address and no other, as its configuration says.
    pub fn fix(&mut self, port: PortId, address: Ipv4Addr) {
        self.fixed.insert(port, address);
    }

    /// The port is gone, and what it had is free.
    pub fn forget(&mut self, port: PortId) {
        self.fixed.remove(&port);
        self.taken.retain(|_, entry| entry.port != port);
    }

    /// The leases that hold, by address.
    pub fn leases(&self, now_ns: u64) -> Vec<Lease> {
        self.taken
            .iter()
            .filter(|(_, entry)| entry.holds(now_ns))
            .map(|(address, entry)| Lease {
                address: *address,
                mac: entry.mac,
                port: entry.port,
                name: entry.name.clone(),
                until_ns: entry.until_ns,
            })
            .collect()
    }

    /// The addresses that stations behind `port` have, or had last.
    pub fn addresses(&self, port: PortId) -> impl Iterator<Item = Ipv4Addr> + '_ {
        self.taken.iter().filter(move |(_, entry)| entry.port == port).map(|(address, _)| *address)
    }

    /// The first address that a station behind `port` has.
    pub fn address_behind(&self, now_ns: u64, port: PortId) -> Option<Ipv4Addr> {
        let mut held = self.taken.iter().filter(|(_, entry)| entry.port == port && entry.holds(now_ns));
        held.next().map(|(address, _)| *address)
    }

    /// The port that has `address` by a lease.
    pub fn holder(&self, now_ns: u64, address: Ipv4Addr) -> Option<PortId> {
        self.taken.get(&address).filter(|entry| entry.holds(now_ns)).map(|entry| entry.port)
    }

    /// The port that `address` belongs to, by its configuration or a lease, if that is another than `port`.
    pub fn other_owner(&self, now_ns: u64, port: PortId, address: Ipv4Addr) -> Option<PortId> {
        if self.fixed.get(&port) == Some(&address) {
            return None;
        }
        let owner = self
            .holder(now_ns, address)
            .or_else(|| self.fixed.iter().find(|(_, fixed)| **fixed == address).map(|(owner, _)| *owner))?;
        (owner != port).then_some(owner)
    }

    /// The address that station `mac` behind `port` has.
    pub fn address_of(&self, now_ns: u64, port: PortId, mac: EthernetAddress) -> Option<Ipv4Addr> {
        let is_its = |entry: &Entry| (entry.port, entry.mac) == (port, mac) && entry.holds(now_ns);
        self.taken.iter().find(|(_, entry)| is_its(entry)).map(|(address, _)| *address)
    }

    /// Answers the message that station `mac` behind `port` has sent.
    pub fn answer(
        &mut self,
        now_ns: u64,
        port: PortId,
        mac: EthernetAddress,
        message: &[u8],
    ) -> Option<Answer> {
        let Some(mut message) = parse(message).filter(|message| message.mac == mac) else {
            self.counters.malformed += 1;
            return None;
        };
        let station = Station { port, mac, name: message.name.take() };
        match message.kind {
            Kind::Discover => self.offer(now_ns, station, &message),
            Kind::Request => self.request(now_ns, station, &message),
            Kind::Decline => {
                if let Some(entry) = self.of(&station, message.wanted) {
                    entry.state = State::Declined;
                    entry.until_ns = now_ns + ns(DECLINED_S);
                }
                None
            }
            Kind::Release => {
                if self.of(&station, Some(message.client)).is_some() {
                    self.taken.remove(&message.client);
                }
                None
            }
            Kind::Inform => {
                self.counters.answered += 1;
                Some(self.message(Kind::Ack, &message, None, Some(message.client)))
            }
            // A server's messages.
            _ => {
                self.counters.malformed += 1;
                None
            }
        }
    }

    /// The entry of `address`, if the address is the station's.
    fn of(&mut self, station: &Station, address: Option<Ipv4Addr>) -> Option<&mut Entry> {
        self.taken.get_mut(&address?).filter(|entry| station.owns(entry))
    }

    fn offer(&mut self, now_ns: u64, station: Station, message: &Message) -> Option<Answer> {
        let Some(address) = self.choose(now_ns, &station, message.wanted) else {
            self.counters.exhausted += 1;
            return None;
        };
        self.take(now_ns, address, station, State::Offered);
        self.counters.answered += 1;
        Some(self.message(Kind::Offer, message, Some(address), None))
    }

    fn request(&mut self, now_ns: u64, station: Station, message: &Message) -> Option<Answer> {
        if message.server.is_some_and(|server| server != self.pool.server.address()) {
            // The station took another server's offer.
            self.taken.retain(|_, entry| !(station.owns(entry) && entry.state == State::Offered));
            return None;
        }
        // A station that has an address names it as its own; another asks for one.
        let renews = !message.client.is_unspecified();
        let wanted = if renews { Some(message.client) } else { message.wanted };
        let given = wanted.filter(|address| self.choose(now_ns, &station, wanted) == Some(*address));
        let Some(address) = given else {
            self.counters.refused += 1;
            return Some(self.message(Kind::Nak, message, None, None));
        };
        // While a lease was over, others might speak from the address.
        let leased = self.of(&station, given).is_some_and(|entry| entry.holds(now_ns));
        let had = leased || self.fixed.get(&station.port) == Some(&address);
        self.take(now_ns, address, station, State::Leased);
        self.counters.answered += 1;
        let answer = self.message(Kind::Ack, message, Some(address), renews.then_some(address));
        Some(Answer { newly: (!had).then_some(address), ..answer })
    }

    /// The address that the station may have: the fixed one, the one that it has, the one that it wants, or a free one.
    fn choose(&self, now_ns: u64, station: &Station, wanted: Option<Ipv4Addr>) -> Option<Ipv4Addr> {
        if let Some(fixed) = self.fixed.get(&station.port) {
            // Another station behind the same port must not get the address while the first has it.
            let free =
                self.taken.get(fixed).is_none_or(|entry| station.owns(entry) || entry.until_ns <= now_ns);
            return free.then_some(*fixed);
        }
        let own = |(address, entry): (&Ipv4Addr, &Entry)| {
            (station.owns(entry) && entry.state != State::Declined).then_some(*address)
        };
        if let Some(address) = self.taken.iter().find_map(own) {
            return Some(address);
        }
        let used = |entry: &&Entry| entry.port == station.port && entry.until_ns > now_ns;
        if self.taken.values().filter(used).count() >= ADDRESSES_PER_PORT {
            return None;
        }
        let free = |address: Ipv4Addr| {
            self.pool.has(address)
                && self.taken.get(&address).is_none_or(|entry| entry.until_ns <= now_ns)
                && !self.fixed.values().any(|fixed| *fixed == address)
        };
        if let Some(wanted) = wanted.filter(|address| free(*address)) {
            return Some(wanted);
        }
        // An address that nobody had yet is better than one of a station that may come back.
        let mut all = (self.pool.first.to_bits()..=self.pool.last.to_bits()).map(Ipv4Addr::from_bits);
        let unused = all.clone().find(|address| free(*address) && !self.taken.contains_key(address));
        unused.or_else(|| all.find(|address| free(*address)))
    }

    fn take(&mut self, now_ns: u64, address: Ipv4Addr, station: Station, state: State) {
        let seconds = if state == State::Leased { LEASE_S } else { OFFER_S };
        let mut until_ns = now_ns + ns(seconds);
        let mut state = state;
        if let Some(entry) = self.taken.get(&address)
            && station.owns(entry)
            && entry.holds(now_ns)
        {
            // A station that has the address and asks for an offer keeps what it has.
            until_ns = until_ns.max(entry.until_ns);
            state = State::Leased;
        }
        let Station { port, mac, name } = station;
        self.taken.insert(address, Entry { mac, port, name, state, until_ns });
    }

    /// A message to the station that sent `request`, which gives `address`. `reach`: the address that the station has
    /// already.
    fn message(
        &self,
        kind: Kind,
        request: &Message,
        address: Option<Ipv4Addr>,
        reach: Option<Ipv4Addr>,
    ) -> Answer {
        let server = self.pool.server.address();
        let mtu = self.pool.mtu.to_be_bytes();
        let broadcast = self.pool.server.broadcast().unwrap_or(Ipv4Addr::BROADCAST).octets();
        let options = [
            DhcpOption { kind: OPTION_DOMAIN_NAME, data: self.pool.domain.as_bytes() },
            DhcpOption { kind: OPTION_MTU, data: &mtu },
            DhcpOption { kind: OPTION_BROADCAST, data: &broadcast },
        ];
        let refused = kind == Kind::Nak;
        let lease = address.map(|_| LEASE_S);
        let repr = DhcpRepr {
            message_type: kind,
            transaction_id: request.transaction,
            secs: 0,
            client_hardware_address: request.mac,
            client_ip: if refused { Ipv4Addr::UNSPECIFIED } else { request.client },
            your_ip: address.unwrap_or(Ipv4Addr::UNSPECIFIED),
            server_ip: Ipv4Addr::UNSPECIFIED,
            router: (!refused).then_some(server),
            subnet_mask: (!refused).then(|| self.pool.server.netmask()),
            relay_agent_ip: Ipv4Addr::UNSPECIFIED,
            broadcast: request.broadcast,
            requested_ip: None,
            client_identifier: None,
            server_identifier: Some(server),
            parameter_request_list: None,
            dns_servers: (!refused).then(|| [server].into_iter().collect()),
            max_size: None,
            lease_duration: lease,
            // Without these a client asks again after half of the time, and everybody after seven eighths.
            renew_duration: None,
            rebind_duration: None,
            additional_options: if refused { &[] } else { &options },
        };
        let len = repr.buffer_len();
        let mut message = alloc::vec![0; len.max(BOOTP_BYTES)];
        // The buffer has the length that the message says, so this does not fail.
        let emitted = repr.emit(&mut DhcpPacket::new_unchecked(&mut message[..len]));
        debug_assert!(emitted.is_ok());
        // A station without an address may still take a packet to it, unless the station says otherwise.
        let to = if refused || request.broadcast { None } else { reach.or(address) };
        Answer { message, mac: request.mac, address: to, newly: None }
    }
}

/// The station that asks.
struct Station {
    port: PortId,
    mac: EthernetAddress,
    name: Option<String>,
}

impl Station {
    fn owns(&self, entry: &Entry) -> bool {
        entry.port == self.port && entry.mac == self.mac
    }
}

/// A client's message.
struct Message {
    kind: Kind,
    transaction: u32,
    mac: EthernetAddress,
    /// The client's address, if the client has one.
    client: Ipv4Addr,
    wanted: Option<Ipv4Addr>,
    server: Option<Ipv4Addr>,
    broadcast: bool,
    /// What the client calls itself, if that is a name.
    name: Option<String>,
}

fn parse(message: &[u8]) -> Option<Message> {
    let packet = DhcpPacket::new_checked(message).ok()?;
    let name = packet.options().find(|option| option.kind == OPTION_HOST_NAME);
    let name = name.and_then(|option| core::str::from_utf8(option.data).ok()).and_then(label);
    let repr = DhcpRepr::parse(&packet).ok()?;
    // A message by way of a relay comes from another network, and there are none.
    repr.relay_agent_ip.is_unspecified().then_some(Message {
        kind: repr.message_type,
        transaction: repr.transaction_id,
        mac: repr.client_hardware_address,
        client: repr.client_ip,
        wanted: repr.requested_ip,
        server: repr.server_identifier,
        broadcast: repr.broadcast,
        name,
    })
}

/// The name in lower case, if it can stand in a domain name (RFC 952 and 1123).
pub(super) fn label(name: &str) -> Option<String> {
    let name = name.split('.').next()?;
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    let fits = (1..=NAME_MAX).contains(&name.len()) && name.bytes().all(allowed) && !name.starts_with('-');
    fits.then(|| name.to_string().to_ascii_lowercase())
}

#[cfg(test)]
mod tests;
