//! Credit: how much a frontend may send in an interval (`rate=`).

/// What a sender may send at once beyond what an interval gives: two of the largest packets.
///
/// A packet that does not fit in what is left of an interval's credit waits, and what is left must not be lost to the
/// rate; so the bound on what gathers is an interval's credit and more.
const BURST: u64 = 128 << 10;

/// The credit of one vif.
#[derive(Debug)]
pub struct Credit {
    /// Bytes that an interval gives.
    bytes: u64,
    /// The interval.
    interval_ns: u64,
    left: u64,
    /// When the next interval begins.
    next_ns: u64,
}

impl Credit {
    /// Credit of `bytes` for each interval of `interval_us`, as the node `rate` names the two. `None`: the node says
    /// that there is no bound.
    #[must_use]
    pub fn new(bytes: u64, interval_us: u64, now_ns: u64) -> Option<Self> {
        if bytes == 0 || interval_us == 0 {
            return None;
        }
        let interval_ns = interval_us.saturating_mul(1000);
        Some(Self { bytes, interval_ns, left: bytes, next_ns: now_ns.saturating_add(interval_ns) })
    }

    /// Whether `size` bytes may pass now: if so, the bytes are charged. If not, the result says when to ask again.
    ///
    /// # Errors
    /// The time at which the next interval begins.
    pub(super) fn charge(&mut self, size: u64, now_ns: u64) -> Result<(), u64> {
        if size > self.left && now_ns >= self.next_ns {
            let intervals = 1 + (now_ns - self.next_ns) / self.interval_ns;
            let most = self.bytes.saturating_add(BURST);
            self.left = self.left.saturating_add(self.bytes.saturating_mul(intervals)).min(most);
            // The intervals go on from where they began: what time is lost between two calls is not lost to the rate.
            self.next_ns = self.next_ns.saturating_add(intervals.saturating_mul(self.interval_ns));
        }
        match self.left.checked_sub(size) {
            Some(left) => {
                self.left = left;
                Ok(())
            }
            None => Err(self.next_ns),
        }
    }
}
