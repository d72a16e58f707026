//! Connections between guests and the world, and what translates their addresses.
//!
//! A guest's packets leave with the uplink's address and a port of this table's choice; answers find their way back by the
//! same entry. An administrator's forward lets the world begin a connection. Each owner, a port of the switch or a forward,
//! has a share of the table. An owner whose share is full gives up an entry of its own and never another's: the oldest of those
//! that are over or not answered, and only without such an entry the oldest that lives. When the whole table is full, the
//! owner with the most entries gives up one in the same way, unless the owner that needs one has as many.
//!
//! Source: RFC 3022 (NAT), RFC 4787 and RFC 5382 (what hosts expect of it), RFC 5508 (ICMP).

mod types;

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use core::net::Ipv4Addr;

use hashbrown::HashTable;

pub use self::types::{Direction, End, Flow, NoFlow, Owner};
use self::types::{begins, far_end};

use super::{PortId, Random};
use crate::net::headers::{TcpFlags, protocol};

/// Most connections at a time.
pub const MAX_FLOWS: usize = 4096;
/// Most connections of one owner.
pub const FLOWS_PER_OWNER: usize = 512;
/// Ports and identifiers that translated flows get. Those below are for forwards, and for the control domain itself.
pub const TRANSLATED_PORTS: core::ops::RangeInclusive<u16> = 32_768..=65_535;

/// How often a port is drawn before the table counts as full.
const DRAWS: usize = 32;

const SECOND: u64 = 1_000_000_000;
/// A first packet without an answer; and after the last one.
const BRIEF_NS: u64 = 30 * SECOND;
/// UDP with packets both ways.
const UDP_NS: u64 = 180 * SECOND;
/// TCP between handshake and end: two hours and four minutes (RFC 5382).
const TCP_NS: u64 = 7440 * SECOND;

/// What finds an entry: from within by the guest's end, from outside by the uplink's.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Key {
    protocol: u8,
    near: End,
    far: End,
}

const NONE: u32 = u32::MAX;

struct Entry {
    flow: Flow,
    owner: Owner,
    expires_ns: u64,
    /// A packet has come from each side.
    answered: bool,
    /// Which ends have closed, of TCP: the guest, the other end.
    closed: [bool; 2],
    /// The connection lives: both ends have spoken, and not both have closed.
    lives: bool,
    /// Neighbours in one of the owner's two lists, which begins with the entry that was not used for the longest time.
    older: u32,
    newer: u32,
}

/// A list of entries.
#[derive(Clone, Copy)]
struct List {
    oldest: u32,
    newest: u32,
}

impl List {
    const EMPTY: Self = Self { oldest: NONE, newest: NONE };
}

/// One owner's entries.
#[derive(Clone, Copy)]
struct Share {
    /// Those of connections that do not live, and those that do.
    lists: [List; 2],
    count: u32,
}

impl Share {
    /// The entry that the owner misses least.
    fn first_to_go(&self) -> u32 {
        let [over, living] = self.lists;
        if over.oldest == NONE { living.oldest } else { over.oldest }
    }
}

/// All connections. The table and its hashes take their memory once.
pub struct Flows {
    entries: Box<[Option<Entry>]>,
    free: Vec<u32>,
    from_inside: HashTable<u32>,
    from_outside: HashTable<u32>,
    shares: BTreeMap<Owner, Share>,
    /// The entries by the guests' addresses: a guest that gets an address must not make dom0 look at the whole table.
    addresses: BTreeSet<(Ipv4Addr, u32)>,
    random: Random,
    /// Unknown to guests, so that no guest makes many flows with one hash.
    secret: [u64; 2],
    /// When a full table is swept again: a sweep looks at all entries, and a guest can ask for one with each packet.
    next_sweep_ns: u64,
    /// Entries given up for others.
    evicted: u64,
}

impl Flows {
    /// No connections.
    pub fn new(mut random: Random) -> Self {
        let secret = [random.draw() | 1, random.draw() | 1];
        Self {
            entries: core::iter::repeat_with(|| None).take(MAX_FLOWS).collect(),
            free: (0..MAX_FLOWS as u32).rev().collect(),
            from_inside: HashTable::with_capacity(MAX_FLOWS),
            from_outside: HashTable::with_capacity(MAX_FLOWS),
            shares: BTreeMap::new(),
            addresses: BTreeSet::new(),
            random,
            secret,
            next_sweep_ns: 0,
            evicted: 0,
        }
    }

