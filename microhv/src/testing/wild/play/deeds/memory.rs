//! Deeds about page tables and memory.

use ring_abi::guest_context::CpuUserRegs;
use ring_abi::hypercall::*;
use ring_abi::memory::*;
use ring_abi::mmu::*;
use ring_abi::types::DOMID_SELF;

use super::*;

pub(super) static MAPS: [Deed; 10] = deeds![Map:
    Own "map" [] |wild, stake, _| wild.map_at(AWAY, stake.page << 12 | ALL, 0);
    Own "map to read" [] |wild, stake, _| wild.map_at(AWAY, stake.page << 12 | P | US, 0);
    Own "unmap" [] |wild, _, _| wild.map_at(HOME, 0, 0);
    Own "unmap and flush" ["map"] |wild, _, _| wild.map_at(AWAY, 0, UVMF_INVLPG | UVMF_ALL);
    Own "protect" [] |wild, stake, _| wild.map_at(HOME, stake.page << 12 | P | US, 0);
    Own "write an entry" [] |wild, stake, at| {
        wild.update(at, &[(stake.second << 12 | AWAY_SLOT * 8, stake.page << 12 | ALL)])
    };
    Own "write an entry of the page" ["unmap", "link"] |wild, stake, at| {
        wild.update(at, &[(stake.page << 12 | 8, stake.second << 12 | P | US)])
    };
    Own "write through the first mapping" [] |wild, stake, _| {
        wild.put(HOME + 8, &(stake.l2 << 12 | ALL)).map(|()| true)
    };
    Own "write through the second mapping" ["map"] |wild, stake, _| {
        wild.put(AWAY + 8, &(stake.l2 << 12 | ALL)).map(|()| true)
    };
    Own "write into a table" [] |wild, stake, at| {
        // mov [rbx], rax
        wild.put(at + 0xe00, &[0x48u8, 0x89, 0x03, 0x90, 0x90])?;
        let (rbx, rax) = (SECOND_SEEN + AWAY_SLOT * 8, stake.page << 12 | ALL);
        let mut regs = CpuUserRegs { rip: at + 0xe00, rbx, rax, cs: 0xe033, ..CpuUserRegs::default() };
        wild.with(&mut regs, |cur| crate::emul::table_writes::may_be(cur, rbx, 3) && crate::emul::table_writes::emulate(cur, rbx))
    };
];

pub(super) static TABLES: [Deed; 13] = deeds![Table:
    Own "pin" ["unmap"] |wild, stake, at| wild.extended(at, MMUEXT_PIN_L1_TABLE, stake.page);
    Own "unpin" ["unmap", "pin"] |wild, stake, at| wild.extended(at, MMUEXT_UNPIN_TABLE, stake.page);
    Own "link" ["unmap"] |wild, stake, at| {
        wild.update(at, &[(stake.l2 << 12 | EMPTY * 8, stake.page << 12 | ALL)])
    };
    Own "unlink" ["unmap", "link"] |wild, stake, at| wild.update(at, &[(stake.l2 << 12 | EMPTY * 8, 0)]);
    Own "unlink the second table" [] |wild, stake, at| wild.update(at, &[(stake.l2 << 12 | SECOND * 8, 0)]);
    Own "link the second table" ["unlink the second table"] |wild, stake, at| {
        wild.update(at, &[(stake.l2 << 12 | SECOND * 8, stake.second << 12 | ALL)])
    };
    Own "unlink and write" [] |wild, stake, at| {
        let entry = (stake.second << 12 | AWAY_SLOT * 8, stake.page << 12 | ALL);
        wild.update(at, &[(stake.l2 << 12 | SECOND * 8, 0), entry])
    };
    Own "pin the level 2 table" [] |wild, stake, at| wild.extended(at, MMUEXT_PIN_L2_TABLE, stake.l2);
    Own "unpin the level 2 table" ["pin the level 2 table"] |wild, stake, at| {
        wild.extended(at, MMUEXT_UNPIN_TABLE, stake.l2)
    };
    Own "change the base" [] |wild, stake, at| {
        let base = wild.hv.platform.cr3().map(|base| base.raw());
        let other = stake.bases[usize::from(base == Some(stake.bases[0]))];
        wild.extended(at, MMUEXT_NEW_BASEPTR, other)
    };
    Own "drop the user base" [] |wild, _, at| wild.extended(at, MMUEXT_NEW_USER_BASEPTR, 0);
    Own "take a user base" ["drop the user base"] |wild, stake, at| {
        wild.extended(at, MMUEXT_NEW_USER_BASEPTR, stake.bases[0])
    };
    Own "flush all" [] |wild, _, at| wild.extended(at, MMUEXT_TLB_FLUSH_ALL, 0);
];

