//! Which station is behind which port.
//!
//! One table of open addressing serves all bridges, at most half full: its owner makes room for what all ports may have,
//! before the ports are used. A station that a port must have (its own address) is fixed, and nobody else can take the
//! station over. What a port learns counts against the port's own budget; the next station beyond the budget takes the
//! place of the port's oldest. So one that sends from a million addresses makes only itself forgotten.

use alloc::vec;
use alloc::vec::Vec;

use super::hash::Seed;
use crate::net::MacAddr;

/// How long a station is remembered that sends nothing, in seconds (IEEE 802.1D).
pub(super) const AGEING_S: u32 = 300;

/// A bridge and a VLAN of the bridge's: where addresses are unique.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Segment(pub(super) u32);

/// A station.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Station {
    pub(super) mac: MacAddr,
    pub(super) segment: Segment,
}

/// The `slot` of a fixed station.
const FIXED: u16 = u16::MAX;

#[derive(Clone, Copy)]
struct Entry {
    /// The address, or [`EMPTY`].
    mac: u64,
    segment: u32,
    seen_s: u32,
    port: u16,
    /// Place in its port's list, or [`FIXED`].
    slot: u16,
}

/// Bytes of a place in the table.
pub(super) const ENTRY_BYTES: usize = size_of::<Entry>();

/// No address: it has more than 48 bits.
const EMPTY: u64 = u64::MAX;
const NOTHING: Entry = Entry { mac: EMPTY, segment: 0, seen_s: 0, port: 0, slot: 0 };

/// What a port has learned: a list that goes round, at most its budget long.
pub(super) struct Learned {
    stations: Vec<Station>,
    budget: u16,
    next: u16,
}

impl Learned {
    pub(super) fn with_budget(budget: u16) -> Learned {
        // The last number means a fixed station.
        let budget = budget.min(FIXED - 1);
        Learned { stations: Vec::with_capacity(budget.into()), budget, next: 0 }
    }

    pub(super) fn budget(&self) -> usize {
        self.budget.into()
    }

    /// Puts `station` in place of the oldest; gives its slot, and the station that was there.
    fn put(&mut self, station: Station) -> (u16, Option<Station>) {
        let slot = self.next;
        self.next = if slot + 1 == self.budget { 0 } else { slot + 1 };
        match self.stations.get_mut(usize::from(slot)) {
            Some(place) => (slot, Some(core::mem::replace(place, station))),
            None => {
                self.stations.push(station);
                (slot, None)
            }
        }
    }
}

/// The table knows the station as another port's for good.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Taken;

/// What is known of a station.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Known {
    pub(super) port: u16,
    pub(super) is_fixed: bool,
    /// When the station's last packet came; without meaning for a fixed station.
    pub(super) seen_s: u32,
}

pub(super) struct MacTable {
    /// Counts changes of which station is where.
    changes: u64,
    entries: Vec<Entry>,
    seed: Seed,
}

impl MacTable {
    pub(super) fn new(seed: Seed) -> MacTable {
        MacTable { changes: 0, entries: vec![NOTHING; 16], seed }
    }

    /// A number that is another after each change of which station is where; silence is no change.
    #[inline]
    pub(super) fn changes(&self) -> u64 {
        self.changes
    }

    /// A port's frames have another form from now on: what was decided before holds no more, though no station moved.
    pub(super) fn note_change(&mut self) {
        self.changes += 1;
    }

    /// Makes room for `stations` in all, fixed and learned.
    pub(super) fn reserve(&mut self, stations: usize) {
        let len = (stations * 2).next_power_of_two();
        if len <= self.entries.len() {
            return;
        }
        let old = core::mem::replace(&mut self.entries, vec![NOTHING; len]);
        for entry in old.into_iter().filter(|entry| entry.mac != EMPTY) {
            let at = self.place(entry.mac, entry.segment);
            self.entries[at] = entry;
        }
    }

    #[inline]
    fn home(&self, mac: u64, segment: u32) -> usize {
        self.seed.hash(mac, segment.into()) as usize & (self.entries.len() - 1)
    }

    /// Where the station is, or the empty place where the station belongs.
    #[inline]
    fn place(&self, mac: u64, segment: u32) -> usize {
        let mut at = self.home(mac, segment);
        loop {
            let entry = &self.entries[at];
            if entry.mac == EMPTY || entry.mac == mac && entry.segment == segment {
                return at;
            }
            at = (at + 1) & (self.entries.len() - 1);
        }
    }