    /// Number of connections.
    pub fn len(&self) -> usize {
        MAX_FLOWS - self.free.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Entries given up for others.
    pub fn evicted(&self) -> u64 {
        self.evicted
    }

    /// All connections that last, with their owners.
    pub fn list(&self, now_ns: u64) -> impl Iterator<Item = (Flow, Owner, bool)> + '_ {
        let lasts = move |entry: &&Entry| entry.expires_ns > now_ns;
        self.entries.iter().flatten().filter(lasts).map(|entry| (entry.flow, entry.owner, entry.answered))
    }

    /// The connection of a packet that a guest sends; a new one with a port of `address` if there is none.
    ///
    /// # Errors
    /// [`NoFlow`].
    pub fn outbound(
        &mut self,
        now_ns: u64,
        owner: Owner,
        packet: (u8, End, End),
        flags: Option<TcpFlags>,
        address: Ipv4Addr,
    ) -> Result<Flow, NoFlow> {
        let (protocol, inside, remote) = (packet.0, packet.1, far_end(packet.0, packet.2));
        let key = Key { protocol, near: inside, far: remote };
        match self.find(now_ns, Direction::Out, &key) {
            // After the uplink has got another address the old translation leads nowhere.
            Some(at) if self.entry(at).is_some_and(|entry| entry.flow.outside.address == address) => {
                return self.pass(now_ns, at, Direction::Out, flags).ok_or(NoFlow::NotABeginning);
            }
            Some(at) => self.remove(at),
            None => {}
        }
        begins(protocol, flags)?;
        let outside = self.draw(now_ns, protocol, remote, address).ok_or(NoFlow::Exhausted)?;
        self.insert(now_ns, owner, Flow { protocol, inside, remote, outside })
    }

    /// The connection of a packet that comes from the world. `None`: there is none.
    pub fn inbound(
        &mut self,
        now_ns: u64,
        protocol: u8,
        remote: End,
        outside: End,
        flags: Option<TcpFlags>,
    ) -> Option<Flow> {
        let key = Key { protocol, near: outside, far: far_end(protocol, remote) };
        let at = self.find(now_ns, Direction::In, &key)?;
        self.pass(now_ns, at, Direction::In, flags)
    }

    /// Begins a connection that comes by forward `number` to the guest's end `inside`.
    ///
    /// # Errors
    /// [`NoFlow`].
    pub fn forward(
        &mut self,
        now_ns: u64,
        number: u16,
        flow: Flow,
        flags: Option<TcpFlags>,
    ) -> Result<Flow, NoFlow> {
        begins(flow.protocol, flags)?;
        // The guest may speak with the same other end by itself, from the same port: two meanings for one packet.
        if self.find(now_ns, Direction::Out, &flow.inside_key()).is_some() {
            return Err(NoFlow::Exhausted);
        }
        self.insert(now_ns, Owner::Forward(number), flow)
    }

    /// The connection that an ICMP error is about. `packet`: protocol, sender and receiver of the packet that the error
    /// quotes, which went in `direction`.
    pub fn quoted(&self, now_ns: u64, direction: Direction, packet: (u8, End, End)) -> Option<Flow> {
        let (protocol, sender, receiver) = packet;
        // A guest's error quotes what the guest got, and the world's error what the uplink sent.
        let key = match direction {
            Direction::In => Key { protocol, near: receiver, far: far_end(protocol, sender) },
            Direction::Out => Key { protocol, near: sender, far: far_end(protocol, receiver) },
        };
        let by = if direction == Direction::In { Direction::Out } else { Direction::In };
        let at = self.find(now_ns, by, &key)?;
        self.entry(at).map(|entry| entry.flow)
    }

    /// Ends all connections of an owner.
    pub fn forget(&mut self, owner: Owner) {
        while let Some(share) = self.shares.get(&owner) {
            self.remove(share.first_to_go());
        }
    }

