//! Calls with any number and any arguments do no harm.

use core::sync::atomic::Ordering;

use ring_abi::hypercall::*;
use ring_abi::segment::HYPERVISOR_VIRT_START;

use crate::testing::{ARGS, World};

fn number() -> impl proptest::strategy::Strategy<Value = u32> {
    use proptest::prelude::*;
    prop_oneof![8 => 0u32..64, 1 => any::<u32>()]
}

fn argument() -> impl proptest::strategy::Strategy<Value = u64> {
    use proptest::prelude::*;
    prop_oneof![
        4 => 0u64..40,
        4 => (0u64..0x3000).prop_map(|offset| ARGS + offset),
        2 => any::<u64>(),
        1 => Just(HYPERVISOR_VIRT_START),
        1 => (0u64..64).prop_map(|n| u64::MAX - n),
        1 => (0u64..64).prop_map(|n| 1 << n),
    ]
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(96))]
    /// A guest makes any calls with anything in its memory. The hypervisor does not panic, and dom0 is as it was.
    #[test]
    fn wild_calls_harm_nobody_else(
        memory in proptest::collection::vec(argument(), 512),
        calls in proptest::collection::vec((number(), proptest::array::uniform6(argument())), 1..60),
        pending in proptest::bool::ANY,
    ) {
        let world = World::new(256);
        world.hv.platform.identity_end.store(16, Ordering::Relaxed);
        let guest = world.guest(2);
        guest.mm.set_max_pages(32);
        for _ in 0..8 {
            world.hv.populate(&guest, 0, 0).expect("a page");
        }
        let mut before = [0u8; 4096];
        world.dom0.shared_info.read(0, &mut before);
        let dom0_pages = world.dom0.mm.tot_pages();
        world.hv.platform.pending.store(pending, Ordering::Relaxed);
        for (number, args) in calls {
            for (n, word) in memory.iter().enumerate() {
                world.put(ARGS + 8 * n as u64, word);
            }
            // One step only: a guest need not take up a continuation.
            let _ = world.raw(&guest, 0, number, &args);
        }
        let mut after = [0u8; 4096];
        world.dom0.shared_info.read(0, &mut after);
        // If the guest shut itself down, VIRQ_DOM_EXC changed nothing: dom0 has bound no port to it.
        proptest::prop_assert!(before == after);
        proptest::prop_assert_eq!(world.dom0.mm.tot_pages(), dom0_pages);
        proptest::prop_assert!(!world.dom0.shutdown.lock().is_shut_down);
        proptest::prop_assert!(world.hv.platform.events.lock().power.is_empty());
    }

    /// Dom0 makes the toolstack's calls with any command and payload. The hypervisor does not panic.
    #[test]
    fn wild_control_never_panics(
        calls in proptest::collection::vec(
            (0usize..3, 0u32..90, 0u16..4, proptest::collection::vec(argument(), 16)),
            1..40,
        ),
        pending in proptest::bool::ANY,
    ) {
        let world = World::new(256);
        world.hv.platform.identity_end.store(16, Ordering::Relaxed);
        for _ in 0..2 {
            let guest = world.guest(2);
            guest.mm.set_max_pages(32);
            for _ in 0..4 {
                world.hv.populate(&guest, 0, 0).expect("a page");
            }
        }
        world.hv.platform.pending.store(pending, Ordering::Relaxed);
        for (which, command, domain, payload) in calls {
            let (number, version, at) = match which {
                0 => (__HYPERVISOR_DOMCTL, ring_abi::domctl::XEN_DOMCTL_INTERFACE_VERSION, 16),
                1 => (__HYPERVISOR_SYSCTL, ring_abi::sysctl::XEN_SYSCTL_INTERFACE_VERSION, 8),
                _ => (__HYPERVISOR_PLATFORM_OP, ring_abi::platform::XENPF_INTERFACE_VERSION, 8),
            };
            world.put(ARGS, &[command, version, u32::from(domain), 0]);
            for (n, word) in payload.iter().enumerate() {
                world.put(ARGS + at + 8 * n as u64, word);
            }
            let _ = world.raw(&world.dom0, 0, number, &[ARGS]);
            world.settle();
        }
    }
}
