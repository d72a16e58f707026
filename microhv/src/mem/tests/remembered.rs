//! Guests use what a processor still remembers of their page tables. The model of `testing::tlb` fails a test as soon as
//! such a use could do harm.

use core::sync::atomic::Ordering;

use ring_abi::errno::{EFAULT, EINVAL};
use ring_abi::memory::XENMEM_EXCHANGE;
use ring_abi::mmu::*;
use ring_abi::types::{DOMID_SELF, GuestVa, Mfn};
use zerocopy::IntoBytes;

use super::guest::{ARGS, Guest, at, memory, neg, put_exchange};
use super::{World, entry};
use crate::frames::pte::{P, RW, US};
use crate::hypercall::{mmu, mmuext};
use crate::mem::{GrantAddress, TypedRef};
use crate::platform::{GuestMemory, MachineMemory, Settled};
use crate::testing::Remembered;

const SELF: u64 = DOMID_SELF as u64;
/// Where the tests map a page.
const VA: u64 = 0x30_000;

fn map(world: &World, guest: &Guest, va: u64, new: u64) -> i64 {
    world.call(guest, mmu::update_va_mapping, [va, new, 0, 0])
}

fn pin_l1(world: &World, guest: &Guest, mfn: Mfn) -> i64 {
    world.write(
        guest,
        0,
        MmuextOp { cmd: MMUEXT_PIN_L1_TABLE, _pad0: 0, arg1: mfn.raw(), arg2: 0 }.as_bytes(),
    );
    world.call(guest, mmuext::mmuext_op, [ARGS, 1, 0, SELF])
}

/// The hypervisor runs on this CPU now. The CPU has the guest's tables loaded, and the guest's domain says so.
pub(super) fn on_cpu(world: &World, cpu: usize, guest: &Guest) {
    world.hv.platform.on_cpu(cpu);
    world.hv.platform.switch_to(guest.tables[0]);
    guest.dom.dirty_cpus.fetch_or(1 << cpu, Ordering::Relaxed);
}

/// The guest gives two frames away for two others that follow each other.
fn exchange(world: &World, guest: &Guest, frames: [Mfn; 2]) -> i64 {
    put_exchange(world, guest, &frames, 1);
    memory(world, guest, XENMEM_EXCHANGE)
}

/// The tables map a page and then no longer do; the processor still remembers the mapping.
fn remember(world: &World, guest: &Guest, page: Mfn, flags: u64) {
    assert_eq!(map(world, guest, VA, entry(page, flags)), 0);
    assert_eq!(map(world, guest, VA, 0), 0);
}

/// Whether any processor remembers a mapping like that.
fn is_remembered(world: &World, like: impl Fn(&Remembered) -> bool) -> bool {
    world.hv.platform.remembered().iter().any(like)
}

/// Does the same as [`remember`] for a page that the guest writes meanwhile.
fn written_and_unmapped() -> (World, Guest, Mfn) {
    let world = World::new(256);
    let guest = world.guest(1, false);
    let [page] = world.pages(&guest.dom);
    assert_eq!(map(&world, &guest, VA, entry(page, P | RW | US)), 0);
    world.hv.platform.copy_to_guest(Settled::new(), GuestVa::new(VA), &[0; 8]).expect("mapped");
    assert_eq!(map(&world, &guest, VA, 0), 0);
    (world, guest, page)
}

#[test]
fn a_page_that_becomes_a_table_is_forgotten() {
    let (world, guest, page) = written_and_unmapped();
    assert!(is_remembered(&world, |leaf| leaf.va == VA && leaf.frame == page));
    assert_eq!(pin_l1(&world, &guest, page), 0);
    assert!(!is_remembered(&world, |leaf| leaf.va == VA));
}

/// The page becomes one of the LDT when the processor first looks a descriptor up in it.
#[test]
fn a_page_that_becomes_descriptors_is_forgotten() {
    const LDT: u64 = VA + 0x1000;
    let world = World::new(256);
    let guest = world.guest(1, false);
    let [page] = world.pages(&guest.dom);
    remember(&world, &guest, page, P | RW | US);
    assert_eq!(map(&world, &guest, LDT, entry(page, P | US)), 0);
    assert_eq!(world.run(&guest.dom, |cur| world.hv.set_ldt(cur.domain, cur.vcpu, LDT, 512)), Ok(()));
    assert!(is_remembered(&world, |leaf| leaf.va == VA));
    assert!(world.run(&guest.dom, |cur| world.hv.fault_in_ldt(cur.domain, cur.vcpu, 0)));
    assert!(!is_remembered(&world, |leaf| leaf.va == VA));
}

