//! Hypercalls on page tables, as a guest makes them.

use core::sync::atomic::Ordering;

use ring_abi::errno::{EBUSY, EFAULT, EINVAL, ENOSYS, EPERM, ESRCH};
use ring_abi::guest_context::CpuUserRegs;
use ring_abi::mmu::*;
use ring_abi::types::{DOMID_IO, DOMID_SELF, DOMID_XEN, GuestVa, Mfn, Pfn};
use zerocopy::IntoBytes;

use super::guest::*;
use super::{World, entry};
use crate::frames::PageType;
use crate::frames::pte::{A, D, G, GUEST_KERNEL, P, RW, US};
use crate::hypercall::mmu;
use crate::mem::GrantAddress;

#[test]
fn mmu_update_counts_what_it_did() {
    let world = World::new(256);
    let guest = world.guest(1, false);
    let l1 = guest.tables[3];
    let good = (at(l1, 40), entry(guest.page, P | RW));
    assert_eq!(world.mmu(&guest, &[], SELF), 0);
    assert_eq!(world.mmu(&guest, &[good, (at(l1, 41), entry(l1, P | RW)), good], SELF), neg(EBUSY));
    assert_eq!(world.word(&guest, 0xff0) as u32, 1);
    assert_eq!(world.peek(l1, 40), entry(guest.page, P | RW | US | GUEST_KERNEL));
    assert_eq!(world.mmu(&guest, &[(at(l1, 40) | 4, 0)], SELF), neg(ENOSYS), "no such command");
    assert_eq!(world.mmu(&guest, &[(at(Mfn::new(1 << 40), 0), 0)], SELF), neg(EINVAL));
    assert_eq!(world.call(&guest, mmu::mmu_update, [0x40_0000, 1, 0, SELF.into()]), neg(EFAULT));
    assert_eq!(world.call(&guest, mmu::mmu_update, [u64::MAX - 3, 2, 0, SELF.into()]), neg(EFAULT));
    // The array ends at a page that is not mapped: the requests before that page are done.
    for n in 0..3u64 {
        world.write(&guest, 0xfd0 + n as usize * 16, MmuUpdate { ptr: good.0, val: good.1 }.as_bytes());
    }
    assert_eq!(world.call(&guest, mmu::mmu_update, [ARGS + 0xfd0, 4, ARGS, SELF.into()]), neg(EFAULT));
    assert_eq!(world.word(&guest, 0) as u32, 3);
    assert_eq!(world.mmu(&guest, &[good; 100], SELF), 0, "more than one chunk");
    assert_eq!(world.word(&guest, 0xff0) as u32, 100);
    world.check();
    // The accessed and dirty bits stay if the request says so.
    world.poke(l1, 40, world.peek(l1, 40) | A | D);
    assert_eq!(world.mmu(&guest, &[(good.0 | MMU_PT_UPDATE_PRESERVE_AD, good.1)], SELF), 0);
    assert_eq!(world.peek(l1, 40) & (A | D), A | D);
    assert_eq!(world.mmu(&guest, &[good], SELF), 0);
    assert_eq!(world.peek(l1, 40) & (A | D), 0);
    assert_eq!(world.mmu(&guest, &[(good.0 | MMU_PT_UPDATE_PRESERVE_AD, good.1 | D)], SELF), 0);
    assert_eq!(world.peek(l1, 40) & (A | D), D, "new ones are added");
    // A page that is no table is written without any check.
    assert_eq!(world.mmu(&guest, &[(at(l1, 40), 0), (at(guest.page, 7), 0x1234_5678)], SELF), 0);
    assert_eq!(world.peek(guest.page, 7), 0x1234_5678);
    world.check();
}

