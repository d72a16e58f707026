//! Steps of the control domain, and those of a guest that concern neither memory nor grants.

use core::sync::atomic::Ordering;

use ring_abi::domctl::*;
use ring_abi::evtchn::*;
use ring_abi::hypercall::*;
use ring_abi::types::{DOMID_SELF, DomId, Mfn};
use ring_abi::vcpu::*;

use super::*;
use crate::domain::DomainConfig;
use crate::frames::pte::{P, RW, US};
use crate::platform::*;
use crate::testing::wild::step::{Page, Pick};

impl Wild {
    /// Makes domain `dom`, as the control domain's toolstack does.
    pub(super) fn create(&self, dom: usize) -> Option<()> {
        if self.domain(dom).is_some() {
            return None;
        }
        let hv = &self.hv;
        hv.platform.return_to_guest(); // the toolstack makes many calls to create a domain
        hv.reap_dead();
        let config =
            DomainConfig { max_vcpus: VCPUS + self.spare, privileged: dom == 0, ..DomainConfig::default() };
        let id = DomId::new(dom as u16);
        if hv.domains.contains(id) || hv.frames.free_pages() < PAGES + 12 {
            return None; // pages of the former domain are still in use
        }
        let domain = hv.create_domain(Some(id), config).ok()?;
        domain.mm.set_max_pages(MAX_PAGES);
        domain.assist.store(1 << 2, Ordering::Relaxed);
        let page = || hv.populate(&domain, 0, 0).expect("enough is free");
        let poke = |table: Mfn, slot: u64, entry: u64| {
            hv.platform.table(table)[slot as usize].store(entry, Ordering::Relaxed);
        };
        // kernel L4, user L4, L3, empty L3, L2, two L1
        let tables: [Mfn; 7] = core::array::from_fn(|_| page());
        let [kernel, user, l3, spare, l2, first, second] = tables;
        let down = |table: Mfn| table.raw() << 12 | P | RW | US;
        for base in [kernel, user] {
            for (slot, table) in [(0, l3), (1, spare), (2, spare)] {
                poke(base, slot, down(table));
            }
        }
        poke(l3, 0, down(l2));
        poke(l2, 0, down(first));
        poke(l2, 1, down(second));
        for (slot, table) in (0u64..).zip(tables) {
            poke(first, slot, table.raw() << 12 | P | US);
        }
        for n in 0..PAGES {
            let flags = if n & 1 == 0 { P | RW | US } else { P | RW };
            poke(first, ARGS_PAGE + n, page().raw() << 12 | flags);
        }
        for vcpu in &domain.vcpus[..VCPUS as usize] {
            hv.install_bases(&domain, vcpu, kernel, Some(user)).expect("sound tables");
            vcpu.initialised.store(true, Ordering::Release);
        }
        hv.grow_grant_table(&domain, 1).ok()?;
        if dom == 0 {
            domain.permissions.lock().iomem.add(FRAMES as u64, FRAMES as u64 + 16);
        }
        let mut state = self.state();
        (state.interrupted[dom], state.ending[dom]) = (Default::default(), false);
        state.doms[dom] = Some(domain);
        Some(())
    }

    pub(super) fn area(&self, what: u8, frame: Pick, page: Page, vcpu: u8) -> Option<()> {
        let va = Self::va(page) + 0x40;
        let (command, vcpu) = match what & 3 {
            0 | 1 => {
                let mfn = self.pick(frame);
                self.put(ARGS, &VcpuRegisterVcpuInfo { mfn, offset: 0x80, rsvd: 0 })?;
                self.note(mfn);
                (VCPUOP_REGISTER_VCPU_INFO, u32::from(vcpu) % VCPUS)
            }
            2 => {
                self.put(ARGS, &va)?;
                (VCPUOP_REGISTER_RUNSTATE_MEMORY_AREA, self.loaded()?.1)
            }
            _ => {
                self.put(ARGS, &va)?;
                (VCPUOP_REGISTER_VCPU_TIME_MEMORY_AREA, self.loaded()?.1)
            }
        };
        self.call(__HYPERVISOR_VCPU_OP, &[command.into(), vcpu.into(), ARGS]).map(|_| ())
    }

