//! Packets of one sender to one receiver, in a row: what is the same for all of them is looked at once.

use backends::net::TxId;

use super::fabric::Fabric;
use super::sender::Sender;

impl Fabric {
    /// Sends as many packets from the front of `ids` on as have the same Ethernet header, and go where the last packet with that
    /// header went: how many. None: [`Fabric::forward`] has to look at the first.
    #[inline]
    pub(super) fn send_run(&mut self, sender: &mut Sender, queue: usize, ids: &[TxId], now_ns: u64) -> usize {
        // What comes behind a packet that waits may have to wait, too.
        let Some(&first) = ids.first().filter(|_| sender.parked.is_empty()) else { return 0 };
        let (ring, heads) = sender.ring_and_heads(queue);
        let Some(header) = heads.ethernet(first, ring.packet(first).head_len()) else { return 0 };
        let Some(again) = self.switch.again(now_ns, sender.port, &header) else { return 0 };
        let (count, bytes) = self.way.send_run(sender, queue, ids, &header, &again);
        self.switch.count_again(sender.port, again.to, count as u64, bytes);
        count
    }
}
