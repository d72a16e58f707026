//! The packet that an ICMP error quotes: whose flow the error is about.

use super::Head;
use super::fields::{self, Flow};
use super::layout::{IpLayout, Transport};
use super::rewrite::{Endpoint, Side, correct, replace};

impl Head<'_> {
    /// Where the quoted packet lies, and where the message ends within the head.
    fn quoted(&self) -> Option<(IpLayout, usize)> {
        let (outer, transport_at) = (&self.layout.ip, self.transport_at()?);
        if !self.icmp()?.is_error {
            return None;
        }
        let end = (transport_at + outer.transport_len as usize).min(self.bytes.len());
        let bytes = self.bytes.get(..end)?;
        let ip = match outer.transport {
            Transport::Icmp => IpLayout::ipv4(bytes, transport_at + 8, 0, true)?,
            _ => IpLayout::ipv6(bytes, transport_at + 8, 0, true)?,
        };
        Some((ip, end))
    }

    /// The flow of the packet that an ICMP error quotes, as that packet named its ends. `None`: the packet is no error, or
    /// too little of the quoted packet is there.
    #[must_use]
    pub fn quoted_flow(&self) -> Option<Flow> {
        let (ip, end) = self.quoted()?;
        fields::flow(&self.bytes[..end], &ip)
    }

    /// Makes one end of the quoted packet's flow another, and corrects the checksums in the quoted packet and the error's.
    /// `is_partial` as for [`Head::rewrite`]. False, and all is as it was: as for [`Head::rewrite`], or there is no quoted
    /// packet.
    #[must_use]
    pub fn rewrite_quoted(&mut self, side: Side, to: Endpoint, is_partial: bool) -> bool {
        let Some((ip, end)) = self.quoted() else { return false };
        let Some(all) = replace(&mut self.bytes[..end], &ip, side, to, false) else { return false };
        if !is_partial {
            correct(self.bytes, usize::from(self.layout.ip.transport_at) + 2, all);
        }
        self.changed = true;
        true
    }
}