#[test]
fn the_m2p_is_set_for_own_frames_alone() {
    let world = World::new(256);
    let (guest, other) = (world.guest(1, false), world.guest(2, false));
    let m2p = |mfn: Mfn, pfn| (mfn.raw() << 12 | MMU_MACHPHYS_UPDATE, pfn);
    assert_eq!(world.mmu(&guest, &[m2p(guest.page, 77)], SELF), 0);
    assert_eq!(world.hv.platform.m2p(guest.page), Some(Pfn::new(77)));
    assert_eq!(world.mmu(&guest, &[m2p(other.page, 77)], SELF), neg(EINVAL));
    assert_eq!(world.hv.platform.m2p(other.page), None);
}

#[test]
fn foreign_frames_need_privilege() {
    let world = World::new(256);
    let (guest, dom0) = (world.guest(1, false), world.guest(0, true));
    let map = |g: &Guest, frame: Mfn| (at(g.tables[3], 40), entry(frame, P | RW));
    assert_eq!(world.mmu(&guest, &[map(&guest, dom0.page)], 0), neg(EPERM));
    assert_eq!(world.mmu(&guest, &[map(&guest, dom0.page)], SELF), neg(EPERM));
    assert_eq!(world.mmu(&dom0, &[map(&dom0, guest.page)], 9), neg(ESRCH));
    assert_eq!(world.mmu(&dom0, &[map(&dom0, guest.page)], 1), 0);
    world.check();
    // While dom0 maps the page for writing, its owner cannot make it a table.
    assert_eq!(world.ext(&guest, &[(MMUEXT_PIN_L1_TABLE, guest.page.raw(), 0)], DOMID_SELF), neg(EINVAL));
    let before = world.hv.platform.flushes.load(Ordering::Relaxed);
    assert_eq!(world.mmu(&dom0, &[(at(dom0.tables[3], 40), 0)], SELF), 0);
    assert!(world.hv.platform.flushes.load(Ordering::Relaxed) > before, "no TLB remembers the write access");
    assert_eq!(world.ext(&guest, &[(MMUEXT_PIN_L1_TABLE, guest.page.raw(), 0)], DOMID_SELF), 0);
    // The high half of the argument names whose tables are changed.
    let whose = (1 + 1) << 16 | 1;
    let [extra] = world.pages(&guest.dom);
    let update = (at(guest.tables[3], 44), entry(extra, P));
    assert_eq!(world.mmu(&dom0, &[update], whose), 0);
    assert_eq!(world.mmu(&guest, &[update], 1 << 16 | SELF), neg(EPERM));
    assert_eq!(world.mmu(&dom0, &[(update.0, 0)], whose), 0);
    assert_eq!(world.mmu(&dom0, &[update], whose & !0xffff | SELF), neg(EPERM), "d1's frame as d0's");
    assert_eq!(world.mmu(&dom0, &[update], u32::from(DOMID_IO) + 1 << 16), neg(EINVAL));
    assert_eq!(world.mmu(&guest, &[update], DOMID_XEN.into()), neg(EPERM));
    world.check();
    world.destroy(&guest.dom, true);
    world.check();
}

#[test]
fn update_va_mapping_finds_the_entry() {
    let world = World::new(256);
    let guest = world.guest(1, false);
    let update = |va, e, flags| world.call(&guest, mmu::update_va_mapping, [va, e, flags, 0]);
    assert_eq!(update(FREE_VA, entry(guest.page, P | US), UVMF_NONE), 0);
    assert_eq!(world.peek(guest.tables[3], FREE_SLOT), entry(guest.page, P | US | G));
    for va in [1 << 30, 1 << 47, 0xffff_8000_0000_0000, 0xffff_87ff_ffff_f000, u64::MAX] {
        assert_eq!(update(va, 0, UVMF_NONE), neg(EINVAL), "{va:#x}");
    }
    let flushes = || world.hv.platform.flushes.load(Ordering::Relaxed);
    let before = flushes();
    assert_eq!(update(FREE_VA, 0, UVMF_INVLPG), 0);
    assert_eq!(world.hv.platform.events.lock().invlpg, [GuestVa::new(FREE_VA)]);
    assert_eq!(update(FREE_VA, 0, UVMF_TLB_FLUSH | UVMF_LOCAL), 0);
    assert_eq!(update(FREE_VA, 0, UVMF_TLB_FLUSH | UVMF_ALL), 0);
    assert_eq!(flushes(), before + 2);
    world.check();
}

