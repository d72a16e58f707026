//! Steps that use grants.

use alloc::vec::Vec;

use ring_abi::grant::*;
use ring_abi::hypercall::*;

use super::*;
use crate::gnttab::state::Version;
use crate::testing::wild::step::{Page, Pick};

impl Wild {
    pub(super) fn map_grant(&self, granter: u8, gref: u8, page: Page, flags: u8) -> Option<()> {
        let (dom, _) = self.me()?;
        let va = Self::va(page);
        let mut op = GnttabMapGrantRef {
            host_addr: va,
            flags: GNTMAP_HOST_MAP,
            r#ref: u32::from(gref & 3),
            dom: u16::from(granter) % DOMAINS as u16,
            ..GnttabMapGrantRef::default()
        };
        for (bit, flag) in [
            (1, GNTMAP_READONLY),
            (2, GNTMAP_APPLICATION_MAP),
            (4, GNTMAP_DEVICE_MAP),
            (8, GNTMAP_CONTAINS_PTE),
        ] {
            if flags & bit != 0 {
                op.flags |= flag;
            }
        }
        if op.flags & GNTMAP_CONTAINS_PTE != 0 {
            op.host_addr = (self.pick(0x80 | page & 63) << 12) + Self::slot(1, flags >> 4) * 8;
        }
        if flags & 0xf0 == 0x50 {
            op.flags &= !GNTMAP_HOST_MAP;
        }
        self.put(ARGS, &op)?;
        self.note_at(va);
        self.call(__HYPERVISOR_GRANT_TABLE_OP, &[GNTTABOP_MAP_GRANT_REF.into(), ARGS, 1])?.ok()?;
        let done: GnttabMapGrantRef = self.get(ARGS)?;
        if done.status == GNTST_OKAY {
            let host_addr = if op.flags & GNTMAP_HOST_MAP != 0 { op.host_addr } else { 0 };
            let device = if op.flags & GNTMAP_DEVICE_MAP != 0 { done.dev_bus_addr } else { 0 };
            self.state().mappings.push(Mapping { dom, handle: done.handle, host_addr, device });
            self.note(done.dev_bus_addr >> 12);
        }
        Some(())
    }

    pub(super) fn unmap(&self, which: [u8; 2], count: u8, replace: bool, page: Page) -> Option<()> {
        let (dom, _) = self.me()?;
        let mut n = 0;
        for which in &which[..1 + usize::from(count & 1)] {
            let Mapping { handle, host_addr, device, .. } = {
                let mappings = &mut self.state().mappings;
                let own: Vec<usize> = (0..mappings.len()).filter(|n| mappings[*n].dom == dom).collect();
                let at = own[usize::from(*which).checked_rem(own.len())?];
                // Now and then the mapping stays in the list, so that it is unmapped once more.
                let keep = *which & 0xf0 == 0xf0;
                if keep { mappings[at] } else { mappings.swap_remove(at) }
            };
            let unmap = GnttabUnmapGrantRef {
                host_addr,
                dev_bus_addr: device,
                handle,
                ..GnttabUnmapGrantRef::default()
            };
            if replace {
                let op = GnttabUnmapAndReplace {
                    host_addr,
                    new_addr: Self::va(page),
                    handle,
                    ..GnttabUnmapAndReplace::default()
                };
                self.put(ARGS + n * 24, &op)?;
            } else {
                self.put(ARGS + n * 24, &unmap)?;
            }
            n += 1;
        }
        let op = if replace { GNTTABOP_UNMAP_AND_REPLACE } else { GNTTABOP_UNMAP_GRANT_REF };
        self.call(__HYPERVISOR_GRANT_TABLE_OP, &[op.into(), ARGS, n]).map(|_| ())
    }

    pub(super) fn grant(&self, gref: u8, frame: Pick, to: u8, flags: u8) -> Option<()> {
        let (_, domain) = self.me()?;
        let frame = self.pick(frame);
        self.write_entry(&domain, gref, frame, to, flags);
        self.note(frame);
        Some(())
    }

    /// A guest writes an entry of its grant table.
    pub(super) fn write_entry(&self, domain: &Domain, gref: u8, frame: u64, to: u8, flags: u8) {
        let Ok(table) = self.hv.grant_table_frame(domain, 0) else { return };
        let (table, to, gref) = (table.maddr(), u64::from(to) % DOMAINS as u64, u64::from(gref & 3));
        let permitted = [1u64, 1, 5, 0][usize::from(flags & 3)];
        if domain.grants.version() == Version::One {
            let part = if flags >> 2 & 3 == 2 { u64::from(GTF_SUB_PAGE) } else { 0 };
            self.hv.platform.store(table.add(gref * 8), frame << 32 | to << 16 | permitted | part);
        } else {
            // A page, a part of one, or what another entry lends.
            let (shape, beside) = match flags >> 2 & 3 {
                2 => (u64::from(GTF_SUB_PAGE), u64::from(flags >> 4) << 24 | u64::from(flags >> 4) << 6),
                3 => (u64::from(GTF_TRANSITIVE), u64::from(flags >> 4) % DOMAINS as u64),
                _ => (0, 0),
            };
            let second = if flags >> 2 & 3 == 3 { u64::from(flags >> 6) } else { frame };
            self.hv.platform.store(table.add(gref * 16 + 8), second);
            self.hv.platform.store(table.add(gref * 16), beside << 32 | to << 16 | permitted | shape);
        }
    }

    pub(super) fn copy(&self, granter: u8, gref: u8, frame: Pick, back: bool) -> Option<()> {
        let granted = GnttabCopyPtr {
            u: u64::from(gref & 3),
            domid: u16::from(granter) % DOMAINS as u16,
            ..GnttabCopyPtr::default()
        };
        let own = GnttabCopyPtr { u: self.pick(frame), domid: DOMID_SELF, ..GnttabCopyPtr::default() };
        let (source, dest) = if back { (own, granted) } else { (granted, own) };
        let flags = if back { GNTCOPY_DEST_GREF } else { GNTCOPY_SOURCE_GREF };
        self.put(ARGS, &GnttabCopy { source, dest, len: 64, flags, ..GnttabCopy::default() })?;
        self.call(__HYPERVISOR_GRANT_TABLE_OP, &[GNTTABOP_COPY.into(), ARGS, 1]).map(|_| ())
    }

    pub(super) fn swap(&self, a: u8, b: u8) -> Option<()> {
        // Now and then all entries change: the table is made one of the other version.
        if a & 0xc0 == 0xc0 {
            self.put(ARGS, &GnttabSetVersion { version: 1 + u32::from(b & 1) })?;
            return self
                .call(__HYPERVISOR_GRANT_TABLE_OP, &[GNTTABOP_SET_VERSION.into(), ARGS, 1])
                .map(|_| ());
        }
        let op = GnttabSwapGrantRef {
            ref_a: u32::from(a & 3),
            ref_b: u32::from(b & 3),
            ..GnttabSwapGrantRef::default()
        };
        self.put(ARGS, &op)?;
        self.call(__HYPERVISOR_GRANT_TABLE_OP, &[GNTTABOP_SWAP_GRANT_REF.into(), ARGS, 1]).map(|_| ())
    }
}
