//! One vCPU uses what another is just taking away: deeds about one page and one table of a guest, at the same time.

use ring_abi::evtchn::*;
use ring_abi::grant::*;
use ring_abi::guest_context::CpuUserRegs;
use ring_abi::hypercall::*;
use ring_abi::memory::*;
use ring_abi::mmu::*;
use ring_abi::types::DOMID_SELF;
use ring_abi::vcpu::*;

use super::*;
use crate::frames::pte::{P, RW, US};

/// Deeds that there are.
pub const DEEDS: usize = 24;

/// Where the page is mapped in the beginning, in the first table.
const HOME: u64 = (ARGS_PAGE + 4) << 12;
/// An address in the region of the second table.
const AWAY: u64 = (1 << 9 | 3) << 12;
/// The slot of the level 2 table that leads to the second table, and one that is empty.
const SECOND: u64 = 1;
const EMPTY: u64 = 2;
const ALL: u64 = P | RW | US;

/// What the deeds are about.
#[derive(Clone, Copy, Debug)]
pub struct Stake {
    /// A page of guest 1.
    page: u64,
    /// The level 2 table of the guest.
    l2: u64,
    /// The guest's second level 1 table, of which the level 2 table's entry has the only reference.
    second: u64,
}

impl Wild {
    /// What deeds of guest 1 are about, as the guest begins.
    ///
    /// # Panics
    /// If the CPU that acts has another domain loaded.
    #[must_use]
    pub fn stake(&self) -> Stake {
        let (_, domain) = self.me().filter(|(dom, _)| *dom == 1).expect("the guest is loaded");
        let base = domain.vcpus[0].cr3_kernel.get().expect("a base").raw();
        let l2 = (0..2).fold(base, |table, _| self.named(table, 0).expect("a table"));
        let page = self.hv.platform.translate(HOME, false).expect("it is mapped").raw() >> 12;
        Stake { page, l2, second: self.named(l2, SECOND).expect("a table") }
    }

    /// Does a deed by its number, by the vCPU that the acting CPU has loaded.
    pub fn deed(&self, n: usize, stake: Stake) -> Option<()> {
        let Stake { page, l2, second } = stake;
        let (dom, _) = self.me()?;
        // Each vCPU of a guest has a page of arguments for itself.
        let at = ARGS + self.loaded().map_or(0, |(_, vcpu)| u64::from(vcpu)) * 0x1000;
        match (dom, n) {
            // The control domain and the other guest do what concerns others' pages.
            (0, _) => self.deed_of_control(n, page, at),
            (2, _) if n & 1 == 0 => self.ask_map(at, 1),
            (2, _) => self.unmap([0, 1], 1, false, 0),
            (_, 0) => self.put_entry(at, AWAY, page << 12 | ALL, 0),
            (_, 1) => self.put_entry(at, AWAY, 0, UVMF_INVLPG | UVMF_ALL),
            (_, 2) => self.put_entry(at, HOME, 0, 0),
            (_, 3) => self.put_entry(at, HOME, page << 12 | P | US, 0),
            (_, 4) => self.ask(at, MMUEXT_PIN_L1_TABLE, page),
            (_, 5) => self.ask(at, MMUEXT_UNPIN_TABLE, page),
            (_, 6) => self.change(at, &[(page << 12 | 8, l2 << 12 | ALL)]),
            (_, 7) => self.change(at, &[(l2 << 12 | EMPTY * 8, page << 12 | ALL)]),
            (_, 8) => self.change(at, &[(l2 << 12 | EMPTY * 8, 0)]),
            (_, 9) => self.change(at, &[(l2 << 12 | SECOND * 8, 0)]),
            (_, 10) => self.change(at, &[(l2 << 12 | SECOND * 8, second << 12 | ALL)]),
            (_, 11) => self.change(at, &[(l2 << 12 | SECOND * 8, 0), (second << 12 | 24, page << 12 | ALL)]),
            (_, 12) => self.ask(at, MMUEXT_CLEAR_PAGE, page),
            (_, 13) => self.take_away(at, XENMEM_DECREASE_RESERVATION, page),
            (_, 14) => self.swap_page(at, page),
            (_, 15) => self.give_gdt(at, &[page], 512),
            (_, 16) => self.give_gdt(at, &[], 0),
            (_, 17) => self.use_ldt(at, HOME),
            (_, 18) => self.give_info(at, page),
            (_, 19) => {
                let op = EvtchnInitControl { control_gfn: page, ..EvtchnInitControl::default() };
                self.put(at, &op)?;
                self.call(__HYPERVISOR_EVENT_CHANNEL_OP, &[EVTCHNOP_INIT_CONTROL.into(), at]).map(|_| ())
            }
            (_, 20) => {
                self.put(at, &EvtchnExpandArray { array_gfn: page })?;
                self.call(__HYPERVISOR_EVENT_CHANNEL_OP, &[EVTCHNOP_EXPAND_ARRAY.into(), at]).map(|_| ())
            }
            (_, 21) => {
                self.write_entry(&*self.domain(1)?, 0, page, 2, 0);
                self.ask_map(at, 1)
            }
            (_, 22) => self.put(HOME + 8, &(l2 << 12 | ALL)),
            _ => self.put(AWAY + 8, &(l2 << 12 | ALL)),
        }
    }