#[test]
fn base_pointers_are_switched() {
    let world = World::new(256);
    let guest = world.guest(1, false);
    let [old, l3, ..] = guest.tables;
    let [new, user] = world.pages(&guest.dom);
    for table in [new, user] {
        world.poke(table, 0, entry(l3, P | RW));
    }
    // GRUB leaves its tables in one such call.
    let ops = [
        (MMUEXT_PIN_L4_TABLE, new.raw(), 0),
        (MMUEXT_NEW_BASEPTR, new.raw(), 0),
        (MMUEXT_UNPIN_TABLE, old.raw(), 0),
    ];
    assert_eq!(world.ext(&guest, &ops, DOMID_SELF), neg(EINVAL), "the old one was not pinned");
    assert_eq!(world.word(&guest, 0xff0) as u32, 2);
    assert_eq!(guest.dom.vcpus[0].cr3_kernel.get(), Some(new));
    assert_eq!(world.hv.platform.cr3(), Some(new));
    assert_eq!(world.hv.frames.held(old).page_type().1, 0);
    world.check();
    assert_eq!(world.ext(&guest, &[(MMUEXT_NEW_USER_BASEPTR, user.raw(), 0)], DOMID_SELF), 0);
    assert_eq!(world.ext(&guest, &[(MMUEXT_NEW_USER_BASEPTR, user.raw(), 0)], DOMID_SELF), 0, "again");
    world.check();
    assert_eq!(world.ext(&guest, &[(MMUEXT_NEW_USER_BASEPTR, guest.page.raw(), 0)], DOMID_SELF), 0);
    assert_eq!(world.hv.frames.held(user).page_type().1, 0);
    assert_eq!(world.ext(&guest, &[(MMUEXT_NEW_USER_BASEPTR, 0, 0)], DOMID_SELF), 0);
    assert_eq!(guest.dom.vcpus[0].cr3_user.get(), None);
    for bad in [l3, Mfn::new(0), Mfn::new(u64::MAX >> 12)] {
        assert_eq!(world.ext(&guest, &[(MMUEXT_NEW_BASEPTR, bad.raw(), 0)], DOMID_SELF), neg(EINVAL));
    }
    world.check();
    world.destroy(&guest.dom, true);
    world.check();
}

#[test]
fn a_move_to_cr3_is_a_new_base_pointer() {
    let world = World::new(256);
    let guest = world.guest(1, false);
    let [old, l3, ..] = guest.tables;
    let [new] = world.pages(&guest.dom);
    world.poke(new, 0, entry(l3, P | RW));
    world.write(&guest, 0, &[0x0f, 0x22, 0xd8]); // mov cr3, rax
    let load = |mfn: Mfn| {
        let mut regs = CpuUserRegs { rip: ARGS, rax: mfn.raw() << 12, ..CpuUserRegs::default() };
        let outcome = world.run_with(&guest.dom, &mut regs, |cur| {
            crate::emul::emulate(cur, crate::traps::TrapVector::PROTECTION)
        });
        (outcome, regs.rip - ARGS)
    };
    use crate::emul::Emulated::{Done, NotEmulated};
    assert_eq!(load(new), (Done, 3));
    assert_eq!(guest.dom.vcpus[0].cr3_kernel.get(), Some(new));
    assert_eq!(world.hv.platform.cr3(), Some(new));
    for bad in [l3, guest.tables[3], Mfn::new(1 << 30)] {
        assert_eq!(load(bad), (NotEmulated, 0));
        assert_eq!(guest.dom.vcpus[0].cr3_kernel.get(), Some(new));
    }
    assert_eq!(load(old), (Done, 3));
    world.check();
}

