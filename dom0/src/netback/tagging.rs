//! Packets that leave in another form than they came in: with a VLAN's tag, or without.
//!
//! Such a packet is copied to dom0 whole, once for all its receivers. Guests that know nothing of VLANs share one with each other without that.

use alloc::vec::Vec;

use backends::net::{MAX_PACKET, Packet};

use super::fabric::Fabric;
use super::outside::Missing;
use super::sender::Frame;
use crate::net::Head;
use crate::net::headers::tag;
use crate::net::switch::port::PortKind;
use crate::net::switch::{Form, Reason, Target};

/// Bytes of a tag.
const TAG_BYTES: usize = 4;

/// Whether a frame must get another form where it leaves.
pub(super) fn changes_form(head: &Head<'_>, form: Form) -> bool {
    match (form, head.tag()) {
        (Form::Untagged, tag) => tag.is_some(),
        (Form::Tagged(tci), tag) => tag != Some(tci),
    }
}

/// Gives a frame the form. False: the frame has no Ethernet header.
fn change_form(frame: &mut Vec<u8>, form: Form) -> bool {
    let mut len = frame.len();
    if let Some(shorter) = tag::pop(frame, len) {
        len = shorter;
        frame.truncate(len);
    }
    if let Form::Tagged(tci) = form {
        frame.resize(len + TAG_BYTES, 0);
        return tag::push(frame, len, tci).is_some();
    }
    true
}

impl Fabric {
    /// Sends a packet to receivers for which the packet is copied whole, once: to each in the form that the receiver gets, cards
    /// last. Each gets the packet now or never.
    ///
    /// # Errors
    /// A part of the packet cannot be had.
    pub(super) fn send_copied(
        &mut self,
        packet: &Packet<'_>,
        targets: &mut [Target],
        frame: &Frame<'_>,
    ) -> Result<(), Missing> {
        if targets.is_empty() || self.outside.is_none() {
            return Ok(());
        }
        // Nothing that waits may lie where this packet comes to lie.
        self.deliver();
        let mut whole = self.copy_whole(packet)?;
        // What lies in the copy has a head of its own.
        let frame = &Frame { head: &[], ..*frame };
        targets.sort_unstable_by_key(|target| (target.kind == PortKind::Wire, tag_of(target.form)));
        for alike in targets.chunk_by(|one, other| (one.kind, one.form) == (other.kind, other.form)) {
            let Some(first) = alike.first().filter(|first| change_form(&mut whole, first.form)) else {
                continue;
            };
            if first.kind == PortKind::Wire {
                for target in alike {
                    self.send_frame_out(&mut whole.clone(), packet.offload, target.port);
                }
                continue;
            }
            let parts = self.outside.as_ref().and_then(|outside| outside.whole.put(&whole));
            let changed = Packet {
                len: whole.len() as u32,
                offload: packet.offload,
                parts: parts.as_deref().unwrap_or_default(),
            };
            for target in alike {
                if whole.len() > MAX_PACKET || parts.is_none() {
                    self.switch.count_drop(target.port, Reason::TooBig);
                } else {
                    self.send_to_vif(&changed, target.port, frame);
                    if self.way.is_long() {
                        self.deliver();
                    }
                }
            }
            // The next form takes the same pages.
            self.deliver();
        }
        if let Some(outside) = &mut self.outside {
            outside.whole.give_back(whole);
        }
        Ok(())
    }
}

fn tag_of(form: Form) -> Option<u16> {
    match form {
        Form::Untagged => None,
        Form::Tagged(tci) => Some(tci),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::headers::testing::{ethernet, station};

    #[test]
    fn forms() {
        let plain = ethernet(station(1), station(2), 0x800, &[7; 46]);
        let tagged = |tci: u16| {
            let [high, low] = tci.to_be_bytes();
            [&plain[..12], &[0x81, 0, high, low], &plain[12..]].concat()
        };
        for (from, form, to) in [
            (plain.clone(), Form::Untagged, plain.clone()),
            (plain.clone(), Form::Tagged(0xa007), tagged(0xa007)),
            (tagged(7), Form::Tagged(9), tagged(9)),
            (tagged(7), Form::Untagged, plain.clone()),
        ] {
            let mut head = from.clone();
            let len = head.len() as u32;
            let changes = changes_form(&Head::parse(&mut head, len).unwrap(), form);
            assert_eq!(changes, from != to);
            let mut frame = from;
            assert!(change_form(&mut frame, form) && frame == to);
        }
        assert!(!change_form(&mut [1; 10].to_vec(), Form::Tagged(1)));
    }
}