    fn deed_of_control(&self, n: usize, page: u64, at: u64) -> Option<()> {
        match n % 4 {
            0 => self.destroy(1),
            1 => {
                let args = [AWAY, page << 12 | ALL, 0, 1];
                self.call(__HYPERVISOR_UPDATE_VA_MAPPING_OTHERDOMAIN, &args).map(|_| ())
            }
            2 => self.put_entry(at, AWAY, 0, 0),
            _ => {
                self.put(at, &MmuextOp { cmd: MMUEXT_PIN_L1_TABLE, arg1: page, ..MmuextOp::default() })?;
                self.call(__HYPERVISOR_MMUEXT_OP, &[at, 1, 0, 1]).map(|_| ())
            }
        }
    }

    fn put_entry(&self, _: u64, va: u64, entry: u64, flags: u64) -> Option<()> {
        self.call(__HYPERVISOR_UPDATE_VA_MAPPING, &[va, entry, flags]).map(|_| ())
    }

    fn ask(&self, at: u64, cmd: u32, arg1: u64) -> Option<()> {
        self.put(at, &MmuextOp { cmd, arg1, ..MmuextOp::default() })?;
        self.call(__HYPERVISOR_MMUEXT_OP, &[at, 1, 0, DOMID_SELF.into()]).map(|_| ())
    }

    fn change(&self, at: u64, requests: &[(u64, u64)]) -> Option<()> {
        for (n, &(ptr, val)) in (0u64..).zip(requests) {
            self.put(at + n * 16, &MmuUpdate { ptr, val })?;
        }
        let count = requests.len() as u64;
        self.call(__HYPERVISOR_MMU_UPDATE, &[at, count, 0, DOMID_SELF.into()]).map(|_| ())
    }

    fn take_away(&self, at: u64, command: u32, page: u64) -> Option<()> {
        self.put(at + 0x100, &page)?;
        let (extent_start, domid) = (at + 0x100, DOMID_SELF);
        let request =
            XenMemoryReservation { extent_start, nr_extents: 1, domid, ..XenMemoryReservation::default() };
        self.put(at, &request)?;
        self.call(__HYPERVISOR_MEMORY_OP, &[command.into(), at]).map(|_| ())
    }

    fn swap_page(&self, at: u64, page: u64) -> Option<()> {
        self.put(at + 0x100, &[page, 1])?;
        let list = |extent_start| XenMemoryReservation {
            extent_start,
            nr_extents: 1,
            domid: DOMID_SELF,
            ..XenMemoryReservation::default()
        };
        let request = XenMemoryExchange { r#in: list(at + 0x100), out: list(at + 0x108), nr_exchanged: 0 };
        self.put(at, &request)?;
        self.call(__HYPERVISOR_MEMORY_OP, &[XENMEM_EXCHANGE.into(), at]).map(|_| ())
    }

    fn give_gdt(&self, at: u64, frames: &[u64], entries: u64) -> Option<()> {
        self.put(at, frames)?;
        self.call(__HYPERVISOR_SET_GDT, &[at, entries]).map(|_| ())
    }

    fn use_ldt(&self, at: u64, va: u64) -> Option<()> {
        self.put(at, &MmuextOp { cmd: MMUEXT_SET_LDT, arg1: va, arg2: 512, ..MmuextOp::default() })?;
        self.call(__HYPERVISOR_MMUEXT_OP, &[at, 1, 0, DOMID_SELF.into()])?.ok()?;
        let hv = &self.hv;
        self.with(&mut CpuUserRegs::default(), |cur| hv.fault_in_ldt(cur.domain, cur.vcpu, 0)).map(|_| ())
    }

    fn give_info(&self, at: u64, mfn: u64) -> Option<()> {
        self.put(at, &VcpuRegisterVcpuInfo { mfn, offset: 0x80, rsvd: 0 })?;
        let (_, vcpu) = self.loaded()?;
        let args = [VCPUOP_REGISTER_VCPU_INFO.into(), vcpu.into(), at];
        self.call(__HYPERVISOR_VCPU_OP, &args).map(|_| ())
    }

    /// The other guest maps what guest 1 lends; asked by guest 1 itself, this maps what it lends to itself: nothing.
    fn ask_map(&self, at: u64, granter: u16) -> Option<()> {
        let (dom, _) = self.me()?;
        let flags = GNTMAP_HOST_MAP | GNTMAP_APPLICATION_MAP;
        let op = GnttabMapGrantRef { host_addr: AWAY, flags, dom: granter, ..GnttabMapGrantRef::default() };
        self.put(at, &op)?;
        self.call(__HYPERVISOR_GRANT_TABLE_OP, &[GNTTABOP_MAP_GRANT_REF.into(), at, 1])?.ok()?;
        let done: GnttabMapGrantRef = self.get(at)?;
        if done.status == GNTST_OKAY {
            let mapping = Mapping { dom, handle: done.handle, host_addr: AWAY, device: 0 };
            self.state().mappings.push(mapping);
        }
        Some(())
    }

    /// Does deeds at the same time, one on each CPU. `seed` says which CPU goes on when.
    pub fn deeds_at_once(&mut self, deeds: &[usize], stake: Stake, seed: u64) {
        self.is_alone = false;
        let wild = &*self;
        let act = |(cpu, deed): (usize, &usize)| {
            let deed = *deed;
            move || {
                wild.on(cpu, || {
                    let _ = wild.deed(deed, stake);
                });
            }
        };
        turns::play(seed, deeds.iter().enumerate().map(act).collect());
        self.is_alone = true;
    }
}
