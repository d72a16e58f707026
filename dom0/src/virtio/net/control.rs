//! The control queue, by which the driver asks for more than one pair of queues.
//!
//! Source: VIRTIO 1.2, section 5.1.6.5.

use super::NetError;
use crate::hw::Dma;
use crate::virtio::queue::{Part, Queue};
use crate::virtio::transport::Doorbell;

const CLASS_MQ: u8 = 4;
const MQ_VQ_PAIRS_SET: u8 = 0;
const ACK_OK: u8 = 0;
/// The byte before the card answers: no answer has this value.
const ACK_UNWRITTEN: u8 = 0xff;

/// Bytes of the command, and where the answer comes.
const COMMAND_BYTES: u32 = 4;
const ANSWER: usize = 8;

/// The control queue, and the page that holds the one command and its answer.
pub(super) struct Control<M> {
    pub(super) queue: Queue<M>,
    pub(super) doorbell: Doorbell,
    page: M,
}

impl<M: Dma> Control<M> {
    pub(super) fn new(queue: Queue<M>, doorbell: Doorbell, page: M) -> Self {
        Self { queue, doorbell, page }
    }

    /// Asks the card to use `pairs` pairs of queues. `true`: the driver must notify the card.
    pub(super) fn ask(&mut self, pairs: u16) -> bool {
        self.page.store8(0, CLASS_MQ);
        self.page.store8(1, MQ_VQ_PAIRS_SET);
        self.page.store16(2, pairs);
        self.page.store8(ANSWER, ACK_UNWRITTEN);
        let command = Part { maddr: self.page.maddr(0), len: COMMAND_BYTES, device_writes: false };
        let answer = Part { maddr: self.page.maddr(ANSWER), len: 1, device_writes: true };
        self.queue.push(&[command, answer]).is_some() && self.queue.publish()
    }

    /// Takes the card's answer: whether the card does what it was asked. `None`: there is no answer yet.
    ///
    /// # Errors
    /// [`NetError::Queue`]: the card broke its queue's rules.
    pub(super) fn answer(&mut self) -> Result<Option<bool>, NetError> {
        let answered = self.queue.pop().map_err(NetError::Queue)?;
        Ok(answered.map(|_| self.page.load8(ANSWER) == ACK_OK))
    }
}
