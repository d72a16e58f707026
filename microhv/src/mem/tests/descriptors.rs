//! Pages of descriptors: which pages may become such, and how they are given back.

use ring_abi::errno::EINVAL;
use ring_abi::mmu::*;
use ring_abi::types::{DOMID_SELF, Maddr};

use super::guest::*;
use super::{World, entry};
use crate::domain::{DomainConfig, Vcpu};
use crate::frames::PageType;
use crate::frames::pte::{P, Pte, RW};
use crate::mem::MemError as E;
use crate::mem::{FrameOwner, Update};

#[test]
fn descriptor_pages_exclude_tables_and_writing() {
    let world = World::new(128);
    let dom = world.domain(1, false, 64);
    let [l4, _, _, l1] = world.address_space(&dom);
    let [gdt, bad] = world.pages(&dom);
    world.poke(gdt, 1, 0x00af_9b00_0000_ffff);
    world.poke(bad, 511, 1 << 47 | 9 << 40); // a TSS
    world.poke(l1, 8, entry(gdt, P | RW));
    world.hv.pin_table(&dom, l4, 4).expect("valid");
    let vcpu = &dom.vcpus[0];
    assert_eq!(world.hv.set_gdt(&dom, vcpu, &[gdt], 512), Err(E::Invalid), "mapped for writing");
    let own = FrameOwner::Domain(&dom);
    world
        .hv
        .lock_tables(&dom)
        .update_leaf(l1, 8, Pte::new(entry(gdt, P)), own, Update::Plain)
        .expect("read-only");
    assert_eq!(world.hv.set_gdt(&dom, vcpu, &[gdt, bad], 513), Err(E::Invalid));
    world.check();
    assert_eq!(world.hv.set_gdt(&dom, vcpu, &[gdt], 513), Err(E::Invalid), "too few frames");
    assert_eq!(world.hv.set_gdt(&dom, vcpu, &[gdt; 15], 7169), Err(E::Invalid), "the hypervisor's entries");
    world.hv.set_gdt(&dom, vcpu, &[gdt], 512).expect("descriptors");
    assert_eq!(world.peek(gdt, 1), 0x00af_fb00_0000_ffff);
    assert!(world.hv.platform.events.lock().descriptor_reloads == 0, "the vCPU that runs here is another");
    world.check();
    let at = Maddr::new(gdt.raw() * 4096 + 16);
    assert_eq!(world.hv.update_descriptor(&dom, at, 1 << 47 | 9 << 40), Err(E::Invalid));
    assert_eq!(world.hv.update_descriptor(&dom, Maddr::new(at.raw() + 4), 0), Err(E::Invalid));
    world.hv.update_descriptor(&dom, at, 0x00cf_9300_0000_ffff).expect("data");
    assert_eq!(world.peek(gdt, 2), 0x00cf_f300_0000_ffff);
    assert_eq!(world.hv.update_descriptor(&dom, Maddr::new(l4.raw() * 4096), 0), Err(E::Invalid), "a table");
    assert!(world.hv.get_page_writable(gdt, &dom).is_err());
    world.hv.set_gdt(&dom, vcpu, &[], 0).expect("none");
    assert!(world.hv.get_page_writable(gdt, &dom).is_ok());
    world.check();
    world.hv.set_gdt(&dom, vcpu, &[gdt; 14], 7168).expect("descriptors");
    world.destroy(&dom, true);
    world.check();
}

