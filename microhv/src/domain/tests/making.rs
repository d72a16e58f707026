//! Domains are created, within the limits and the memory that there is.

use alloc::sync::Arc;
use core::sync::atomic::Ordering;

use ring_abi::domctl::*;
use ring_abi::hypercall::*;
use ring_abi::types::{DomId, Port};

use super::*;
use crate::evtchn::EvtchnError;
use crate::hypercall::HypercallError;
use crate::hypercall::Outcome;
use crate::lifecycle::LifecycleError;
use crate::testing::{ARGS, World};

#[test]
fn a_domain_begins_paused_and_empty() {
    let world = World::new(256);
    let domain = create(&world, 3);
    let seen = info(&world, &domain);
    assert_eq!(
        (seen.domain, seen.tot_pages, seen.max_vcpu_id, seen.handle),
        (domain.id.raw(), 0, 2, [7; 16])
    );
    assert_eq!(seen.nr_online_vcpus, 0);
    assert_ne!(seen.flags & XEN_DOMINF_PAUSED, 0);
    assert_eq!(seen.flags & (XEN_DOMINF_SHUTDOWN | XEN_DOMINF_DYING), 0);
    for vcpu in &domain.vcpus {
        assert_eq!(vcpu.info.get().expect("info").load_u8(1), 1, "upcalls begin masked");
    }
    assert_ne!(domain.shared_info.load_u32(0xc04), 0, "the wall clock is there");
    assert_ne!(domain.shared_info.load_u32(0x38), 0, "the clock's multiplier is there");
}

#[test]
fn impossible_domains_are_refused() {
    let world = World::new(64);
    for (vcpus, flags) in [(0, 0), (MAX_VCPUS + 1, 0), (u32::MAX, 0), (1, XEN_DOMCTL_CDF_HVM)] {
        let wanted = XenDomctlCreatedomain {
            max_vcpus: vcpus,
            flags,
            max_grant_frames: -1,
            ..XenDomctlCreatedomain::default()
        };
        let mut op = XenDomctl::with(XEN_DOMCTL_CREATEDOMAIN, DomId::new(0), &wanted);
        assert_eq!(domctl(&world, &mut op), HypercallError::Invalid.errno());
    }
    let domain = create(&world, 1);
    let wanted =
        XenDomctlCreatedomain { max_vcpus: 1, max_grant_frames: -1, ..XenDomctlCreatedomain::default() };
    let mut op = XenDomctl::with(XEN_DOMCTL_CREATEDOMAIN, domain.id, &wanted);
    assert_eq!(domctl(&world, &mut op), HypercallError::Exists.errno());
    // Domains are made until no memory is left, and then the right error comes.
    let mut made = 0;
    loop {
        let mut op = XenDomctl::with(XEN_DOMCTL_CREATEDOMAIN, DomId::new(0), &wanted);
        match domctl(&world, &mut op) {
            0 => made += 1,
            error => break assert_eq!(error, HypercallError::NoMemory.errno()),
        }
        assert!(made < 64);
    }
}

#[test]
fn no_domain_makes_the_hypervisor_use_its_last_memory() {
    let world = World::new(128);
    let guest = world.guest(1);
    let open = || world.hv.alloc_unbound(&guest, DomId::new(0), |_| Ok(()));
    assert_eq!(open(), Ok(Port::new(1)));
    while world.hv.alloc_zeroed().is_some() {}
    assert_eq!(world.hv.create_domain(None, DomainConfig::default()).err(), Some(LifecycleError::NoMemory));
    assert_eq!(world.hv.grow_grant_table(&guest, 2), Err(crate::gnttab::GrowError::NoMemory));
    for port in 2..64 {
        assert_eq!(open(), Ok(Port::new(port)), "the bucket is there");
    }
    assert_eq!(open(), Err(EvtchnError::NoMemory));
}

