//! VLANs: which frames a port takes, and in what form the port gets them.
//!
//! VLAN 0 is a bridge's untagged network, in which every port is of which nothing else is said. A frame is in exactly one
//! VLAN from the port where the frame came in; the tag is only how a trunk says which.

use alloc::boxed::Box;
use alloc::vec;
use alloc::vec::Vec;
use core::fmt;

use crate::net::headers::{Head, ethertype, tag};

/// Number of a VLAN: 1 to 4094, or 0 for what is untagged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct VlanId(u16);

impl VlanId {
    /// The untagged network.
    pub const UNTAGGED: VlanId = VlanId(0);
    const MAX: u16 = 4094;

    /// The VLAN of that number. `None`: 4095, which IEEE 802.1Q reserves, and above.
    #[must_use]
    pub fn new(number: u16) -> Option<VlanId> {
        (number <= Self::MAX).then_some(VlanId(number))
    }

    /// The number.
    #[must_use]
    pub fn number(self) -> u16 {
        self.0
    }
}

impl fmt::Display for VlanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a frame must look like where it leaves the switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Without a tag.
    Untagged,
    /// With a tag of this control information.
    Tagged(u16),
}

/// A set of VLANs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VlanSet(Box<[u64; 64]>);

impl FromIterator<VlanId> for VlanSet {
    fn from_iter<I: IntoIterator<Item = VlanId>>(vlans: I) -> VlanSet {
        let mut set = VlanSet(Box::new([0; 64]));
        for VlanId(vlan) in vlans {
            set.0[usize::from(vlan >> 6)] |= 1 << (vlan & 63);
        }
        set
    }
}

impl VlanSet {
    /// Whether the VLAN is in the set.
    #[must_use]
    pub fn contains(&self, VlanId(vlan): VlanId) -> bool {
        self.0[usize::from(vlan >> 6)] >> (vlan & 63) & 1 != 0
    }

    /// The VLANs, in order.
    pub fn iter(&self) -> impl Iterator<Item = VlanId> {
        (0..=VlanId::MAX).map(VlanId).filter(|vlan| self.contains(*vlan))
    }
}

/// The VLANs that a port is in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Vlans {
    /// One VLAN, without tags: what stands behind the port knows nothing of VLANs.
    Access(VlanId),
    /// The untagged frames' VLAN, if such frames are taken, and those with tags.
    Trunk(Option<VlanId>, VlanSet),
    /// Every VLAN with its tag, and the untagged network: a wire's.
    All,
}

/// Numbers of tags that are not ours: of provider bridges (802.1ad), and an older one.
const OTHER_TAGS: [u16; 2] = [0x88a8, 0x9100];

fn is_tag(ethertype: u16) -> bool {
    ethertype == ethertype::VLAN || OTHER_TAGS.contains(&ethertype)
}

impl Vlans {
    /// The VLAN of a frame that comes in by the port. `None`: the port takes no such frame.
    #[must_use]
    pub fn ingress(&self, head: &Head<'_>) -> Option<VlanId> {
        // A tag with number 0 has a priority alone.
        let tagged = head.tag().map(tag::vlan).filter(|vlan| *vlan != 0);
        match (self, tagged.map(VlanId::new)) {
            (_, Some(None)) => None,
            // Behind the first tag there may be another, which would count where the first is taken off.
            (Vlans::Access(vlan), None) => (!is_tag(head.ethertype())).then_some(*vlan),
            (Vlans::Access(_), Some(_)) => None,
            (Vlans::Trunk(untagged, _), None) => *untagged,
            (Vlans::Trunk(untagged, tagged), Some(Some(vlan))) => {
                (tagged.contains(vlan) || *untagged == Some(vlan)).then_some(vlan)
            }
            (Vlans::All, vlan) => Some(vlan.flatten().unwrap_or(VlanId::UNTAGGED)),
        }
    }

    /// The form in which a frame of that VLAN leaves by the port. `None`: the port is not in the VLAN, or the frame would
    /// lose its tag and have another one behind.
    #[must_use]
    pub fn egress(&self, vlan: VlanId, head: &Head<'_>) -> Option<Form> {
        let tagged =
            |VlanId(vlan)| (vlan != 0).then(|| Form::Tagged(head.tag().unwrap_or(0) & 0xf000 | vlan));
        let form = match self {
            Vlans::Access(own) => (*own == vlan).then_some(Form::Untagged),
            Vlans::Trunk(Some(own), _) if *own == vlan => Some(Form::Untagged),
            Vlans::Trunk(_, others) => others.contains(vlan).then_some(vlan).and_then(tagged),
            Vlans::All => tagged(vlan).or(Some(Form::Untagged)),
        }?;
        let hops = form == Form::Untagged && head.tag().is_some() && is_tag(head.ethertype());
        (!hops).then_some(form)
    }