/// Pages that a guest gave away in an exchange become another guest's.
#[test]
fn a_page_that_was_exchanged_is_forgotten_everywhere() {
    let world = World::new(256);
    let (guest, other) = (world.guest(1, false), world.guest(2, false));
    on_cpu(&world, 1, &guest);
    let pages = world.pages::<2>(&guest.dom);
    remember(&world, &guest, pages[0], P | RW | US);
    assert_eq!(exchange(&world, &guest, pages), 0);
    on_cpu(&world, 0, &other);
    while world.hv.frames.held(pages[0]).owner().is_none() {
        world.pages::<1>(&other.dom);
    }
    assert!(!is_remembered(&world, |leaf| leaf.cpu == 1 && leaf.frame == pages[0]));
}

/// A guest loads another base. The hypervisor makes user pages global by itself; the processor forgets these too.
#[test]
fn another_base_forgets_the_former_ones_pages() {
    let world = World::new(256);
    let guest = world.guest(1, false);
    let [page] = world.pages(&guest.dom);
    let second = world.address_space(&guest.dom);
    world.poke(second[3], (ARGS >> 12) as usize, world.peek(guest.tables[3], (ARGS >> 12) as usize));
    assert_eq!(map(&world, &guest, VA, entry(page, P | RW | US)), 0);
    let op = MmuextOp { cmd: MMUEXT_NEW_BASEPTR, _pad0: 0, arg1: second[0].raw(), arg2: 0 };
    world.write(&guest, 0, op.as_bytes());
    assert_eq!(world.call(&guest, mmuext::mmuext_op, [ARGS, 1, 0, SELF]), 0);
    assert_eq!(world.hv.platform.cr3(), Some(second[0]));
    assert_eq!(world.hv.platform.stale(0, None), None);
}

/// A guest asks for a flush of this CPU, or of both. The flush is done when the call returns.
#[test]
fn a_flush_that_is_asked_for_is_done() {
    let world = World::new(256);
    let guest = world.guest(1, false);
    let [page] = world.pages(&guest.dom);
    on_cpu(&world, 1, &guest);
    on_cpu(&world, 0, &guest);
    let both = |va| [0, 1].map(|cpu| world.hv.platform.stale(cpu, va).is_some());
    for (flags, left) in [
        (UVMF_NONE, [true, true]),
        (UVMF_INVLPG, [false, true]),
        (UVMF_TLB_FLUSH, [false, true]),
        (UVMF_INVLPG | UVMF_ALL, [false, false]),
        (UVMF_TLB_FLUSH | UVMF_ALL, [false, false]),
    ] {
        assert_eq!(map(&world, &guest, VA, entry(page, P | RW | US)), 0);
        assert_eq!(world.call(&guest, mmu::update_va_mapping, [VA, 0, flags, 0]), 0);
        assert_eq!(both(Some(VA)), left, "{flags}");
    }
    for (cmd, arg1, left) in [
        (MMUEXT_INVLPG_LOCAL, VA, [false, true]),
        (MMUEXT_TLB_FLUSH_LOCAL, 0, [false, true]),
        (MMUEXT_INVLPG_ALL, VA, [false, false]),
        (MMUEXT_TLB_FLUSH_ALL, 0, [false, false]),
    ] {
        remember(&world, &guest, page, P | RW | US);
        world.write(&guest, 0, MmuextOp { cmd, _pad0: 0, arg1, arg2: 0 }.as_bytes());
        assert_eq!(world.call(&guest, mmuext::mmuext_op, [ARGS, 1, 0, SELF]), 0);
        assert_eq!(both(Some(VA)), left, "{cmd}");
    }
}

/// A page leaves the window on a guest's descriptors before the guest may write to the page again.
#[test]
fn a_window_on_descriptors_is_forgotten() {
    let world = World::new(256);
    let guest = world.guest(1, false);
    let [page, other] = world.pages(&guest.dom);
    let gdt =
        |frames: &[Mfn]| world.hv.set_gdt(&guest.dom, &guest.dom.vcpus[0], frames, frames.len() as u32 * 512);
    on_cpu(&world, 0, &guest);
    world.hv.platform.set_window(Some(&guest.dom.vcpus[0].window));
    assert_eq!(gdt(&[page]), Ok(()));
    assert_eq!(gdt(&[other]), Ok(()));
    assert!(!world.hv.platform.window(0).contains(&page));
    assert_eq!(map(&world, &guest, VA, entry(page, P | US)), 0);
    assert_eq!(world.run(&guest.dom, |cur| world.hv.set_ldt(cur.domain, cur.vcpu, VA, 512)), Ok(()));
    assert!(world.run(&guest.dom, |cur| world.hv.fault_in_ldt(cur.domain, cur.vcpu, 0)));
    assert!(world.hv.platform.window(0).contains(&page));
    assert_eq!(world.run(&guest.dom, |cur| world.hv.set_ldt(cur.domain, cur.vcpu, VA, 0)), Ok(()));
    assert!(!world.hv.platform.window(0).contains(&page));
}

