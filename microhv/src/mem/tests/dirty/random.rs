//! Random writes of all kinds between rounds, forks and pins.

use proptest::prelude::*;
use ring_abi::types::GuestVa;

use super::super::guest::interrupted;
use super::{FIRST, KERNEL, PAGES, Scene, USER};
use crate::frames::info::TypeWord;
use crate::frames::pte::{D, MARK, P, Pte, RW, US};
use crate::mem::dirty::rounds::Op;
use crate::platform::MachineMemory;

#[derive(Clone, Copy, Debug)]
enum Step {
    Write(bool, usize),
    /// The hypervisor writes at a guest's address.
    CopyTo(usize),
    /// Another domain's copy writes, or a device.
    Grant(usize, bool),
    Map(usize, u64),
    Unmap(usize),
    Fork(u8, bool),
    Pin,
    Round,
    Peek,
    Restart,
    Fault,
    Pending(bool),
}

fn step() -> impl Strategy<Value = Step> {
    let page = || 0..PAGES;
    prop_oneof![
        8 => (any::<bool>(), page()).prop_map(|(is_child, n)| Step::Write(is_child, n)),
        2 => page().prop_map(Step::CopyTo),
        2 => (page(), any::<bool>()).prop_map(|(n, is_kept)| Step::Grant(n, is_kept)),
        3 => (page(), prop_oneof![Just(USER), Just(KERNEL), Just(KERNEL | D), Just(USER | D), Just(P | US)])
            .prop_map(|(n, flags)| Step::Map(n, flags)),
        1 => page().prop_map(Step::Unmap),
        3 => (any::<u8>(), any::<bool>()).prop_map(|(set, writes)| Step::Fork(set, writes)),
        2 => Just(Step::Pin),
        4 => Just(Step::Round),
        2 => Just(Step::Peek),
        1 => Just(Step::Restart),
        1 => Just(Step::Fault),
        1 => any::<bool>().prop_map(Step::Pending),
    ]
}

fn play(scene: &mut Scene, step: Step) {
    match step {
        Step::Write(is_child, n) => scene.write(is_child, n),
        Step::CopyTo(n) => {
            let dom = scene.guest.dom.clone();
            let l4 = scene.guest.tables[0];
            scene.world.hv.new_base(&dom, &dom.vcpus[0], l4).unwrap();
            // Across the end of the page.
            let va = GuestVa::new((((FIRST + n) as u64) << 12) + 4096 - 8);
            let table = scene.guest.tables[3];
            let frame = |scene: &Scene, n| Pte::new(scene.world.peek(table, FIRST + n)).frame();
            let may_be = |n: usize| {
                let entry = Pte::new(scene.world.peek(table, FIRST + n));
                let kind = scene.world.hv.frames.held(entry.frame()).load_kind();
                entry.is_present() && (entry.has(RW) || entry.has(MARK) && !kind.has(TypeWord::COPIED))
            };
            let expected = [n, n + 1].map(may_be);
            let done = scene.world.run(&dom, |cur| cur.copy_to_guest(va, &[1; 16]));
            assert_eq!(done.is_ok(), expected == [true; 2], "a copy to {n}: {expected:?}");
            let pages = [n, n + 1].into_iter().zip(expected).take_while(|(_, is_written)| *is_written);
            for (n, _) in pages {
                let is_known = scene.read_only.contains(&(false, FIRST + n));
                assert!(!is_known, "the hypervisor wrote past copy-on-write");
                scene.written.insert(frame(scene, n).raw());
            }
        }
        Step::Grant(n, is_kept) => {
            let hv = &scene.world.hv;
            let mfn = scene.pages[n];
            let Ok(page) = hv.get_page_writable(mfn, &scene.guest.dom) else { return };
            hv.platform.write_bytes(page.mfn().maddr(), &[1; 8]);
            if is_kept {
                hv.put_page_and_type(page.into_raw());
            } else {
                drop(page);
            }
            scene.written.insert(mfn.raw());
        }
        Step::Map(n, flags) => {
            scene.map(n, flags);
            if flags & RW == 0 {
                scene.read_only.insert((false, FIRST + n));
            }
        }
        Step::Unmap(n) => scene.set(false, n, 0),
        Step::Fork(set, writes) => {
            for n in (0..PAGES).filter(|n| set >> n & 1 != 0) {
                scene.copy(n);
                if writes && !scene.is_pinned {
                    // Another thread of the parent's, before the child runs.
                    let known = core::mem::take(&mut scene.read_only);
                    let l4 = scene.guest.tables[0];
                    scene.world.hv.new_base(&scene.guest.dom, &scene.guest.dom.vcpus[0], l4).unwrap();
                    scene.store(n);
                    scene.read_only = known;
                }
            }
            if !scene.is_pinned {
                scene.pin();
            }
        }
        Step::Pin => scene.pin(),
        Step::Round => scene.round(Op::Clean),
        Step::Peek => scene.round(Op::Peek),
        Step::Restart => {
            scene.track(Op::Off).unwrap();
            scene.world.check();
            scene.begin();
        }
        Step::Fault => scene.fault(),
        Step::Pending(on) => interrupted(&scene.world, on),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]
    #[test]
    fn what_is_reported_is_what_was_written(steps in proptest::collection::vec(step(), 1..80), ends in any::<bool>()) {
        let mut scene = Scene::new();
        scene.begin();
        for step in steps {
            play(&mut scene, step);
            scene.world.check();
        }
        if ends {
            scene.track(Op::Off).unwrap();
            scene.world.check();
        }
        scene.world.hv.platform.identity();
        scene.world.destroy(&scene.guest.dom, true);
        scene.world.check();
    }
}
