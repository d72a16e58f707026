//! A capture at the switch: each frame is seen once, as it comes in, with what dom0 sees of it.

use alloc::vec::Vec;

use super::{PortId, Switch, Verdict};
use crate::net::Head;
use crate::net::capture::Capture;

/// What is captured, and where it is kept.
pub struct Tap {
    capture: Capture,
    /// Frames that come in by one of these ports, or go out; all frames if there is none.
    ports: Vec<PortId>,
    /// What is added to the switch's time for the time since 1970.
    since_1970_ns: u64,
}

impl Tap {
    /// A tap of frames at `ports`, or of all.
    #[must_use]
    pub fn new(capture: Capture, ports: Vec<PortId>, since_1970_ns: u64) -> Tap {
        Tap { capture, ports, since_1970_ns }
    }

    /// What was captured.
    pub fn capture(&mut self) -> &mut Capture {
        &mut self.capture
    }

    /// What was captured, when the tap has ended.
    #[must_use]
    pub fn into_capture(self) -> Capture {
        self.capture
    }

    /// The ports; none: all.
    #[must_use]
    pub fn ports(&self) -> &[PortId] {
        &self.ports
    }
}

impl Switch {
    /// Begins to capture, or ends; gives the former tap.
    pub fn set_tap(&mut self, tap: Option<Tap>) -> Option<Tap> {
        core::mem::replace(&mut self.tap, tap.map(alloc::boxed::Box::new)).map(|tap| *tap)
    }

    /// The tap, if there is one.
    pub fn tap(&mut self) -> Option<&mut Tap> {
        self.tap.as_deref_mut()
    }

    /// A frame that came in by the port `from` is captured, unless it passed by none of the ports.
    #[cold]
    #[inline(never)]
    pub(super) fn capture(&mut self, now_ns: u64, from: PortId, head: &Head<'_>, verdict: &Verdict) {
        let Some(mut tap) = self.tap.take() else { return };
        let is_tapped = |port: PortId| tap.ports.contains(&port);
        let is_seen = tap.ports.is_empty()
            || is_tapped(from)
            || match verdict {
                Verdict::Drop(_) => false,
                Verdict::One(target) => is_tapped(target.port),
                Verdict::Many(targets) => targets.iter(self).any(|target| is_tapped(target.port)),
            };
        if is_seen {
            tap.capture.packet(now_ns.wrapping_add(tap.since_1970_ns), head.bytes(), head.frame_len());
        }
        self.tap = Some(tap);
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Bench, between};
    use super::*;
    use crate::net::MacAddr;
    use crate::net::headers::testing::station;
    use crate::net::switch::Reason;

    /// Packets captured so far, of which some may have given way.
    fn seen(bench: &mut Bench) -> u64 {
        bench.switch.tap().map_or(0, |tap| tap.capture().packets())
    }

    #[test]
    fn a_tap_sees_each_frame_once() {
        let mut bench = Bench::new();
        let (one, two, three) = (bench.vif(bench.a, 1), bench.vif(bench.a, 2), bench.vif(bench.a, 3));
        let tap =
            |ports: &[PortId]| Tap::new(Capture::new(4096, 256).unwrap(), ports.to_vec(), 1_000_000_000_000);
        let send = |bench: &mut Bench| {
            bench.ports(one, &between(1, station(2))).unwrap();
            bench.ports(two, &between(2, MacAddr::BROADCAST)).unwrap();
            bench.ports(three, &between(3, station(1))).unwrap();
            assert_eq!(bench.ports(three, &between(1, station(2))), Err(Reason::SpoofedMac));
        };
        send(&mut bench);
        assert_eq!(seen(&mut bench), 0);
        for (ports, want) in [(&[][..], 4), (&[one], 3), (&[two], 2), (&[three], 3), (&[one, two], 3)] {
            assert!(bench.switch.set_tap(Some(tap(ports))).is_none());
            send(&mut bench);
            assert_eq!(seen(&mut bench), want, "{ports:?}");
            let mut out = Vec::new();
            bench.switch.set_tap(None).unwrap().capture().take(usize::MAX, &mut out);
            // The bench's clock is at one second.
            assert_eq!(out[..4], 1001u32.to_le_bytes());
        }
    }
}