/// A guest gives away a page that CPU 1 still remembers. On CPU 0 the page becomes another guest's.
#[test]
fn a_page_that_becomes_anothers_is_forgotten_everywhere() {
    let world = World::new(256);
    let (guest, other) = (world.guest(1, false), world.guest(2, false));
    for write in [0, RW] {
        on_cpu(&world, 1, &guest);
        let [page] = world.pages(&guest.dom);
        remember(&world, &guest, page, P | write | US);
        assert_eq!(world.hv.release_page(&guest.dom, page), Ok(()));
        assert!(is_remembered(&world, |leaf| leaf.cpu == 1 && leaf.frame == page));
        on_cpu(&world, 0, &other);
        while world.hv.frames.held(page).owner().is_none() {
            world.pages::<1>(&other.dom);
        }
        world.hv.platform.settle_tlb();
        assert!(!is_remembered(&world, |leaf| leaf.cpu == 1 && leaf.frame == page));
    }
}

/// A guest maps a granted page, overwrites the entry, and its CPU remembers the page. On another CPU the owner makes the
/// page a table, for which the hypervisor flushes only the CPUs that have the owner's tables.
#[test]
fn anothers_page_is_forgotten_when_its_entry_goes() {
    let world = World::new(256);
    let (owner, taker) = (world.guest(1, false), world.guest(2, false));
    let [page] = world.pages(&owner.dom);
    on_cpu(&world, 0, &owner);
    on_cpu(&world, 1, &taker);
    let held = world.hv.get_page_writable(page, &owner.dom).map(TypedRef::into_raw);
    assert_eq!(held, Ok(page));
    let at = GrantAddress::Virtual(GuestVa::new(VA));
    assert_eq!(
        world.run(&taker.dom, |cur| world.hv.map_grant_frame(cur.domain, cur.vcpu, at, page, false, US)),
        Ok(())
    );
    assert_eq!(map(&world, &taker, VA, 0), 0);
    on_cpu(&world, 0, &owner);
    assert_eq!(pin_l1(&world, &owner, page), 0);
    assert!(!is_remembered(&world, |leaf| leaf.frame == page && leaf.writable));
}

/// A table leaves its parent while another vCPU of the guest runs. A flush before the entry is gone is not enough, since the
/// other CPU would take the table in again.
#[test]
fn a_table_that_leaves_its_parent_is_forgotten_everywhere() {
    let world = World::new(256);
    let guest = world.guest(1, false);
    let [table, page] = world.pages(&guest.dom);
    let [_, _, l2, _] = guest.tables;
    world.poke(table, 0, entry(page, P | RW | US));
    on_cpu(&world, 1, &guest);
    on_cpu(&world, 0, &guest);
    assert_eq!(world.mmu(&guest, &[(at(l2, 1), entry(table, P | RW | US))], SELF as u32), 0);
    let know = || [0, 1].map(|cpu| world.hv.platform.stale(cpu, Some(0x20_0000)));
    let remembered = world.hv.platform.remembered();
    assert_eq!(remembered.iter().filter(|leaf| leaf.frame == page).count(), 2, "both CPUs can get there");
    assert_eq!(know(), [None, None]);
    assert_eq!(world.mmu(&guest, &[(at(l2, 1), 0)], SELF as u32), 0);
    assert_eq!(know(), [None, None]);
}

/// One vCPU of a guest remembers a table, and another vCPU takes it out of its parent. Then the hypervisor, the guest or the
/// control domain may write to the page.
#[test]
fn a_table_that_becomes_a_page_is_forgotten_everywhere() {
    for how in 0..3 {
        let world = World::new(256);
        let (control, guest) = (world.guest(0, true), world.guest(1, false));
        let [table] = world.pages(&guest.dom);
        let [_, _, l2, _] = guest.tables;
        on_cpu(&world, 1, &guest);
        on_cpu(&world, 0, &guest);
        assert_eq!(world.mmu(&guest, &[(at(l2, 1), entry(table, P | RW | US))], SELF as u32), 0);
        assert_eq!(world.mmu(&guest, &[(at(l2, 1), 0)], SELF as u32), 0);
        match how {
            0 => assert!(world.hv.get_page_writable(table, &guest.dom).is_ok()),
            1 => assert_eq!(map(&world, &guest, VA, entry(table, P | RW | US)), 0),
            _ => {
                on_cpu(&world, 2, &control);
                let args = [VA, entry(table, P | RW | US), 0, guest.dom.id.raw().into()];
                assert_eq!(world.call(&control, mmu::update_va_mapping_otherdomain, args), 0);
            }
        }
        world.hv.platform.settle_tlb();
    }
}

