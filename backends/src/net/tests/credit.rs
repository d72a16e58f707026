//! How much a frontend may send.

use alloc::rc::Rc;
use core::cell::RefCell;

use proptest::prelude::*;

use super::super::*;
use super::world::*;

const MS: u64 = 1_000_000;

#[test]
fn packet_without_credit_stays_on_the_ring() {
    let mut sender = Sender::new(&Rc::new(RefCell::default()));
    sender.intake.credit = Credit::new(1000, 50_000, 0);
    for _ in 0..3 {
        let piece = sender.piece(0, 900);
        sender.push(&[piece], 0, &[]);
    }
    let _ = sender.front.publish_requests();
    let Sender { queue, intake, batch, memory, .. } = &mut sender;
    let mut take = |now| {
        let taken = queue.take(9, intake, now, batch);
        queue.read_heads(batch, &mut *memory.borrow_mut());
        (taken, batch.ids().len())
    };
    assert_eq!(take(0), (Ok(Taken::NoCredit { until_ns: 50 * MS }), 1));
    assert_eq!(take(50 * MS - 1), (Ok(Taken::NoCredit { until_ns: 50 * MS }), 0));
    assert_eq!(take(50 * MS), (Ok(Taken::NoCredit { until_ns: 100 * MS }), 1));
    assert_eq!(take(100 * MS), (Ok(Taken::Empty), 1));
}

#[test]
fn rates_without_bound_and_the_largest() {
    assert!(Credit::new(0, 50_000, 0).is_none());
    assert!(Credit::new(1, 0, 0).is_none());
    let mut all = Credit::new(u64::MAX, u64::MAX, u64::MAX).unwrap();
    assert_eq!(all.charge(65_535, u64::MAX), Ok(()));
    // The smallest rate lets the largest packet pass after a while.
    let mut least = Credit::new(1, 1, 0).unwrap();
    assert_eq!(least.charge(65_535, 0), Err(1000));
    assert_eq!(least.charge(65_535, 65_534_000), Ok(()));
}

proptest! {
    /// Over five seconds, whatever the sizes and the pauses, as much passes as the rate says, within the burst; and a sender
    /// that always has more to send gets all of it.
    #[test]
    fn rate_is_kept(bytes in 1000u64..2_000_000, sizes in prop::collection::vec(60u64..65_536, 1..20), pause in 0u64..9) {
        let mut credit = Credit::new(bytes, 50_000, 0).unwrap();
        let (mut now, mut sent, mut at) = (0, 0, 0);
        while now < 5000 * MS {
            let size = sizes[at % sizes.len()];
            match credit.charge(size, now) {
                Ok(()) => (sent, at) = (sent + size, at + 1),
                Err(until) => {
                    prop_assert!(until > now);
                    now = until + pause * MS;
                }
            }
        }
        let rate = bytes * 100;
        let burst = bytes + (128 << 10);
        prop_assert!(sent <= rate + burst, "{} of {}", sent, rate);
        prop_assert!(sent + burst >= rate, "{} of {}", sent, rate);
    }
}
