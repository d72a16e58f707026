//! What the toolstack does to the guest meanwhile.

use ring_abi::domctl::*;
use ring_abi::evtchn::*;
use ring_abi::hypercall::*;
use ring_abi::memory::*;
use ring_abi::mmu::*;
use ring_abi::types::DomId;

use super::*;

pub(super) static CONTROL: [Deed; 20] = deeds![Control:
    Control "destroy" [] |wild, _, _| wild.end_domain(GUEST);
    Control "destroy the peer" [] |wild, _, _| wild.end_domain(PEER);
    Control "pause and let go on" [] |wild, _, at| {
        wild.domctl(at, XEN_DOMCTL_PAUSEDOMAIN, &XenDomctlHypercallInit::default())?;
        wild.domctl(at, XEN_DOMCTL_UNPAUSEDOMAIN, &XenDomctlHypercallInit::default())
    };
    Control "set a context" ["unmap"] |wild, stake, at| wild.set_context(stake, at, SPARE, true);
    Control "set a context without a gdt" [] |wild, stake, at| wild.set_context(stake, at, SPARE, false);
    Control "set a running vCPU's context" ["unmap"] |wild, stake, at| {
        // No vCPU of the domain runs anywhere meanwhile.
        wild.leave(GUEST);
        let done = wild.set_context(stake, at, 1, true);
        wild.state().ending[GUEST] = false;
        done
    };
    Control "look at a context" ["set a context without a gdt"] |wild, _, at| {
        let op = XenDomctlVcpucontext { vcpu: SPARE, ctxt: ARGS + 0x2000, ..XenDomctlVcpucontext::default() };
        wild.domctl(at, XEN_DOMCTL_GETVCPUCONTEXT, &op)
    };
    Control "map the page for itself" [] |wild, stake, _| {
        let args = [AWAY, stake.page << 12 | ALL, 0, GUEST as u64];
        wild.done(__HYPERVISOR_UPDATE_VA_MAPPING_OTHERDOMAIN, &args)
    };
    Control "unmap the page for itself" ["map the page for itself"] |wild, _, _| wild.map_at(AWAY, 0, 0);
    Control "write through its mapping" ["map the page for itself"] |wild, stake, _| {
        wild.put(AWAY + 8, &(stake.l2 << 12 | ALL)).map(|()| true)
    };
    Control "write an entry of the guest's" [] |wild, stake, at| {
        wild.put(at, &MmuUpdate { ptr: stake.second << 12 | AWAY_SLOT * 8, val: stake.page << 12 | ALL })?;
        let whose = SELF | (GUEST as u64 + 1) << 16;
        wild.done(__HYPERVISOR_MMU_UPDATE, &[at, 1, 0, whose])
    };
    Control "pin for the guest" ["unmap"] |wild, stake, at| {
        wild.put(at, &MmuextOp { cmd: MMUEXT_PIN_L1_TABLE, arg1: stake.page, ..MmuextOp::default() })?;
        wild.done(__HYPERVISOR_MMUEXT_OP, &[at, 1, 0, GUEST as u64])
    };
    Control "unpin for the guest" ["unmap", "pin"] |wild, stake, at| {
        wild.put(at, &MmuextOp { cmd: MMUEXT_UNPIN_TABLE, arg1: stake.page, ..MmuextOp::default() })?;
        wild.done(__HYPERVISOR_MMUEXT_OP, &[at, 1, 0, GUEST as u64])
    };
    Control "give back for the guest" ["unmap"] |wild, stake, at| {
        wild.reserve(at, XENMEM_DECREASE_RESERVATION, stake.page, GUEST as u64)
    };
    Control "populate for the guest" [] |wild, _, at| wild.reserve(at, XENMEM_POPULATE_PHYSMAP, 3, GUEST as u64);
    Control "set the limit" [] |wild, _, at| {
        wild.domctl(at, XEN_DOMCTL_MAX_MEM, &XenDomctlMaxMem { max_memkb: MAX_PAGES * 4 })
    };
    Control "look at the domain" [] |wild, _, at| {
        wild.domctl(at, XEN_DOMCTL_GETDOMAININFO, &XenDomctlGetdomaininfo::default())
    };
    Control "write a hypercall page" [] |wild, stake, at| {
        wild.domctl(at, XEN_DOMCTL_HYPERCALL_INIT, &XenDomctlHypercallInit { gmfn: stake.page })
    };
    Control "take the guest's table" [] |wild, _, at| {
        let op = XenMemAcquireResource {
            domid: GUEST as u16,
            r#type: XENMEM_RESOURCE_GRANT_TABLE as u16,
            id: XENMEM_RESOURCE_GRANT_TABLE_ID_SHARED,
            nr_frames: 1,
            frame_list: at + 64,
            ..XenMemAcquireResource::default()
        };
        wild.ask(at, __HYPERVISOR_MEMORY_OP, XENMEM_ACQUIRE_RESOURCE, &op)
    };
    Control "reset the guest's ports" ["open a port", "bind the port"] |wild, _, at| {
        wild.domctl(at, XEN_DOMCTL_PAUSEDOMAIN, &XenDomctlHypercallInit::default())?;
        let reset = EvtchnReset { dom: GUEST as u16 };
        let done = wild.ask(at, __HYPERVISOR_EVENT_CHANNEL_OP, EVTCHNOP_RESET, &reset);
        wild.domctl(at, XEN_DOMCTL_UNPAUSEDOMAIN, &XenDomctlHypercallInit::default())?;
        done
    };
];

impl Wild {
    fn domctl<T: ring_abi::payload::Payload>(&self, at: u64, command: u32, payload: &T) -> Option<bool> {
        self.put(at, &XenDomctl::with(command, DomId::new(GUEST as u16), payload))?;
        self.done(__HYPERVISOR_DOMCTL, &[at])
    }

    fn set_context(&self, stake: &Stake, at: u64, vcpu: u32, has_gdt: bool) -> Option<bool> {
        let ctxt = self.put_context(&Self::context(stake, has_gdt))?;
        let op = XenDomctlVcpucontext { vcpu, ctxt, ..XenDomctlVcpucontext::default() };
        self.domctl(at, XEN_DOMCTL_SETVCPUCONTEXT, &op)
    }

    /// A domain ends, as far as one call gets: what comes next, goes on.
    fn end_domain(&self, dom: usize) -> Option<bool> {
        self.destroy(dom).map(|()| true)
    }

    /// The toolstack gives the spare vCPU a context without descriptors.
    pub(in crate::testing::wild::play) fn clean_spare(&self, stake: &Stake, at: u64) -> Option<bool> {
        self.set_context(stake, at, SPARE, false)
    }
}
