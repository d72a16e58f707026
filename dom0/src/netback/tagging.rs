//! Packets that leave in another form than they came in: with a VLAN's tag, or without.
//!
//! Such a packet is copied to dom0 whole. Guests that know nothing of VLANs share one with each other without that.

use alloc::vec::Vec;

use backends::net::{MAX_PACKET, Packet};

use super::fabric::Fabric;
use super::sender::{Frame, FrameKind};
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
    /// Sends a packet to one receiver in the form that the receiver gets. The receiver gets it now or never.
    pub(super) fn send_in_form(&mut self, packet: &Packet<'_>, target: Target, kind: FrameKind) {
        // Nothing that waits may lie where this packet comes to lie.
        self.deliver();
        let Some(outside) = &mut self.outside else { return };
        let Some(frame) = outside.whole.copy(packet) else { return };
        let mut frame = core::mem::take(frame);
        if change_form(&mut frame, target.form) {
            match target.kind {
                PortKind::Wire => self.send_frame_out(&mut frame, packet.offload, target.port),
                _ if frame.len() > MAX_PACKET => self.switch.count_drop(target.port, Reason::TooBig),
                _ => {
                    let parts = outside.whole.put(&frame);
                    let changed = Packet { len: frame.len() as u32, offload: packet.offload, parts: &parts };
                    self.send_now(&changed, target, &Frame { kind, from_queue: 0, lender: None, head: &[] });
                    self.deliver();
                }
            }
        }
        if let Some(outside) = &mut self.outside {
            outside.whole.give_back(frame);
        }
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