    pub(super) fn event(&self, what: u8, port: u8) -> Option<()> {
        let port = u32::from(port & 7);
        let command = match what & 3 {
            0 | 1 => {
                let op = EvtchnAllocUnbound {
                    dom: DOMID_SELF,
                    remote_dom: port as u16 % DOMAINS as u16,
                    ..EvtchnAllocUnbound::default()
                };
                self.put(ARGS, &op)?;
                EVTCHNOP_ALLOC_UNBOUND
            }
            2 => {
                self.put(ARGS, &EvtchnClose { port })?;
                EVTCHNOP_CLOSE
            }
            _ => {
                self.put(ARGS, &EvtchnSend { port })?;
                EVTCHNOP_SEND
            }
        };
        self.call(__HYPERVISOR_EVENT_CHANNEL_OP, &[command.into(), ARGS]).map(|_| ())
    }

    /// The acting CPU runs the control domain.
    pub(super) fn as_control(&self) -> Option<()> {
        if self.loaded().is_some_and(|(dom, _)| dom == 0) {
            return Some(());
        }
        (0..VCPUS).find_map(|vcpu| self.switch(0, vcpu))
    }

    pub(super) fn control(&self, what: u8, dom: u8, frame: Pick) -> Option<()> {
        self.as_control()?;
        let dom = u16::from(dom) % DOMAINS as u16;
        let id = DomId::new(dom);
        let gmfn =
            if what & 8 == 0 { self.pick(frame) } else { self.owned(dom.into(), false, frame.into())? };
        match what & 3 {
            0 | 1 => {
                let payload = XenDomctlHypercallInit { gmfn };
                self.put(ARGS, &XenDomctl::with(XEN_DOMCTL_HYPERCALL_INIT, id, &payload))?;
                self.note(gmfn);
            }
            2 => {
                let payload = XenDomctlMaxMem { max_memkb: MAX_PAGES * 4 + u64::from(frame & 15) * 4 };
                self.put(ARGS, &XenDomctl::with(XEN_DOMCTL_MAX_MEM, id, &payload))?;
            }
            _ => self.put(
                ARGS,
                &XenDomctl::with(XEN_DOMCTL_GETDOMAININFO, id, &XenDomctlGetdomaininfo::default()),
            )?,
        }
        self.call(__HYPERVISOR_DOMCTL, &[ARGS]).map(|_| ())
    }

    /// No CPU has a vCPU of the domain loaded when this returns: a CPU that is amid a step gets to the step's end first.
    pub(super) fn leave(&self, dom: usize) {
        self.state().ending[dom] = true;
        for cpu in 0..self.cpus {
            loop {
                let mut state = self.state();
                if state.loaded[cpu].is_none_or(|(loaded, _)| loaded != dom) {
                    break;
                }
                if state.busy[cpu] {
                    drop(state);
                    turns::wait();
                    continue;
                }
                // Taken while the CPU is between two steps: the next step finds that the CPU has no vCPU.
                let loaded = state.loaded[cpu].take();
                drop(state);
                self.put_aside(cpu, loaded);
            }
        }
    }

    /// The control domain ends another; its vCPUs leave their CPUs first.
    pub(super) fn destroy(&self, dom: usize) -> Option<()> {
        if dom == 0 {
            return None;
        }
        self.domain(dom)?;
        self.as_control()?;
        self.leave(dom);
        let op = XenDomctl::with(
            XEN_DOMCTL_DESTROYDOMAIN,
            DomId::new(dom as u16),
            &XenDomctlHypercallInit { gmfn: 0 },
        );
        self.put(ARGS, &op)?;
        self.call(__HYPERVISOR_DOMCTL, &[ARGS]).map(|_| ())
    }
}