    /// Whether the port is in the untagged network.
    #[must_use]
    pub fn has_untagged(&self) -> bool {
        match self {
            Vlans::Access(vlan) | Vlans::Trunk(Some(vlan), _) => *vlan == VlanId::UNTAGGED,
            Vlans::Trunk(None, _) => false,
            Vlans::All => true,
        }
    }

    /// The VLANs, unless they are all.
    pub(super) fn list(&self) -> Option<Vec<VlanId>> {
        match self {
            Vlans::Access(vlan) => Some(vec![*vlan]),
            Vlans::Trunk(untagged, tagged) => {
                let others = tagged.iter().filter(|vlan| Some(*vlan) != *untagged);
                Some(untagged.iter().copied().chain(others).collect())
            }
            Vlans::All => None,
        }
    }

    /// Reads what Xen's Open vSwitch script takes behind a bridge's name: `.10` the VLAN of untagged frames, `:20:30` those
    /// with tags. Nothing: the untagged network.
    ///
    /// # Errors
    /// The number that is none of a VLAN.
    pub fn parse(text: &str) -> Result<Vlans, &str> {
        let mut parts = text.split(':');
        let access = match parts.next().unwrap_or_default() {
            "" => None,
            access => Some(number(access.strip_prefix('.').ok_or(access)?)?),
        };
        let tagged = parts.map(number).collect::<Result<Vec<_>, _>>()?;
        if tagged.is_empty() {
            return Ok(Vlans::Access(access.unwrap_or(VlanId::UNTAGGED)));
        }
        Ok(Vlans::Trunk(access, tagged.into_iter().collect()))
    }

    /// Reads the word `vlan=` of a network interface, which `xl` of Xen 4.17 does not know: `10`, or several with `/` between, such
    /// as `10p/20/30-40`. `p` marks the VLAN of untagged frames; one number alone needs no mark.
    ///
    /// # Errors
    /// The part that is no VLAN, or is the second one with a mark.
    pub fn parse_word(text: &str) -> Result<Vlans, &str> {
        let (mut untagged, mut tagged) = (None, Vec::new());
        let is_alone = !text.contains(['/', '-']);
        for part in text.split('/') {
            let unmarked = part.trim_end_matches(['p', 'u']);
            if let Some((first, last)) = unmarked.split_once('-') {
                let (first, last) = (number(first).map_err(|_| part)?, number(last).map_err(|_| part)?);
                if first > last || unmarked != part {
                    return Err(part);
                }
                tagged.extend((first.0..=last.0).map(VlanId));
            } else if is_alone || unmarked != part {
                if untagged.replace(number(unmarked).map_err(|_| part)?).is_some() {
                    return Err(part);
                }
            } else {
                tagged.push(number(part)?);
            }
        }
        match (untagged, tagged.is_empty()) {
            (Some(vlan), true) => Ok(Vlans::Access(vlan)),
            (untagged, _) => Ok(Vlans::Trunk(untagged, tagged.into_iter().collect())),
        }
    }
}

/// As [`Vlans::parse`] reads them; `untagged` and `all` are what needs no word.
impl fmt::Display for Vlans {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Vlans::Access(VlanId::UNTAGGED) => f.write_str("untagged"),
            Vlans::Access(vlan) => write!(f, ".{vlan}"),
            Vlans::Trunk(untagged, tagged) => {
                if let Some(vlan) = untagged {
                    write!(f, ".{vlan}")?;
                }
                tagged.iter().try_for_each(|vlan| write!(f, ":{vlan}"))
            }
            Vlans::All => f.write_str("all"),
        }
    }
}

