//! Domains that die while their pages, or pages of others, are mapped.

use ring_abi::grant::*;
use ring_abi::types::{DOMID_SELF, DomId};

use super::*;
use crate::domain::DomainConfig;
use crate::hypercall::Outcome;

#[test]
fn a_dying_mapper_gives_everything_back_and_a_dying_granter_waits() {
    let w = world();
    let page = w.page(&w.granter);
    w.grant(9, ACCESS, 0, page);
    let mapped = w.map(GNTMAP_DEVICE_MAP, 9, 0);
    assert!(w.hv.release_grant_table(&w.granter));
    assert_eq!(w.granter.grants.figures().pinned, 1, "pinned though its entry is gone");
    assert_eq!(w.map(GNTMAP_DEVICE_MAP, 9, 0).status, GNTST_BAD_GNTREF);
    assert_eq!(w.uses(page), (1, 1));
    assert_eq!(w.hv.release_grant_mappings(&w.mapper, 0), None);
    assert_eq!(w.uses(page), (0, 0));
    let _ = mapped;
    w.nothing_is_left();
}

#[test]
fn who_maps_a_dead_domains_page_keeps_nothing_else_of_it() {
    let w = world();
    let page = w.page(&w.granter);
    w.grant(8, ACCESS, 0, page);
    // The granter uses as much of the hypervisor's memory as it can: handles on its own page, a port, frames of its table.
    let own = w.page(&w.granter);
    w.grant(9, ACCESS, 1, own);
    let op = GnttabMapGrantRef {
        flags: GNTMAP_DEVICE_MAP | GNTMAP_READONLY,
        r#ref: 9,
        dom: DOMID_SELF,
        ..Default::default()
    };
    for _ in 0..2000 {
        w.put(0, &op);
        assert_eq!(w.call(&w.granter, GNTTABOP_MAP_GRANT_REF, 1), Ok(Outcome::OK));
        assert_eq!(w.get::<GnttabMapGrantRef>(0).status, GNTST_OKAY);
    }
    w.hv.grow_grant_table(&w.granter, 2).unwrap();
    let port = w.hv.alloc_unbound(&w.granter, DomId::new(0), |_| Ok(())).unwrap();
    let mapped = w.map(GNTMAP_DEVICE_MAP, 8, 0);
    assert_eq!(mapped.status, GNTST_OKAY);

    while w.hv.kill_domain(&w.granter).is_err() {}
    let World { hv, granter, mapper } = w;
    hv.reap_dead();
    assert_eq!(granter.vcpus.len(), 1, "a reference is left");
    let id = granter.id;
    drop(granter);
    hv.reap_dead();
    let husk = hv.domains.get(id).expect("its number is in use while its page is");
    assert_eq!((husk.mm.tot_pages(), husk.vcpus.len()), (1, 0));
    assert_eq!(husk.grants.maptrack.lock().room(), 0);
    assert_eq!(husk.grants.entries.lock().room(), 0);
    assert!(husk.events.cell(port).is_none(), "its bucket is gone");
    assert_eq!(hv.domains.next_id(), Some(DomId::new(2)));

    // The mapper unmaps the page as any other.
    drop(husk);
    let mut w = World { hv, granter: mapper.clone(), mapper };
    assert_eq!(w.unmap(mapped.handle, 0, mapped.dev_bus_addr), GNTST_OKAY);
    w.hv.reap_dead();
    assert!(!w.hv.domains.contains(id) && !w.hv.unfinished.has_dead());
    w.granter = w.hv.create_domain(Some(id), DomainConfig::default()).unwrap();
    assert_eq!(w.granter.vcpus.len(), 1);
}