#[test]
fn a_set_of_vcpus_must_be_there() {
    let world = World::new(256);
    let guest = world.guest(1, false);
    for op in [MMUEXT_TLB_FLUSH_MULTI, MMUEXT_INVLPG_MULTI] {
        assert_eq!(world.ext(&guest, &[(op, FREE_VA, ARGS)], DOMID_SELF), 0);
        assert_eq!(world.ext(&guest, &[(op, FREE_VA, 0x40_0000)], DOMID_SELF), neg(EINVAL));
    }
    for op in [MMUEXT_TLB_FLUSH_ALL, MMUEXT_INVLPG_ALL, MMUEXT_TLB_FLUSH_LOCAL] {
        assert_eq!(world.ext(&guest, &[(op, FREE_VA, 0x40_0000)], DOMID_SELF), 0);
    }
}

#[test]
fn batches_continue_and_finish_what_they_began() {
    let world = World::new(512);
    let guest = world.guest(1, false);
    let [l4, l3, ..] = guest.tables;
    let tree = world.address_space(&guest.dom);
    world.hv.platform.pending.store(true, Ordering::Relaxed);
    assert_eq!(
        world.ext(
            &guest,
            &[(MMUEXT_PIN_L3_TABLE, tree[1].raw(), 0), (MMUEXT_UNPIN_TABLE, tree[1].raw(), 0)],
            DOMID_SELF
        ),
        0
    );
    assert_eq!(world.hv.frames.held(tree[1]).page_type().1, 0, "taken apart before the call returned");
    let install = (at(l4, 5), entry(tree[1], P | RW));
    let bad = (at(l4, 6), entry(l3, P | 1 << 8));
    assert_eq!(world.mmu(&guest, &[install, (at(l4, 5), 0), install, bad], SELF), neg(EINVAL));
    assert_eq!(world.word(&guest, 0xff0) as u32, 3);
    assert_eq!(world.mmu(&guest, &[(at(l4, 5), 0), bad], SELF), neg(EINVAL));
    assert_eq!(world.hv.frames.held(tree[1]).page_type().1, 0);
    world.hv.platform.pending.store(false, Ordering::Relaxed);
    world.check();
    assert_eq!(world.ext(&guest, &[(14, 0, 0)], DOMID_SELF), neg(ENOSYS));
    assert_eq!(world.ext(&guest, &[(u32::MAX, 0, 0)], DOMID_SELF), neg(ENOSYS));
    assert_eq!(world.ext(&guest, &[(MMUEXT_CLEAR_PAGE, l4.raw(), 0)], DOMID_SELF), neg(EBUSY));
    world.poke(guest.page, 1, 5);
    assert_eq!(world.ext(&guest, &[(MMUEXT_COPY_PAGE, tree[0].raw(), guest.page.raw())], DOMID_SELF), 0);
    assert_eq!(world.peek(tree[0], 1), 5);
    assert_eq!(world.ext(&guest, &[(MMUEXT_CLEAR_PAGE, tree[0].raw(), 0)], DOMID_SELF), 0);
    assert_eq!(world.peek(tree[0], 1), 0);
}

#[test]
fn dom0_builds_and_pins_for_another() {
    let world = World::new(512);
    let (dom0, guest) = (world.guest(0, true), world.guest(1, false));
    let tree = world.address_space(&guest.dom);
    assert_eq!(world.ext(&dom0, &[(MMUEXT_PIN_L4_TABLE, tree[0].raw(), 0)], 1), 0);
    assert_eq!(world.hv.frames.held(tree[0]).page_type(), (PageType::L4, 1));
    assert_eq!(world.ext(&dom0, &[(MMUEXT_NEW_BASEPTR, tree[0].raw(), 0)], 1), neg(EPERM));
    assert_eq!(world.ext(&guest, &[(MMUEXT_PIN_L4_TABLE, dom0.page.raw(), 0)], 0), neg(EPERM));
    assert_eq!(world.ext(&dom0, &[(MMUEXT_UNPIN_TABLE, tree[0].raw(), 0)], 1), 0);
    world.check();
}