    /// The port behind which a station is, unless the station has been silent for too long.
    #[inline]
    pub(super) fn port_of(&self, station: Station, now_s: u32) -> Option<u16> {
        let entry = &self.entries[self.place(station.mac.bits(), station.segment.0)];
        let is_fresh = entry.slot == FIXED || now_s.wrapping_sub(entry.seen_s) <= AGEING_S;
        (entry.mac != EMPTY && is_fresh).then_some(entry.port)
    }

    /// All that is known, in no order.
    pub(super) fn all(&self) -> impl Iterator<Item = (Station, Known)> {
        self.entries.iter().filter(|entry| entry.mac != EMPTY).map(|entry| {
            let [_, _, mac @ ..] = entry.mac.to_be_bytes();
            let station = Station { mac: MacAddr(mac), segment: Segment(entry.segment) };
            let is_fixed = entry.slot == FIXED;
            (station, Known { port: entry.port, is_fixed, seen_s: entry.seen_s })
        })
    }

    /// Fixes a station behind a port. What was learned of the station gives way.
    ///
    /// # Errors
    /// The station is another port's for good.
    pub(super) fn fix(&mut self, station: Station, port: u16) -> Result<(), Taken> {
        let (mac, segment) = (station.mac.bits(), station.segment.0);
        let at = self.place(mac, segment);
        let entry = &mut self.entries[at];
        if entry.mac != EMPTY && entry.slot == FIXED && entry.port != port {
            return Err(Taken);
        }
        *entry = Entry { mac, segment, seen_s: 0, port, slot: FIXED };
        self.changes += 1;
        Ok(())
    }

    /// Takes a fixed station out.
    pub(super) fn unfix(&mut self, station: Station, port: u16) {
        self.remove(station, port, FIXED);
    }

    /// A packet of `station` came by `port`, whose list is `learned`.
    ///
    /// # Errors
    /// The station is another port's for good.
    pub(super) fn learn(
        &mut self,
        station: Station,
        port: u16,
        learned: &mut Learned,
        now_s: u32,
    ) -> Result<(), Taken> {
        let (mac, segment) = (station.mac.bits(), station.segment.0);
        let at = self.place(mac, segment);
        let entry = &mut self.entries[at];
        if entry.mac != EMPTY {
            if entry.port == port {
                entry.seen_s = now_s;
                return Ok(());
            }
            if entry.slot == FIXED {
                return Err(Taken);
            }
        }
        if learned.budget == 0 {
            return Ok(());
        }
        let (slot, oldest) = learned.put(station);
        if let Some(oldest) = oldest {
            self.remove(oldest, port, slot);
        }
        self.changes += 1;
        // The removal may have moved entries.
        let at = self.place(mac, segment);
        self.entries[at] = Entry { mac, segment, seen_s: now_s, port, slot };
        Ok(())
    }

    /// Forgets all that a port has learned.
    pub(super) fn forget(&mut self, port: u16, learned: &mut Learned) {
        for (slot, station) in learned.stations.drain(..).enumerate() {
            self.remove(station, port, slot as u16);
        }
        learned.next = 0;
    }