    /// Ends all connections of the guests' ends at these addresses: whoever has one of them next is not whom they are for.
    pub fn forget_addresses(&mut self, addresses: &[Ipv4Addr]) {
        for address in addresses {
            while let Some((_, at)) = self.addresses.range((*address, 0)..=(*address, NONE)).next() {
                self.remove(*at);
            }
        }
    }

    /// Ends what has lasted too long.
    pub fn sweep(&mut self, now_ns: u64) {
        for at in 0..MAX_FLOWS as u32 {
            if self.entry(at).is_some_and(|entry| entry.expires_ns <= now_ns) {
                self.remove(at);
            }
        }
    }

    fn entry(&self, at: u32) -> Option<&Entry> {
        self.entries.get(at as usize)?.as_ref()
    }

    fn entry_mut(&mut self, at: u32) -> Option<&mut Entry> {
        self.entries.get_mut(at as usize)?.as_mut()
    }

    /// The entry that lasts with this key, seen from the side where packets of `direction` come from.
    fn find(&self, now_ns: u64, direction: Direction, key: &Key) -> Option<u32> {
        let table = if direction == Direction::Out { &self.from_inside } else { &self.from_outside };
        let hash = hash(self.secret, key);
        let at = *table.find(hash, |at| self.entry(*at).is_some_and(|entry| entry.key(direction) == *key))?;
        self.entry(at).filter(|entry| entry.expires_ns > now_ns).map(|_| at)
    }

    /// A packet goes by.
    fn pass(&mut self, now_ns: u64, at: u32, direction: Direction, flags: Option<TcpFlags>) -> Option<Flow> {
        let entry = self.entry_mut(at)?;
        let began_inside = matches!(entry.owner, Owner::Port(_));
        entry.answered |= began_inside == (direction == Direction::In);
        if let Some(flags) = flags {
            if flags.syn() && !flags.ack() && entry.closed != [false; 2] {
                // The same ends begin anew.
                entry.closed = [false; 2];
                entry.answered = false;
            }
            entry.closed[usize::from(direction == Direction::In)] |= flags.fin();
            if flags.rst() {
                entry.closed = [true; 2];
            }
        }
        let lasts = match (entry.flow.protocol, entry.answered, entry.closed) {
            (protocol::TCP, true, [true, true]) | (_, false, _) => BRIEF_NS,
            (protocol::TCP, true, _) => TCP_NS,
            (protocol::UDP, true, _) => UDP_NS,
            _ => BRIEF_NS,
        };
        entry.expires_ns = now_ns + lasts;
        let lives = entry.answered && entry.closed != [true; 2];
        let (flow, owner, lived) = (entry.flow, entry.owner, entry.lives);
        let is_newest =
            self.shares.get(&owner).is_some_and(|share| share.lists[usize::from(lives)].newest == at);
        if lives != lived || !is_newest {
            self.unlink(at);
            if let Some(entry) = self.entry_mut(at) {
                entry.lives = lives;
            }
            self.link(at, owner);
        }
        Some(flow)
    }

    /// A free port of `address` toward `remote`.
    fn draw(&mut self, now_ns: u64, protocol: u8, remote: End, address: Ipv4Addr) -> Option<End> {
        let (first, last) = (*TRANSLATED_PORTS.start(), *TRANSLATED_PORTS.end());
        for _ in 0..DRAWS {
            let port = first + (self.random.draw() % (u64::from(last - first) + 1)) as u16;
            let outside = End { address, port };
            let key = Key { protocol, near: outside, far: remote };
            if self.find(now_ns, Direction::In, &key).is_none() {
                return Some(outside);
            }
        }
        None
    }

