//! What an administrator changes at ports that are there: VLANs; and what a configuration calls a place on a bridge.

use alloc::string::{String, ToString};
use core::fmt;

use super::table::Station;
use super::{BridgeId, PortId, Switch, SwitchError, VlanId, Vlans};

/// What is wrong with a place on a bridge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PlaceError {
    /// No bridge has the name.
    NoBridge,
    /// What stands behind the name is no VLAN.
    NoVlan(String),
    /// VLANs stand behind the name and elsewhere.
    TwoVlans,
}

impl fmt::Display for PlaceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PlaceError::NoBridge => f.write_str("no such bridge"),
            PlaceError::TwoVlans => f.write_str("`vlan=` says the same again"),
            PlaceError::NoVlan(text) => write!(f, "VLAN `{text}`: expected a number from 1 to 4094"),
        }
    }
}

impl Switch {
    /// The bridge and the VLANs of `xenbr0`, `xenbr0.10` or `xenbr0.10:20:30`. A bridge's name may have dots, too: the longest
    /// name of a bridge counts.
    ///
    /// # Errors
    /// See [`PlaceError`].
    pub fn place(&self, text: &str) -> Result<(BridgeId, Vlans), PlaceError> {
        let behind = |(id, name): (BridgeId, &str)| {
            let rest = text.strip_prefix(name)?;
            (rest.is_empty() || rest.starts_with(['.', ':'])).then_some((id, rest))
        };
        let (id, rest) = self
            .bridges()
            .filter_map(behind)
            .min_by_key(|(_, rest)| rest.len())
            .ok_or(PlaceError::NoBridge)?;
        let vlans = Vlans::parse(rest).map_err(|wrong| PlaceError::NoVlan(wrong.to_string()))?;
        Ok((id, vlans))
    }

    /// The same where the VLANs may stand apart, as [`Vlans::parse_word`] reads them.
    ///
    /// # Errors
    /// See [`PlaceError`].
    pub fn place_in(&self, text: &str, vlan: Option<&str>) -> Result<(BridgeId, Vlans), PlaceError> {
        let (id, vlans) = self.place(text)?;
        match vlan {
            None => Ok((id, vlans)),
            Some(_) if vlans != Vlans::Access(VlanId::UNTAGGED) => Err(PlaceError::TwoVlans),
            Some(word) => {
                let vlans = Vlans::parse_word(word).map_err(|wrong| PlaceError::NoVlan(wrong.to_string()))?;
                Ok((id, vlans))
            }
        }
    }

    /// Puts a port into other VLANs. What was known by the port is forgotten.
    ///
    /// # Errors
    /// The port is gone; another port has the address in one of the VLANs; the VLANs are too many.
    pub fn set_vlans(&mut self, id: PortId, vlans: Vlans) -> Result<(), SwitchError> {
        let old = self.port(id).ok_or(SwitchError::NoPort)?.config.clone();
        let new = super::PortConfig { vlans, ..old.clone() };
        let (before, after) = (Self::fixed(&old)?, Self::fixed(&new)?);
        let others: usize = self.ports.iter().flatten().map(|port| Self::room_for(port)).sum();
        self.table.reserve(others + after.len());
        let mut fixed = alloc::vec::Vec::<Station>::new();
        for station in after.iter().filter(|station| !before.contains(station)) {
            if self.table.fix(*station, id.index).is_err() {
                fixed.iter().for_each(|station| self.table.unfix(*station, id.index));
                return Err(SwitchError::MacTaken(station.mac, self.owner_of(*station)));
            }
            fixed.push(*station);
        }
        for station in before.iter().filter(|station| !after.contains(station)) {
            self.table.unfix(*station, id.index);
        }
        // From `.10` to `:10` no station moves, and yet what other ports have decided of late is of the old form.
        self.table.note_change();
        let slot = self.ports.get_mut(usize::from(id.index)).and_then(Option::as_deref_mut);
        if let Some(port) = slot {
            self.table.forget(id.index, &mut port.learned);
            port.recent = None;
            port.config = new;
        }
        Ok(())
    }

    /// The name of the port whose own the station is.
    pub(super) fn owner_of(&self, station: Station) -> String {
        let owner =
            self.table.port_of(station, 0).and_then(|port| self.ports.get(usize::from(port))?.as_deref());
        owner.map(|port| port.config.name.clone()).unwrap_or_default()
    }

    /// The port of that name.
    #[must_use]
    pub fn find_port(&self, name: &str) -> Option<PortId> {
        self.ids().find(|id| self.config(*id).is_some_and(|config| config.name == name))
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Bench, between, vlan};
    use super::*;
    use crate::net::Head;
    use crate::net::headers::testing::station;
    use crate::net::switch::{Form, PortConfig, Reason, Verdict};

