//! Deeds about grants: the guest lends its page to its peer by entry 0.

use ring_abi::grant::*;
use ring_abi::hypercall::*;
use ring_abi::types::DOMID_SELF;

use super::*;

pub(super) static GRANTS: [Deed; 18] = deeds![Grant:
    Own "grant" [] |wild, stake, _| wild.lend_page(stake, 0);
    Own "grant to read" [] |wild, stake, _| wild.lend_page(stake, 2);
    Own "end the grant" ["grant"] |wild, stake, _| wild.lend_page(stake, 3);
    Own "change to version 2" [] |wild, _, at| wild.set_version(at, 2);
    Own "change to version 1" ["change to version 2"] |wild, _, at| wild.set_version(at, 1);
    Own "swap entries" ["grant"] |wild, _, at| {
        let op = GnttabSwapGrantRef { ref_a: 0, ref_b: 2, ..GnttabSwapGrantRef::default() };
        wild.put(at, &op)?;
        let done = wild.granted::<GnttabSwapGrantRef>(at, GNTTABOP_SWAP_GRANT_REF)?;
        Some(done.status == GNTST_OKAY)
    };
    Own "grow the table" [] |wild, _, at| {
        let frames = wild.state().steps % 4 + 1;
        let op = GnttabSetupTable { dom: DOMID_SELF, nr_frames: frames, frame_list: at + 64, ..GnttabSetupTable::default() };
        wild.put(at, &op)?;
        Some(wild.granted::<GnttabSetupTable>(at, GNTTABOP_SETUP_TABLE)?.status == GNTST_OKAY)
    };
    Own "map the table" [] |wild, _, _| {
        let domain = wild.domain(GUEST)?;
        let frame = wild.hv.grant_table_frame(&domain, 0).ok()?;
        wild.map_at(AWAY, frame.raw() << 12 | ALL, 0)
    };
    Own "map status words" ["change to version 2"] |wild, _, _| {
        let frame = wild.domain(GUEST)?.grants.status_frame()?;
        wild.map_at(AWAY, frame.raw() << 12 | ALL, 0)
    };
    Own "copy from the page" [] |wild, stake, at| wild.copy_page(at, (stake.page, DOMID_SELF, 0), (wild.own_page()?, DOMID_SELF, 0));
    Own "copy to the page" [] |wild, stake, at| wild.copy_page(at, (wild.own_page()?, DOMID_SELF, 0), (stake.page, DOMID_SELF, 0));
    Peer "map the grant" ["grant"] |wild, _, at| wild.map_lent(at, GNTMAP_HOST_MAP | GNTMAP_APPLICATION_MAP);
    Peer "map the grant to read" ["grant to read"] |wild, _, at| {
        wild.map_lent(at, GNTMAP_HOST_MAP | GNTMAP_APPLICATION_MAP | GNTMAP_READONLY)
    };
    Peer "unmap the grant" ["grant", "map the grant"] |wild, _, at| wild.unmap_lent(at, false);
    Peer "unmap and replace" ["grant", "map the grant"] |wild, _, at| wild.unmap_lent(at, true);
    Peer "write through the grant" ["grant", "map the grant"] |wild, stake, _| wild.put(AWAY + 8, &(stake.l2 << 12 | ALL)).map(|()| true);
    Peer "copy from the grant" ["grant"] |wild, _, at| wild.copy_page(at, (0, GUEST as u16, GNTCOPY_SOURCE_GREF), (wild.own_page()?, DOMID_SELF, 0));
    Peer "copy to the grant" ["grant"] |wild, _, at| wild.copy_page(at, (wild.own_page()?, DOMID_SELF, 0), (0, GUEST as u16, GNTCOPY_DEST_GREF));
];

impl Wild {
    /// The guest writes entry 0 of its table, for its peer.
    fn lend_page(&self, stake: &Stake, flags: u8) -> Option<bool> {
        let (dom, domain) = self.me()?;
        (dom == GUEST).then(|| self.write_entry(&domain, 0, stake.page, PEER as u8, flags))?;
        Some(true)
    }

    /// Makes a call about grants, and reads its structure again.
    fn granted<T: FromBytes + IntoBytes>(&self, at: u64, command: u32) -> Option<T> {
        self.call(__HYPERVISOR_GRANT_TABLE_OP, &[command.into(), at, 1])?.ok()?;
        self.get(at)
    }

    pub(in crate::testing::wild::play) fn set_version(&self, at: u64, version: u32) -> Option<bool> {
        self.put(at, &GnttabSetVersion { version })?;
        self.done(__HYPERVISOR_GRANT_TABLE_OP, &[GNTTABOP_SET_VERSION.into(), at, 1])
    }

    fn copy_page(&self, at: u64, from: (u64, u16, u16), to: (u64, u16, u16)) -> Option<bool> {
        let end = |(u, domid, _): (u64, u16, u16)| GnttabCopyPtr { u, domid, ..GnttabCopyPtr::default() };
        let op = GnttabCopy {
            source: end(from),
            dest: end(to),
            len: 4096,
            flags: from.2 | to.2,
            ..GnttabCopy::default()
        };
        self.put(at, &op)?;
        Some(self.granted::<GnttabCopy>(at, GNTTABOP_COPY)?.status == GNTST_OKAY)
    }

    fn map_lent(&self, at: u64, flags: u32) -> Option<bool> {
        let (dom, _) = self.me()?;
        let op =
            GnttabMapGrantRef { host_addr: AWAY, flags, dom: GUEST as u16, ..GnttabMapGrantRef::default() };
        self.put(at, &op)?;
        let done: GnttabMapGrantRef = self.granted(at, GNTTABOP_MAP_GRANT_REF)?;
        if done.status == GNTST_OKAY {
            self.state().mappings.push(Mapping { dom, handle: done.handle, host_addr: AWAY, device: 0 });
        }
        Some(done.status == GNTST_OKAY)
    }

    /// The peer ends the mapping that it made last.
    pub(in crate::testing::wild::play) fn unmap_lent(&self, at: u64, replace: bool) -> Option<bool> {
        let (dom, _) = self.me()?;
        let Mapping { handle, host_addr, .. } = {
            let mappings = &mut self.state().mappings;
            let last = mappings.iter().rposition(|mapping| mapping.dom == dom)?;
            mappings.swap_remove(last)
        };
        if replace {
            let op = GnttabUnmapAndReplace {
                host_addr,
                new_addr: HOME,
                handle,
                ..GnttabUnmapAndReplace::default()
            };
            self.put(at, &op)?;
            return Some(
                self.granted::<GnttabUnmapAndReplace>(at, GNTTABOP_UNMAP_AND_REPLACE)?.status == GNTST_OKAY,
            );
        }
        let op = GnttabUnmapGrantRef { host_addr, handle, ..GnttabUnmapGrantRef::default() };
        self.put(at, &op)?;
        Some(self.granted::<GnttabUnmapGrantRef>(at, GNTTABOP_UNMAP_GRANT_REF)?.status == GNTST_OKAY)
    }
}
