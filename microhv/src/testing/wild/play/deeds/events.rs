//! Deeds about event channels: a port of the guest that its peer binds, and the pages of the FIFO.

use ring_abi::evtchn::*;
use ring_abi::hypercall::*;
use ring_abi::types::DOMID_SELF;

use super::*;

pub(super) static EVENTS: [Deed; 16] = deeds![Event:
    Own "open a port" [] |wild, _, at| {
        let op = EvtchnAllocUnbound { dom: DOMID_SELF, remote_dom: PEER as u16, ..EvtchnAllocUnbound::default() };
        let done: EvtchnAllocUnbound = wild.told(at, EVTCHNOP_ALLOC_UNBOUND, &op)?;
        wild.state().ports[GUEST] = done.port;
        Some(true)
    };
    Peer "bind the port" ["open a port"] |wild, _, at| {
        let remote_port = wild.state().ports[GUEST];
        let op = EvtchnBindInterdomain { remote_dom: GUEST as u16, remote_port, ..EvtchnBindInterdomain::default() };
        let done: EvtchnBindInterdomain = wild.told(at, EVTCHNOP_BIND_INTERDOMAIN, &op)?;
        wild.state().ports[PEER] = done.local_port;
        Some(true)
    };
    Own "send" ["open a port", "bind the port"] |wild, _, at| wild.send(at, GUEST);
    Peer "send to the guest" ["open a port", "bind the port"] |wild, _, at| wild.send(at, PEER);
    Own "close" ["open a port", "bind the port"] |wild, _, at| wild.close(at, GUEST);
    Peer "close the other end" ["open a port", "bind the port"] |wild, _, at| wild.close(at, PEER);
    Own "bind an ipi" [] |wild, _, at| {
        let done: EvtchnBindIpi = wild.told(at, EVTCHNOP_BIND_IPI, &EvtchnBindIpi { vcpu: 1, port: 0 })?;
        wild.state().ports[GUEST] = done.port;
        Some(true)
    };
    Own "bind a timer's port" [] |wild, _, at| {
        let (_, vcpu) = wild.loaded()?;
        let done: EvtchnBindVirq = wild.told(at, EVTCHNOP_BIND_VIRQ, &EvtchnBindVirq { virq: 0, vcpu, port: 0 })?;
        wild.state().ports[GUEST] = done.port;
        Some(true)
    };
    Own "move the port" ["open a port"] |wild, _, at| {
        let port = wild.state().ports[GUEST];
        wild.ask(at, __HYPERVISOR_EVENT_CHANNEL_OP, EVTCHNOP_BIND_VCPU, &EvtchnBindVcpu { port, vcpu: 1 })
    };
    Own "unmask" ["open a port", "bind the port", "send to the guest"] |wild, _, at| {
        let port = wild.state().ports[GUEST];
        wild.ask(at, __HYPERVISOR_EVENT_CHANNEL_OP, EVTCHNOP_UNMASK, &EvtchnUnmask { port })
    };
    Own "look at the port" ["open a port"] |wild, _, at| {
        let op = EvtchnStatus { dom: DOMID_SELF, port: wild.state().ports[GUEST], ..EvtchnStatus::default() };
        wild.ask(at, __HYPERVISOR_EVENT_CHANNEL_OP, EVTCHNOP_STATUS, &op)
    };
    Own "give a control block" [] |wild, stake, at| wild.control_block(stake, at);
    Own "give words" ["give a control block"] |wild, stake, at| {
        wild.ask(at, __HYPERVISOR_EVENT_CHANNEL_OP, EVTCHNOP_EXPAND_ARRAY, &EvtchnExpandArray { array_gfn: stake.page })
    };
    Own "send to itself" ["give a control block", "give words", "bind an ipi"] |wild, _, at| wild.send(at, GUEST);
    Own "set a priority" ["give a control block", "give words", "bind an ipi"] |wild, _, at| {
        let op = EvtchnSetPriority { port: wild.state().ports[GUEST], priority: 3 };
        wild.ask(at, __HYPERVISOR_EVENT_CHANNEL_OP, EVTCHNOP_SET_PRIORITY, &op)
    };
    Own "reset" ["open a port", "bind the port"] |wild, _, at| wild.reset_ports(at);
];

impl Wild {
    /// Makes a call about ports, and reads its structure again.
    fn told<T: FromBytes + IntoBytes + Immutable>(&self, at: u64, command: u32, op: &T) -> Option<T> {
        self.put(at, op)?;
        self.call(__HYPERVISOR_EVENT_CHANNEL_OP, &[command.into(), at])?.ok()?;
        self.get(at)
    }

    fn send(&self, at: u64, dom: usize) -> Option<bool> {
        let port = self.state().ports[dom];
        self.ask(at, __HYPERVISOR_EVENT_CHANNEL_OP, EVTCHNOP_SEND, &EvtchnSend { port })
    }

    fn close(&self, at: u64, dom: usize) -> Option<bool> {
        let port = self.state().ports[dom];
        self.ask(at, __HYPERVISOR_EVENT_CHANNEL_OP, EVTCHNOP_CLOSE, &EvtchnClose { port })
    }

    /// The page becomes a control block of each vCPU.
    fn control_block(&self, stake: &Stake, at: u64) -> Option<bool> {
        let mut any = false;
        for vcpu in 0..VCPUS {
            let (control_gfn, offset) = (stake.page, vcpu * 128);
            let op = EvtchnInitControl { control_gfn, offset, vcpu, ..EvtchnInitControl::default() };
            any |= self.ask(at, __HYPERVISOR_EVENT_CHANNEL_OP, EVTCHNOP_INIT_CONTROL, &op)?;
        }
        Some(any)
    }

    pub(in crate::testing::wild::play) fn reset_ports(&self, at: u64) -> Option<bool> {
        self.ask(at, __HYPERVISOR_EVENT_CHANNEL_OP, EVTCHNOP_RESET, &EvtchnReset { dom: DOMID_SELF })
    }
}