pub(super) static MEMORY: [Deed; 6] = deeds![Memory:
    Own "exchange" ["unmap"] |wild, stake, at| wild.swap_page(at, stake.page);
    Own "give back" ["unmap"] |wild, stake, at| wild.reserve(at, XENMEM_DECREASE_RESERVATION, stake.page, SELF);
    Own "take more" [] |wild, _, at| wild.reserve(at, XENMEM_INCREASE_RESERVATION, 0, SELF);
    Own "populate" [] |wild, _, at| wild.reserve(at, XENMEM_POPULATE_PHYSMAP, 3, SELF);
    Own "clear" [] |wild, stake, at| wild.extended(at, MMUEXT_CLEAR_PAGE, stake.page);
    Own "copy over" [] |wild, stake, at| {
        let op = MmuextOp { cmd: MMUEXT_COPY_PAGE, arg1: stake.page, arg2: wild.own_page()?, ..MmuextOp::default() };
        wild.put(at, &op)?;
        wild.done(__HYPERVISOR_MMUEXT_OP, &[at, 1, 0, SELF])
    };
];

impl Wild {
    pub(in crate::testing::wild::play) fn map_at(&self, va: u64, entry: u64, flags: u64) -> Option<bool> {
        self.done(__HYPERVISOR_UPDATE_VA_MAPPING, &[va, entry, flags])
    }

    pub(in crate::testing::wild::play) fn extended(&self, at: u64, cmd: u32, arg1: u64) -> Option<bool> {
        self.put(at, &MmuextOp { cmd, arg1, ..MmuextOp::default() })?;
        self.done(__HYPERVISOR_MMUEXT_OP, &[at, 1, 0, SELF])
    }

    pub(in crate::testing::wild::play) fn update(&self, at: u64, requests: &[(u64, u64)]) -> Option<bool> {
        for (n, &(ptr, val)) in (0u64..).zip(requests) {
            self.put(at + n * 16, &MmuUpdate { ptr, val })?;
        }
        self.done(__HYPERVISOR_MMU_UPDATE, &[at, requests.len() as u64, 0, SELF])
    }

    /// A reservation of one page; `true` if that was done.
    pub(in crate::testing::wild::play) fn reserve(
        &self,
        at: u64,
        command: u32,
        page: u64,
        whose: u64,
    ) -> Option<bool> {
        self.put(at + 0x100, &page)?;
        let (extent_start, domid) = (at + 0x100, whose as u16);
        let request =
            XenMemoryReservation { extent_start, nr_extents: 1, domid, ..XenMemoryReservation::default() };
        self.put(at, &request)?;
        let result = self.call(__HYPERVISOR_MEMORY_OP, &[command.into(), at])?;
        Some(result == Ok(crate::hypercall::Outcome::Done(1)))
    }

    fn swap_page(&self, at: u64, page: u64) -> Option<bool> {
        self.put(at + 0x100, &[page, 1])?;
        let list = |extent_start| XenMemoryReservation {
            extent_start,
            nr_extents: 1,
            domid: DOMID_SELF,
            ..XenMemoryReservation::default()
        };
        let request = XenMemoryExchange { r#in: list(at + 0x100), out: list(at + 0x108), nr_exchanged: 0 };
        self.ask(at, __HYPERVISOR_MEMORY_OP, XENMEM_EXCHANGE, &request)
    }
}