    /// Takes a station out if the port still has the station in that slot: the station may have moved since.
    fn remove(&mut self, station: Station, port: u16, slot: u16) {
        let mut hole = self.place(station.mac.bits(), station.segment.0);
        let entry = &self.entries[hole];
        if entry.mac == EMPTY || entry.port != port || entry.slot != slot {
            return;
        }
        self.changes += 1;
        let mask = self.entries.len() - 1;
        let mut at = hole;
        loop {
            at = (at + 1) & mask;
            let entry = self.entries[at];
            if entry.mac == EMPTY {
                break;
            }
            // An entry fills the hole if the hole is on the entry's way from its home.
            let home = self.home(entry.mac, entry.segment);
            if (at.wrapping_sub(home) & mask) >= (at.wrapping_sub(hole) & mask) {
                self.entries[hole] = entry;
                hole = at;
            }
        }
        self.entries[hole] = NOTHING;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    fn table(stations: usize) -> MacTable {
        let mut table = MacTable::new(Seed::new([1, 2]));
        table.reserve(stations);
        table
    }

    fn station(n: u32) -> Station {
        let [a, b, c, d] = n.to_be_bytes();
        Station { mac: MacAddr([2, 0, a, b, c, d]), segment: Segment(0) }
    }

    #[test]
    fn a_flood_costs_its_sender_alone() {
        let mut table = table(12);
        let (mut quiet, mut loud) = (Learned::with_budget(4), Learned::with_budget(8));
        for n in 0..4 {
            table.learn(station(n), 1, &mut quiet, 0).unwrap();
        }
        for n in 1000..1_001_000 {
            table.learn(station(n), 2, &mut loud, 0).unwrap();
        }
        assert!((0..4).all(|n| table.port_of(station(n), 0) == Some(1)));
        assert_eq!(table.all().count(), 12);
        assert!((1_000_992..1_001_000).all(|n| table.port_of(station(n), 0) == Some(2)), "the latest");
        assert_eq!(table.entries.len(), 32, "at most half full");
    }

    #[test]
    fn stations_age_and_move() {
        let mut table = table(8);
        let (mut first, mut second) = (Learned::with_budget(2), Learned::with_budget(2));
        table.learn(station(1), 1, &mut first, 10).unwrap();
        assert_eq!(table.port_of(station(1), 10 + AGEING_S), Some(1));
        assert_eq!(table.port_of(station(1), 11 + AGEING_S), None);
        table.learn(station(1), 1, &mut first, 400).unwrap();
        table.learn(station(1), 2, &mut second, 401).unwrap();
        assert_eq!(table.port_of(station(1), 401), Some(2));
        // The first port's list goes round; what has moved away stays where it is.
        for n in 2..4 {
            table.learn(station(n), 1, &mut first, 402).unwrap();
        }
        assert_eq!(table.port_of(station(1), 402), Some(2));
        table.forget(2, &mut second);
        assert_eq!((table.port_of(station(1), 402), table.all().count()), (None, 2));
        let elsewhere = Station { segment: Segment(1), ..station(2) };
        assert_eq!(table.port_of(elsewhere, 402), None, "another segment");
    }

    #[test]
    fn fixed_stations_stay() {
        let mut table = table(8);
        let mut learned = Learned::with_budget(4);
        table.learn(station(1), 2, &mut learned, 0).unwrap();
        table.fix(station(1), 1).unwrap();
        assert_eq!(table.learn(station(1), 2, &mut learned, 1), Err(Taken));
        assert_eq!(table.fix(station(1), 2), Err(Taken));
        assert_eq!(table.port_of(station(1), 1_000_000), Some(1), "no age");
        table.forget(2, &mut learned);
        assert_eq!(table.port_of(station(1), 0), Some(1));
        table.unfix(station(1), 2);
        assert_eq!(table.port_of(station(1), 0), Some(1), "another port's");
        table.unfix(station(1), 1);
        assert_eq!(table.port_of(station(1), 0), None);
        let mut none = Learned::with_budget(0);
        table.learn(station(1), 3, &mut none, 0).unwrap();
        assert_eq!(table.all().count(), 0, "no budget, nothing learned");
    }

    proptest! {
        /// The table is a map with a list of the latest for each port.
        #[test]
        fn is_a_map(steps in proptest::collection::vec((0..3u16, 0..40u32, 0..8u8), 1..300)) {
            let mut table = table(3 * 6 + 4);
            let mut lists: Vec<Learned> = (0..3).map(|_| Learned::with_budget(6)).collect();
            let mut model: HashMap<u32, (u16, bool)> = HashMap::new();
            let mut latest: Vec<Vec<(u32, bool)>> = vec![Vec::new(); 3];
            let mut fixed = 0;
            for (port, n, what) in steps {
                let held = model.get(&n).copied();
                match what {
                    0 if fixed < 4 && held.is_none_or(|(_, fixed)| !fixed) => {
                        fixed += 1;
                        prop_assert!(table.fix(station(n), port).is_ok());
                        for (_, live) in latest.iter_mut().flatten().filter(|(m, _)| *m == n) {
                            *live = false;
                        }
                        model.insert(n, (port, true));
                    }
                    1 => {
                        table.forget(port, &mut lists[usize::from(port)]);
                        latest[usize::from(port)].clear();
                        model.retain(|_, (at, fixed)| *at != port || *fixed);
                    }
                    _ => {
                        let result = table.learn(station(n), port, &mut lists[usize::from(port)], 0);
                        if held == Some((port, false)) || held == Some((port, true)) {
                            prop_assert!(result.is_ok());
                        } else if held.is_some_and(|(_, fixed)| fixed) {
                            prop_assert_eq!(result, Err(Taken));
                        } else {
                            prop_assert!(result.is_ok());
                            for (_, live) in latest.iter_mut().flatten().filter(|(m, _)| *m == n) {
                                *live = false;
                            }
                            latest[usize::from(port)].push((n, true));
                            model.insert(n, (port, false));
                            if latest[usize::from(port)].len() > 6 {
                                let (oldest, live) = latest[usize::from(port)].remove(0);
                                if live {
                                    model.remove(&oldest);
                                }
                            }
                        }
                    }
                }
                for n in 0..40 {
                    prop_assert_eq!(table.port_of(station(n), 0), model.get(&n).map(|(port, _)| *port), "{}", n);
                }
                prop_assert_eq!(table.all().count(), model.len());
            }
        }
    }
}