/// An exchange takes the page and fails, so the guest gets the page back. The mark that the page may be remembered stays.
#[test]
fn a_page_that_an_exchange_gives_back_is_still_remembered() {
    let (world, guest, page) = written_and_unmapped();
    assert_eq!(exchange(&world, &guest, [page, guest.tables[3]]), neg(EINVAL), "a table is referred to");
    assert_eq!(pin_l1(&world, &guest, page), 0);
    assert!(!is_remembered(&world, |leaf| leaf.va == VA && leaf.writable));
    world.check();
}

/// The first address that a guest's second level 1 table translates.
const REGION: u64 = 0x20_0000;

/// A guest with a second level 1 table, and three pages: this table, the page mapped right below [`REGION`], and another.
fn with_a_region() -> (World, Guest, [Mfn; 3]) {
    let world = World::new(256);
    let guest = world.guest(1, false);
    let pages @ [table, last, _] = world.pages(&guest.dom);
    let l2 = guest.tables[2];
    assert_eq!(world.mmu(&guest, &[(at(l2, 1), entry(table, P | RW | US))], SELF as u32), 0);
    assert_eq!(map(&world, &guest, REGION - 0x1000, entry(last, P | RW | US)), 0);
    (world, guest, pages)
}

/// A batch takes a table out of its parent, then writes an entry into the former table, which nobody checks any more. The
/// batch's third request lies where only a processor that remembers the table would find it.
#[test]
fn requests_are_read_through_the_tables_as_they_are() {
    let (world, guest, [table, last, other]) = with_a_region();
    let [_, _, l2, l1] = guest.tables;
    let requests = [(at(l2, 1), 0), (at(table, 0), entry(other, P | RW | US))];
    for (n, (ptr, val)) in requests.into_iter().enumerate() {
        let at = 0xfe0 + n as u64 * 16;
        let place = ring_abi::types::Maddr::new(last.raw() * 4096 + at);
        world.hv.platform.write_bytes(place, MmuUpdate { ptr, val }.as_bytes());
    }
    let hidden = MmuUpdate { ptr: at(l1, 0x40), val: entry(last, P) };
    world.hv.platform.write_bytes(ring_abi::types::Maddr::new(other.raw() * 4096), hidden.as_bytes());
    let batch = [REGION - 0x20, 3, 0, SELF];
    world.hv.platform.set_adversary(1);
    assert_eq!(world.call(&guest, mmu::mmu_update, batch), neg(EFAULT), "nothing is mapped there any more");
    assert_eq!(world.peek(table, 0), entry(other, P | RW | US), "the first two requests were done");
    assert_eq!(world.peek(l1, 0x40), 0);
    world.check();
}

/// The hypervisor reads eight requests together. The first of them unmaps the page in which the ninth lies.
#[test]
fn no_request_is_read_while_a_flush_is_owed() {
    let (world, guest, [_, last, other]) = with_a_region();
    let [_, _, l2, l1] = guest.tables;
    assert_eq!(map(&world, &guest, REGION, entry(other, P | RW | US)), 0);
    let put = |page: Mfn, offset: u64, ptr: u64, val: u64| {
        let place = ring_abi::types::Maddr::new(page.raw() * 4096 + offset);
        world.hv.platform.write_bytes(place, MmuUpdate { ptr, val }.as_bytes());
    };
    put(last, 0xf80, at(l2, 1), 0);
    for n in 1..8 {
        put(last, 0xf80 + n * 16, at(l1, 0x41), 0);
    }
    put(other, 0, at(l1, 0x40), entry(last, P));
    world.hv.platform.set_adversary(1);
    assert_eq!(world.call(&guest, mmu::mmu_update, [REGION - 0x80, 9, 0, SELF]), neg(EFAULT));
    assert_eq!((world.peek(l2, 1), world.peek(l1, 0x40)), (0, 0));
    world.check();
}

/// A vCPU has two bases, and giving back the first is interrupted.
#[test]
fn both_bases_of_a_vcpu_are_given_back() {
    let world = World::new(256);
    let free = world.hv.frames.free_pages();
    let guest = world.guest(1, false);
    let user: [Mfn; 4] = world.pages(&guest.dom);
    for (slot, table) in [(0, user[1]), (1, user[2]), (2, user[3])] {
        world.poke(user[0], slot, entry(table, P | RW | US));
        assert_eq!(
            world.mmu(&guest, &[(at(guest.tables[0], slot + 1), entry(table, P | RW | US))], SELF as u32),
            0
        );
    }
    let bases = (guest.tables[0], Some(user[0]));
    assert_eq!(world.hv.install_bases(&guest.dom, &guest.dom.vcpus[0], bases.0, bases.1), Ok(()));
    world.check();
    world.destroy(&guest.dom, true);
    world.check();
    assert_eq!(world.hv.frames.free_pages(), free, "all frames came back");
}