#[test]
fn writes_to_mapped_tables_are_emulated() {
    let world = World::new(256);
    let guest = world.guest(1, false);
    let l1 = guest.tables[3];
    use crate::emul::table_writes;
    // The L1 is mapped at slot 3 of itself; code is in the arguments' page.
    let target = (3 << 12) + FREE_SLOT as u64 * 8;
    let fault = |code: &[u8], regs: &mut CpuUserRegs| {
        world.write(&guest, 0, code);
        regs.rip = ARGS;
        regs.rdi = target;
        let handled = world.run_with(&guest.dom, regs, |cur| {
            table_writes::may_be(cur, target, 3) && table_writes::emulate(cur, target)
        });
        world.check();
        handled
    };
    let mut regs: CpuUserRegs = zerocopy::FromZeros::new_zeroed();
    let mov = [0x48, 0x89, 0x37]; // mov %rsi,(%rdi)
    regs.rsi = entry(guest.page, P | RW);
    assert!(!fault(&mov, &mut regs), "without the assist it is the guest's");
    guest.dom.assist.store(1 << 2, Ordering::Relaxed);
    assert!(fault(&mov, &mut regs));
    assert_eq!(regs.rip, ARGS + 3);
    let stored = entry(guest.page, P | RW | US | GUEST_KERNEL);
    assert_eq!(world.peek(l1, FREE_SLOT), stored);
    // xchg %rsi,(%rdi)
    regs.rsi = 0;
    assert!(fault(&[0x48, 0x87, 0x37], &mut regs));
    assert_eq!((regs.rsi, world.peek(l1, FREE_SLOT)), (stored, 0));
    // lock andb $0xfd,(%rdi): takes write access away
    world
        .run(&guest.dom, |cur| mmu::update_va_mapping(cur, &[FREE_VA, stored, 0, 0, 0, 0]))
        .expect("own page");
    assert!(fault(&[0xf0, 0x80, 0x27, 0xfd], &mut regs));
    assert_eq!(world.peek(l1, FREE_SLOT), stored & !RW);
    // An entry that `mmu_update` refuses is refused here too.
    regs.rsi = entry(l1, P | RW);
    assert!(!fault(&mov, &mut regs));
    assert_eq!(world.peek(l1, FREE_SLOT), stored & !RW);
    // The fault is not at the instruction's operand; then the page is no level 1 table.
    regs.rsi = 0;
    assert!(!fault(&[0x48, 0x89, 0x77, 0x08], &mut regs));
    let l2_target = 2 << 12;
    let handled = world.run_with(&guest.dom, &mut regs, |cur| {
        table_writes::may_be(cur, l2_target, 3) && table_writes::emulate(cur, l2_target)
    });
    assert!(!handled);
    for (va, code) in [(target, 1), (target, 2), (target, 0x13), (target, 0xb), (0xffff_8000_0000_0000, 3)] {
        let handled = world.run_with(&guest.dom, &mut regs, |cur| {
            table_writes::may_be(cur, va, code) && table_writes::emulate(cur, va)
        });
        assert!(!handled, "{va:#x} {code:#x}");
    }
}

#[test]
fn a_grant_page_of_the_caller_itself_is_no_special_case() {
    let world = World::new(256);
    let guest = world.guest(1, false);
    world.run(&guest.dom, |cur| {
        let frame = world.hv.get_page(guest.page, &guest.dom).expect("own page").into_raw();
        let place = GrantAddress::Virtual(GuestVa::new(FREE_VA));
        world.hv.map_grant_frame(cur.domain, cur.vcpu, place, frame, true, u64::MAX).expect("a slot");
        assert_eq!(world.peek(guest.tables[3], FREE_SLOT), entry(frame, P | A | D | US | G | 0xe00));
        world
            .hv
            .replace_grant_frame(cur.domain, cur.vcpu, place, frame, true, GuestVa::new(ARGS))
            .expect("mapped");
        world.hv.flush_grants(&guest.dom);
        world.hv.put_page(frame);
        assert_eq!(world.peek(guest.tables[3], (ARGS >> 12) as usize), 0);
        assert_eq!(world.peek(guest.tables[3], FREE_SLOT) >> 12 & 0xff_ffff, guest.args.raw());
    });
    world.check();
}