#[test]
fn a_domain_has_few_pages_of_ldts_in_windows() {
    let world = World::new(512);
    let config = DomainConfig { max_vcpus: 9, ..DomainConfig::default() };
    let guest = world.guest_in(world.domain_of(1, config, 200));
    let base = guest.dom.vcpus[0].cr3_kernel.get().expect("it has tables");
    for page in 0..16 {
        let own = FrameOwner::Domain(&guest.dom);
        let mapped = world.hv.lock_tables(&guest.dom).update_leaf(
            guest.tables[3],
            FREE_SLOT + page,
            Pte::new(entry(guest.page, P)),
            own,
            Update::Plain,
        );
        assert!(mapped.is_ok());
    }
    for vcpu in &guest.dom.vcpus {
        if vcpu.cr3_kernel.get().is_none() {
            world.hv.install_bases(&guest.dom, vcpu, base, None).expect("it is checked");
        }
        world.hv.set_checked_ldt(&guest.dom, vcpu, FREE_VA, 8192);
        for page in 0..16 {
            assert!(world.hv.fault_in_ldt(&guest.dom, vcpu, page << 12));
        }
    }
    let pages = |vcpu: &Vcpu| vcpu.cpu.lock().ldt_frames.iter().flatten().count();
    // One step takes all of them out, so they must be few.
    assert!(guest.dom.vcpus.iter().map(pages).sum::<usize>() <= 128);
    world.check();
}

#[test]
fn the_ldt_is_looked_up_when_used_and_leaves_with_its_mapping() {
    let world = World::new(256);
    let guest = world.guest(1, false);
    let own = FrameOwner::Domain(&guest.dom);
    let map = |e| {
        world
            .hv
            .lock_tables(&guest.dom)
            .update_leaf(guest.tables[3], FREE_SLOT, Pte::new(e), own, Update::Plain)
            .is_ok()
    };
    let set = |base: u64, entries: u64| world.ext(&guest, &[(MMUEXT_SET_LDT, base, entries)], DOMID_SELF);
    assert_eq!(set(FREE_VA, 8193), neg(EINVAL));
    assert_eq!(set(FREE_VA + 8, 1), neg(EINVAL));
    assert_eq!(set(0xffff_8000_0000_0000, 1), neg(EINVAL));
    assert_eq!(set(FREE_VA, 512), 0);
    let touch = |offset| world.run(&guest.dom, |cur| cur.hv.fault_in_ldt(cur.domain, cur.vcpu, offset));
    assert!(!touch(0), "not mapped");
    assert!(map(entry(guest.page, P | RW)));
    assert!(!touch(0), "mapped for writing");
    assert!(map(entry(guest.page, P)));
    assert!(touch(8));
    assert!(touch(8), "again");
    assert!(!touch(4096), "past its end");
    world.check();
    assert_eq!(world.hv.frames.held(guest.page).page_type(), (PageType::SegDesc, 1));
    // Linux maps the page for writing again when it frees an LDT: the window gives the page back.
    assert!(!map(entry(guest.page, P | RW)), "in use as descriptors");
    assert!(map(0));
    assert!(map(entry(guest.page, P | RW)));
    world.check();
    assert!(map(entry(guest.page, P)));
    assert!(touch(0));
    assert_eq!(set(0, 0), 0);
    assert_eq!(world.hv.frames.held(guest.page).page_type().1, 0);
    world.check();
}

/// Each vCPU of a dying domain may hold many pages, so a step gives back those of one vCPU.
#[test]
fn descriptor_tables_of_a_dying_domain_go_one_vcpu_at_a_time() {
    let world = World::new(256);
    let config = crate::domain::DomainConfig { max_vcpus: 4, ..Default::default() };
    let dom = world.domain_of(7, config, 100);
    for vcpu in &dom.vcpus {
        let frames = world.pages::<14>(&dom);
        world.hv.set_gdt(&dom, vcpu, &frames, 14 * 512).expect("zeros are descriptors");
    }
    let with_gdt = || dom.vcpus.iter().filter(|vcpu| vcpu.cpu.lock().gdt_entries > 0).count();
    dom.set_dying(crate::domain::DyingState::Dying);
    interrupted(&world, true);
    for left in (0..4).rev() {
        assert_eq!(world.hv.relinquish_memory(&dom), crate::mem::Progress::More);
        assert_eq!(with_gdt(), left);
    }
    world.destroy(&dom, true);
    assert_eq!(dom.mm.tot_pages(), 0);
}