#[test]
fn a_vcpu_that_would_have_no_room_to_wait_is_not_made() {
    let world = World::new(512);
    let create = |vcpus| {
        let config = DomainConfig { max_vcpus: vcpus, ..DomainConfig::default() };
        world.hv.create_domain(None, config).map(|_| ())
    };
    // Each vCPU has six timers, those of dom0 too: the queue of timers has room for 1,024.
    assert_eq!([create(100), create(67)], [Ok(()); 2]);
    while world.hv.frames.free_pages() > 24 {
        world.hv.alloc_zeroed().expect("it is free");
    }
    assert_eq!(create(2), Ok(()), "a grant table takes less than may be spent");
    assert_eq!(create(3), Err(LifecycleError::NoMemory), "room for 2,048 takes more");
}

/// Dom0 makes a call that is interrupted wherever the call asks. Gives the call's result, and the number of pieces.
fn in_pieces(world: &World, op: &mut XenDomctl) -> (i64, usize) {
    world.put(ARGS, op);
    world.hv.platform.pending.store(true, Ordering::Relaxed);
    let mut args = alloc::vec![ARGS];
    let mut pieces = 1;
    let result = loop {
        match world.raw(&world.dom0, 0, __HYPERVISOR_DOMCTL, &args) {
            Ok(Outcome::Continue) => args = world.dom0.vcpus[0].continuation().to_vec(),
            Ok(_) => break 0,
            Err(HypercallError::Again) => {}
            Err(error) => break error.errno(),
        }
        pieces += 1;
    };
    world.hv.platform.pending.store(false, Ordering::Relaxed);
    *op = world.get(ARGS);
    (result, pieces)
}

#[test]
fn a_domain_of_many_vcpus_is_made_and_ended_in_pieces() {
    let world = World::new(256);
    let free = world.hv.frames.free_pages();
    let wanted = XenDomctlCreatedomain {
        max_vcpus: MAX_VCPUS,
        max_grant_frames: -1,
        max_maptrack_frames: -1,
        ..XenDomctlCreatedomain::default()
    };
    let mut op = XenDomctl::with(XEN_DOMCTL_CREATEDOMAIN, DomId::new(0), &wanted);
    let (result, pieces) = in_pieces(&world, &mut op);
    assert_eq!(result, 0);
    assert!(pieces >= MAX_VCPUS as usize, "{pieces}");
    let domain = world.hv.domains.get(DomId::new(op.domain)).expect("it is in the list");
    assert_eq!(domain.vcpus.len(), MAX_VCPUS as usize);
    assert!(domain.vcpus.iter().enumerate().all(|(n, vcpu)| vcpu.id.raw() as usize == n));
    world.hv.grow_grant_table(&domain, 3).expect("memory");
    drop(domain);
    let mut op = XenDomctl::new(XEN_DOMCTL_DESTROYDOMAIN, DomId::new(op.domain));
    let (result, pieces) = in_pieces(&world, &mut op);
    assert_eq!(result, 0);
    assert!(pieces > MAX_VCPUS as usize, "{pieces}: its timers, then its grant table");
    assert!(!world.hv.domains.contains(DomId::new(op.domain)), "gone, though not all of it is freed");
    // The rest is freed later, a vCPU at a time.
    world.hv.platform.pending.store(true, Ordering::Relaxed);
    let steps = (0..1000).take_while(|_| {
        world.hv.reap_dead();
        world.hv.unfinished.has_dead()
    });
    assert!(steps.count() >= MAX_VCPUS as usize - 2);
    world.hv.platform.pending.store(false, Ordering::Relaxed);
    assert_eq!(world.hv.frames.free_pages(), free);
}