    #[test]
    fn places() {
        let mut bench = Bench::new();
        let dotted = bench.switch.add_bridge("a.7").unwrap();
        let place = |text: &str| bench.switch.place(text).map(|(id, vlans)| (id, vlans.to_string()));
        for (text, bridge, vlans) in [
            ("a", bench.a, "untagged"),
            ("b.10", bench.b, ".10"),
            ("b:20:30", bench.b, ":20:30"),
            ("a.10:20", bench.a, ".10:20"),
            ("a.7", dotted, "untagged"),
            ("a.7.8", dotted, ".8"),
            ("a.77", bench.a, ".77"),
        ] {
            assert_eq!(place(text), Ok((bridge, vlans.into())), "{text}");
        }
        for text in ["", "c", "ab", "a/10"] {
            assert_eq!(place(text), Err(PlaceError::NoBridge), "{text}");
        }
        for (text, wrong) in [("a.0", "0"), ("a.x", "x"), ("b.10:4095", "4095"), ("b.", "")] {
            assert_eq!(place(text), Err(PlaceError::NoVlan(wrong.into())), "{text}");
        }
        let apart =
            |text: &str, word| bench.switch.place_in(text, Some(word)).map(|(_, vlans)| vlans.to_string());
        assert_eq!(apart("a", "10p/20"), Ok(".10:20".into()));
        assert_eq!(apart("a.10", "10"), Err(PlaceError::TwoVlans));
        assert_eq!(apart("a", "x"), Err(PlaceError::NoVlan("x".into())));
    }

    #[test]
    fn a_port_moves_to_another_vlan() {
        let mut bench = Bench::new();
        let (one, two, wire) = (bench.vif(bench.a, 1), bench.vif(bench.a, 2), bench.wire(bench.a));
        let there = between(1, station(2));
        assert_eq!(bench.ports(one, &there), Ok([two].into()));
        bench.switch.set_vlans(two, Vlans::Access(vlan(10))).unwrap();
        // Unknown in the first one's VLAN now: only the wire may have such a station behind.
        assert_eq!(bench.ports(one, &there), Ok([wire].into()));
        bench.switch.set_vlans(one, Vlans::parse(".20:10").unwrap()).unwrap();
        assert_eq!(bench.ports(two, &between(2, station(1))), Ok([one].into()));
        bench.switch.set_vlans(two, Vlans::Access(vlan(20))).unwrap();
        assert_eq!(bench.ports(one, &there), Ok([two].into()));
        assert_eq!(bench.switch.find_port("vif1.0"), Some(one));
        assert_eq!(bench.switch.find_port("vif9.0"), None);
    }

    #[test]
    fn the_next_frame_has_the_form_of_the_new_vlans() {
        let mut bench = Bench::new();
        let (one, two) = (bench.vif(bench.a, 1), bench.vif(bench.a, 2));
        let there = between(1, station(2));
        bench.switch.set_vlans(one, Vlans::Access(vlan(10))).unwrap();
        for (vlans, form) in [
            (".10", Form::Untagged),
            (":10", Form::Tagged(10)),
            (".10:20", Form::Untagged),
            (":10", Form::Tagged(10)),
        ] {
            bench.switch.set_vlans(two, Vlans::parse(vlans).unwrap()).unwrap();
            let mut frame = there.clone();
            let len = frame.len() as u32;
            let head = Head::parse(&mut frame, len).unwrap();
            let Verdict::One(target) = bench.switch.forward(bench.now_ns, one, &head, false) else {
                panic!("one receiver");
            };
            assert_eq!((target.port, target.form), (two, form), "{vlans}");
        }
    }

    #[test]
    fn a_move_that_cannot_be_changes_nothing() {
        let mut bench = Bench::new();
        let one = bench.vif(bench.a, 1);
        let same = |vlans| PortConfig { vlans, ..PortConfig::vif("vif2.0".into(), bench.a, station(1)) };
        let other = bench.switch.add_port(same(Vlans::Access(vlan(10)))).unwrap();
        let taken = Err(SwitchError::MacTaken(station(1), "vif2.0".into()));
        assert_eq!(bench.switch.set_vlans(one, Vlans::parse(".9:10:11").unwrap()), taken);
        let many = Vlans::Trunk(None, (1..=65).map(vlan).collect());
        assert_eq!(bench.switch.set_vlans(one, many), Err(SwitchError::TooManyVlans("vif1.0".into())));
        assert_eq!(bench.switch.config(one).unwrap().vlans.to_string(), "untagged");
        let three = bench.vif(bench.a, 3);
        assert_eq!(bench.ports(three, &between(3, station(1))), Ok([one].into()));
        bench.switch.set_vlans(other, Vlans::Access(vlan(9))).unwrap();
        bench.switch.set_vlans(one, Vlans::parse(".10:11").unwrap()).unwrap();
        assert_eq!(bench.ports(three, &between(3, station(1))), Err(Reason::NoReceiver));
        bench.switch.remove_port(one);
        assert_eq!(bench.switch.set_vlans(one, Vlans::All), Err(SwitchError::NoPort));
    }
}
