//! Frames that go where the last one went. Where nothing but the Ethernet header decides, a batch costs one look.

use super::port::{PortKind, Target};
use super::vlan::Form;
use super::{PortId, Switch};
use crate::net::headers::ethertype;

/// The Ethernet header of an untagged frame.
pub type Ethernet = [u8; 14];

/// Where frames with the same Ethernet header go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Again {
    /// The receiver's port.
    pub to: PortId,
    /// The frames are IPv6.
    pub is_ipv6: bool,
    /// Most bytes behind the header, of a frame that is not to be cut.
    mtu: u32,
}

impl Again {
    /// Whether a frame of `len` bytes goes there. `is_gso`: the frame is to be cut where the wire begins.
    #[inline]
    #[must_use]
    pub fn takes(&self, len: u32, is_gso: bool) -> bool {
        is_gso || len <= self.mtu + size_of::<Ethernet>() as u32
    }
}

impl Switch {
    /// Where frames with this header go that come in by the port `from`. `None`: [`Switch::forward`] has to look at each, since
    /// another frame was the port's last, something changed, or there are rules at either port.
    ///
    /// The caller counts the frames by [`Switch::count_again`].
    #[inline]
    #[must_use]
    pub fn again(&self, now_ns: u64, from: PortId, header: &Ethernet) -> Option<Again> {
        if self.tap.is_some() {
            return None; // each frame is captured
        }
        let port = self.port(from)?;
        let recent = port.recent.as_ref()?;
        let Target { port: to, kind, form } = recent.target;
        let [stations @ .., high, low] = header;
        let kind_of_frame = u16::from_be_bytes([*high, *low]);
        let is_known = *stations == recent.stations
            && recent.now_s == (now_ns / 1_000_000_000) as u32
            && recent.changes == self.table.changes()
            && matches!(kind_of_frame, ethertype::IPV4 | ethertype::IPV6 | ethertype::ARP);
        if !is_known
            || (kind, form) != (PortKind::Vif, Form::Untagged)
            || port.config.guard.is_some()
            || port.firewall.is_some()
        {
            return None;
        }
        let receiver = self.port(to).filter(|receiver| receiver.firewall.is_none())?;
        let is_ipv6 = kind_of_frame == ethertype::IPV6;
        Some(Again { to, is_ipv6, mtu: receiver.config.mtu.into() })
    }

    /// Counts frames that went from port to port as [`Switch::again`] said.
    pub fn count_again(&mut self, from: PortId, to: PortId, frames: u64, bytes: u64) {
        if let Some(port) = self.port_mut(from) {
            port.counters.in_packets += frames;
            port.counters.in_bytes += bytes;
        }
        if let Some(port) = self.port_mut(to) {
            port.counters.out_packets += frames;
            port.counters.out_bytes += bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Bench, between};
    use super::super::{Action, Guard, Rules};
    use super::*;
    use crate::net::MacAddr;
    use crate::net::headers::testing::station;

    fn header(frame: &[u8]) -> Ethernet {
        *frame.first_chunk().unwrap()
    }

    /// Sends a frame from the first vif to the second, and looks whether the next goes the same way.
    fn again(bench: &mut Bench, from: PortId, frame: &[u8]) -> Option<PortId> {
        bench.ports(from, frame).unwrap();
        bench.switch.again(bench.now_ns, from, &header(frame)).map(|again| again.to)
    }

    #[test]
    fn the_next_frame_goes_where_the_last_one_went() {
        let mut bench = Bench::new();
        let (one, two, three) = (bench.vif(bench.a, 1), bench.vif(bench.a, 2), bench.vif(bench.a, 3));
        let frame = between(1, station(2));
        assert_eq!(bench.switch.again(bench.now_ns, one, &header(&frame)), None, "no frame came yet");
        assert_eq!(again(&mut bench, one, &frame), Some(two));
        assert_eq!(bench.switch.again(bench.now_ns, two, &header(&frame)), None, "another port's");
        let elsewhere = [between(1, station(3)), between(3, station(2)), between(1, MacAddr::BROADCAST)];
        let mut other_kind = frame.clone();
        other_kind[12..14].copy_from_slice(&0x88b5_u16.to_be_bytes());
        for other in elsewhere.iter().chain([&other_kind]) {
            assert_eq!(bench.switch.again(bench.now_ns, one, &header(other)), None);
        }
        let later = bench.now_ns + 1_000_000_000;
        assert_eq!(bench.switch.again(later, one, &header(&frame)), None, "another second");
        bench.switch.remove_port(three);
        assert_eq!(bench.switch.again(bench.now_ns, one, &header(&frame)), None, "a station has gone");
        assert_eq!(again(&mut bench, one, &frame), Some(two));
        bench.switch.remove_port(two);
        assert_eq!(bench.switch.again(bench.now_ns, one, &header(&frame)), None);
    }

    #[test]
    fn where_there_are_rules_each_frame_is_looked_at() {
        let mut bench = Bench::new();
        let (one, two) = (bench.vif(bench.a, 1), bench.vif(bench.a, 2));
        let wire = bench.wire(bench.a);
        let frame = between(1, station(2));
        for port in [one, two] {
            bench.switch.set_rules(port, Some(Rules::new(Action::Accept, Action::Accept))).unwrap();
            assert_eq!(again(&mut bench, one, &frame), None);
            bench.switch.set_rules(port, None).unwrap();
            assert_eq!(again(&mut bench, one, &frame), Some(two));
        }
        bench.switch.set_guard(one, Some(Guard::parse("10.0.0.1").unwrap())).unwrap();
        assert_eq!(again(&mut bench, one, &frame), None);
        bench.switch.set_guard(one, None).unwrap();
        // A guard says what its own station sends, not what the station gets.
        bench.switch.set_guard(two, Some(Guard::parse("10.0.0.2").unwrap())).unwrap();
        assert_eq!(again(&mut bench, one, &frame), Some(two));
        // What goes to a card goes its own way.
        bench.ports(wire, &between(100, station(1))).unwrap();
        assert_eq!(again(&mut bench, one, &between(1, station(100))), None);
    }

    #[test]
    fn frames_are_counted_and_long_ones_refused() {
        let mut bench = Bench::new();
        let (one, two) = (bench.vif(bench.a, 1), bench.vif(bench.a, 2));
        let frame = between(1, station(2));
        bench.ports(one, &frame).unwrap();
        let again = bench.switch.again(bench.now_ns, one, &header(&frame)).unwrap();
        assert!(again.takes(1514, false) && again.takes(14 + 65_535, false));
        assert!(!again.takes(14 + 65_536, false) && again.takes(14 + 65_536, true));
        let before = (bench.switch.counters(one).unwrap().in_bytes, frame.len() as u64);
        bench.switch.count_again(one, again.to, 3, 300);
        let (one, two) = (bench.switch.counters(one).unwrap(), bench.switch.counters(two).unwrap());
        assert_eq!((one.in_packets, one.in_bytes - before.0), (4, 300));
        assert_eq!((two.out_packets, two.out_bytes - before.1), (4, 300));
    }
}