#[test]
fn a_domain_that_is_not_made_to_the_end_is_given_up() {
    let world = World::new(256);
    let free = world.hv.frames.free_pages();
    let wanted =
        XenDomctlCreatedomain { max_vcpus: 9, max_grant_frames: -1, ..XenDomctlCreatedomain::default() };
    world.put(ARGS, &XenDomctl::with(XEN_DOMCTL_CREATEDOMAIN, DomId::new(0), &wanted));
    world.hv.platform.pending.store(true, Ordering::Relaxed);
    let once = world.raw(&world.dom0, 0, __HYPERVISOR_DOMCTL, &[ARGS]);
    assert_eq!(once, Err(HypercallError::Again));
    world.hv.platform.pending.store(false, Ordering::Relaxed);
    // Dom0 does not go on, but asks for another domain.
    let other = create(&world, 2);
    assert_eq!(other.vcpus.len(), 2);
    assert_eq!(simple(&world, XEN_DOMCTL_DESTROYDOMAIN, &other), 0);
    drop(other);
    world.hv.reap_dead();
    assert_eq!(world.hv.frames.free_pages(), free);
    // Another domain takes the number while the first is being made.
    let mut op = XenDomctl::with(XEN_DOMCTL_CREATEDOMAIN, DomId::new(77), &wanted);
    world.put(ARGS, &op);
    world.hv.platform.pending.store(true, Ordering::Relaxed);
    assert_eq!(world.raw(&world.dom0, 0, __HYPERVISOR_DOMCTL, &[ARGS]), Err(HypercallError::Again));
    world.hv.platform.pending.store(false, Ordering::Relaxed);
    let taker = world.hv.create_domain(Some(DomId::new(77)), DomainConfig::default()).expect("free");
    assert_eq!(domctl(&world, &mut op), HypercallError::Exists.errno());
    assert!(Arc::ptr_eq(&taker, &world.hv.domains.get(DomId::new(77)).expect("the other")));
    assert_eq!(world.hv.frames.free_pages(), free - 2, "its shared_info and its grant table");
}

#[test]
fn limits_that_are_too_large_are_refused() {
    let world = World::new(256);
    let too_large = [(MAX_GRANT_FRAMES + 1, 0), (1, MAX_MAPTRACK_FRAMES + 1)];
    for (grants, maptrack) in too_large.into_iter().chain([(MAX_GRANT_FRAMES, MAX_MAPTRACK_FRAMES)]) {
        let wanted = XenDomctlCreatedomain {
            max_vcpus: 1,
            max_grant_frames: grants as i32,
            max_maptrack_frames: maptrack as i32,
            ..XenDomctlCreatedomain::default()
        };
        let mut op = XenDomctl::with(XEN_DOMCTL_CREATEDOMAIN, DomId::new(0), &wanted);
        let fits = grants <= MAX_GRANT_FRAMES && maptrack <= MAX_MAPTRACK_FRAMES;
        assert_eq!(domctl(&world, &mut op), if fits { 0 } else { HypercallError::Invalid.errno() });
    }
}

#[test]
fn a_new_domain_has_the_first_frame_of_its_grant_table() {
    let world = World::new(128);
    let free = world.hv.frames.free_pages();
    let domain = world.hv.create_domain(None, DomainConfig::default()).expect("memory");
    assert_eq!(domain.grants.frame_count(), 1);
    let none = DomainConfig { max_grant_frames: 0, ..DomainConfig::default() };
    assert_eq!(world.hv.create_domain(None, none).err(), Some(LifecycleError::Invalid));
    while world.hv.kill_domain(&domain).is_err() {}
    drop(domain);
    world.hv.reap_dead();
    assert_eq!(world.hv.frames.free_pages(), free);
    // Whatever there is no memory for, what was made is given back.
    let mut taken = Vec::new();
    while world.hv.create_domain(None, DomainConfig::default()).map(|domain| taken.push(domain)).is_ok() {}
    let left = world.hv.frames.free_pages();
    assert_eq!(world.hv.create_domain(None, DomainConfig::default()).err(), Some(LifecycleError::NoMemory));
    assert_eq!(world.hv.frames.free_pages(), left);
}