/// A VLAN's number, as a person writes one.
fn number(text: &str) -> Result<VlanId, &str> {
    let number = text.parse().ok().filter(|number| *number != 0 && !text.starts_with('+'));
    number.and_then(VlanId::new).ok_or(text)
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;

    use super::*;
    use crate::net::headers::testing::{ethernet, station};

    fn vlan(number: u16) -> VlanId {
        VlanId::new(number).unwrap()
    }

    /// What `vlans` says of a frame with these tags and what follows: its VLAN, and what the frame of VLAN 7 becomes.
    fn seen(vlans: &Vlans, tags: &[u16], follows: u16) -> (Option<u16>, Option<Form>) {
        let mut bytes = ethernet(station(1), station(2), follows, &[0; 46]);
        for tci in tags.iter().rev() {
            let [high, low] = tci.to_be_bytes();
            bytes.splice(12..12, [0x81, 0, high, low]);
        }
        let len = bytes.len() as u32;
        let head = Head::parse(&mut bytes, len).unwrap();
        (vlans.ingress(&head).map(VlanId::number), vlans.egress(vlan(7), &head))
    }

    #[test]
    fn access_ports_know_no_tags() {
        let access = Vlans::Access(vlan(7));
        assert_eq!(seen(&access, &[], 0x800), (Some(7), Some(Form::Untagged)));
        assert_eq!(seen(&access, &[0x6000], 0x800), (Some(7), Some(Form::Untagged)), "a priority alone");
        for tags in [&[7][..], &[8], &[0, 8], &[0, 0]] {
            assert_eq!(seen(&access, tags, 0x800).0, None, "{tags:?}");
        }
        assert_eq!(seen(&access, &[0], 0x8100).0, None);
        for other in [0x88a8, 0x9100] {
            assert_eq!(seen(&access, &[], other).0, None, "{other:#x}");
        }
        assert_eq!(seen(&Vlans::Access(vlan(8)), &[], 0x800).1, None);
    }

    #[test]
    fn trunks_take_what_they_list() {
        let trunk = Vlans::Trunk(Some(vlan(1)), [vlan(7), vlan(9)].into_iter().collect());
        assert_eq!(seen(&trunk, &[], 0x800), (Some(1), Some(Form::Tagged(7))));
        assert_eq!(seen(&trunk, &[0xa009], 0x800), (Some(9), Some(Form::Tagged(0xa007))), "priority stays");
        assert_eq!(seen(&trunk, &[1], 0x800).0, Some(1));
        assert_eq!((seen(&trunk, &[8], 0x800).0, seen(&trunk, &[4095], 0x800).0), (None, None));
        let only_tagged = Vlans::Trunk(None, [vlan(9)].into_iter().collect());
        assert_eq!(seen(&only_tagged, &[], 0x800), (None, None));
        assert_eq!(seen(&Vlans::All, &[4094], 0x800), (Some(4094), Some(Form::Tagged(7))));
        assert_eq!(seen(&Vlans::All, &[], 0x800).0, Some(0));
        assert_eq!(seen(&Vlans::All, &[4095], 0x800).0, None);
    }

    #[test]
    fn no_inner_tag_comes_to_count() {
        let native = Vlans::Trunk(Some(vlan(7)), VlanSet::from_iter([]));
        assert_eq!(seen(&native, &[7], 0x800), (Some(7), Some(Form::Untagged)));
        assert_eq!(seen(&native, &[7, 9], 0x800), (Some(7), None), "double tagging");
        assert_eq!(seen(&native, &[7], 0x88a8), (Some(7), None));
        assert_eq!(seen(&Vlans::All, &[7, 9], 0x800), (Some(7), Some(Form::Tagged(7))));
    }

    #[test]
    fn texts() {
        assert_eq!(Vlans::parse(""), Ok(Vlans::Access(VlanId::UNTAGGED)));
        assert_eq!(Vlans::parse(".10"), Ok(Vlans::Access(vlan(10))));
        let both = [vlan(20), vlan(30)];
        assert_eq!(Vlans::parse(".10:20:30"), Ok(Vlans::Trunk(Some(vlan(10)), both.into_iter().collect())));
        assert_eq!(Vlans::parse(":20:30").unwrap().list().unwrap(), both);
        for (text, wrong) in
            [(".0", "0"), (".4095", "4095"), ("10", "10"), (".1:x", "x"), (":", ""), (".+1", "+1"), (".", "")]
        {
            assert_eq!(Vlans::parse(text), Err(wrong), "{text}");
        }
        for text in [".10", ".10:20:30", ":20:30"] {
            assert_eq!(Vlans::parse(text).unwrap().to_string(), text);
        }
        let words = [Vlans::Access(VlanId::UNTAGGED), Vlans::All].map(|vlans| vlans.to_string());
        assert_eq!(words, ["untagged", "all"]);
    }

    #[test]
    fn words_of_an_interface() {
        for (text, same) in [
            ("10", ".10"),
            ("10p", ".10"),
            ("10pu", ".10"),
            ("10p/20", ".10:20"),
            ("20/30-32/10u", ".10:20:30:31:32"),
            ("20-21", ":20:21"),
            ("20/30", ":20:30"),
        ] {
            assert_eq!(Vlans::parse_word(text), Ok(Vlans::parse(same).unwrap()), "{text}");
        }
        for (text, wrong) in [
            ("", ""),
            ("x", "x"),
            ("0", "0"),
            ("4095", "4095"),
            ("10p/20p", "20p"),
            ("10-", "10-"),
            ("20-10", "20-10"),
            ("10-20p", "10-20p"),
            ("10//20", ""),
            ("10/p", "p"),
        ] {
            assert_eq!(Vlans::parse_word(text), Err(wrong), "{text}");
        }
    }
}