    fn insert(&mut self, now_ns: u64, owner: Owner, flow: Flow) -> Result<Flow, NoFlow> {
        // What is over, and still has one of the keys, goes.
        for (direction, key) in [(Direction::Out, flow.inside_key()), (Direction::In, flow.outside_key())] {
            if let Some(at) = self.find(0, direction, &key) {
                self.remove(at);
            }
        }
        if self.free.is_empty() && now_ns >= self.next_sweep_ns {
            self.next_sweep_ns = now_ns + SECOND;
            self.sweep(now_ns);
        }
        let count = self.shares.get(&owner).map_or(0, |share| share.count);
        let giver = if count as usize >= FLOWS_PER_OWNER {
            self.shares.get(&owner)
        } else if self.free.is_empty() {
            // Owners together may have more than there is. Then who has more gives to who has less.
            let most = self.shares.values().max_by_key(|share| share.count);
            most.filter(|share| share.count > count).or_else(|| self.shares.get(&owner))
        } else {
            None
        };
        if let Some(at) = giver.map(Share::first_to_go) {
            self.remove(at);
            self.evicted += 1;
        }
        let at = self.free.pop().ok_or(NoFlow::Exhausted)?;
        let entry = Entry {
            flow,
            owner,
            expires_ns: now_ns + BRIEF_NS,
            answered: false,
            closed: [false; 2],
            lives: false,
            older: NONE,
            newer: NONE,
        };
        self.entries[at as usize] = Some(entry);
        self.addresses.insert((flow.inside.address, at));
        self.link(at, owner);
        let (secret, entries) = (self.secret, &self.entries);
        let rehash = |direction| {
            move |at: &u32| {
                entries[*at as usize].as_ref().map_or(0, |entry| hash(secret, &entry.key(direction)))
            }
        };
        self.from_inside.insert_unique(hash(secret, &flow.inside_key()), at, rehash(Direction::Out));
        self.from_outside.insert_unique(hash(secret, &flow.outside_key()), at, rehash(Direction::In));
        Ok(flow)
    }

    fn remove(&mut self, at: u32) {
        let Some(entry) = self.entry(at) else { return };
        let keys =
            [hash(self.secret, &entry.key(Direction::Out)), hash(self.secret, &entry.key(Direction::In))];
        self.addresses.remove(&(entry.flow.inside.address, at));
        self.unlink(at);
        for (table, hash) in [&mut self.from_inside, &mut self.from_outside].into_iter().zip(keys) {
            if let Ok(found) = table.find_entry(hash, |other| *other == at) {
                found.remove();
            }
        }
        self.entries[at as usize] = None;
        self.free.push(at);
    }

    /// Makes the entry the newest of its owner's list.
    fn link(&mut self, at: u32, owner: Owner) {
        let lives = self.entry(at).is_some_and(|entry| entry.lives);
        let share = self.shares.entry(owner).or_insert(Share { lists: [List::EMPTY; 2], count: 0 });
        share.count += 1;
        let list = &mut share.lists[usize::from(lives)];
        let before = core::mem::replace(&mut list.newest, at);
        if before == NONE {
            list.oldest = at;
        }
        if let Some(entry) = self.entry_mut(before) {
            entry.newer = at;
        }
        if let Some(entry) = self.entry_mut(at) {
            entry.older = before;
            entry.newer = NONE;
        }
    }

    /// Takes the entry out of its owner's list.
    fn unlink(&mut self, at: u32) {
        let found = self.entry(at).map(|entry| (entry.owner, entry.lives, entry.older, entry.newer));
        let Some((owner, lives, older, newer)) = found else { return };
        if let Some(entry) = self.entry_mut(older) {
            entry.newer = newer;
        }
        if let Some(entry) = self.entry_mut(newer) {
            entry.older = older;
        }
        let Some(share) = self.shares.get_mut(&owner) else { return };
        share.count -= 1;
        let list = &mut share.lists[usize::from(lives)];
        if list.oldest == at {
            list.oldest = newer;
        }
        if list.newest == at {
            list.newest = older;
        }
        if share.count == 0 {
            self.shares.remove(&owner);
        }
    }
}

impl Entry {
    fn key(&self, direction: Direction) -> Key {
        match direction {
            Direction::Out => self.flow.inside_key(),
            Direction::In => self.flow.outside_key(),
        }
    }
}

/// A hash that nobody without the secret can aim at.
fn hash(secret: [u64; 2], key: &Key) -> u64 {
    let end = |end: End| u64::from(end.address.to_bits()) << 16 | u64::from(end.port);
    let mix = |a: u64, b: u64| {
        let product = u128::from(a) * u128::from(b);
        product as u64 ^ (product >> 64) as u64
    };
    let near = end(key.near) | u64::from(key.protocol) << 48;
    mix(mix(near ^ secret[0], secret[1]) ^ end(key.far), secret[0] ^ secret[1].rotate_left(32))
}

#[cfg(test)]
mod tests;
