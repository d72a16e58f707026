//! Event channels: `event_channel_op`, virtual interrupts and the FIFO layout.

pub mod fifo;

use crate::layout::{constants, wire};

pub use virq::*;

constants! { "event_channel.h";
    EVTCHNOP_BIND_INTERDOMAIN: u32 = 0 => "EVTCHNOP_bind_interdomain";
    EVTCHNOP_BIND_VIRQ: u32 = 1 => "EVTCHNOP_bind_virq";
    EVTCHNOP_BIND_PIRQ: u32 = 2 => "EVTCHNOP_bind_pirq";
    EVTCHNOP_CLOSE: u32 = 3 => "EVTCHNOP_close";
    EVTCHNOP_SEND: u32 = 4 => "EVTCHNOP_send";
    EVTCHNOP_STATUS: u32 = 5 => "EVTCHNOP_status";
    EVTCHNOP_ALLOC_UNBOUND: u32 = 6 => "EVTCHNOP_alloc_unbound";
    EVTCHNOP_BIND_IPI: u32 = 7 => "EVTCHNOP_bind_ipi";
    EVTCHNOP_BIND_VCPU: u32 = 8 => "EVTCHNOP_bind_vcpu";
    EVTCHNOP_UNMASK: u32 = 9 => "EVTCHNOP_unmask";
    EVTCHNOP_RESET: u32 = 10 => "EVTCHNOP_reset";
    EVTCHNOP_INIT_CONTROL: u32 = 11 => "EVTCHNOP_init_control";
    EVTCHNOP_EXPAND_ARRAY: u32 = 12 => "EVTCHNOP_expand_array";
    EVTCHNOP_SET_PRIORITY: u32 = 13 => "EVTCHNOP_set_priority";
    BIND_PIRQ__WILL_SHARE: u32 = 1 => "BIND_PIRQ__WILL_SHARE";
    EVTCHNSTAT_CLOSED: u32 = 0 => "EVTCHNSTAT_closed";
    EVTCHNSTAT_UNBOUND: u32 = 1 => "EVTCHNSTAT_unbound";
    EVTCHNSTAT_INTERDOMAIN: u32 = 2 => "EVTCHNSTAT_interdomain";
    EVTCHNSTAT_PIRQ: u32 = 3 => "EVTCHNSTAT_pirq";
    EVTCHNSTAT_VIRQ: u32 = 4 => "EVTCHNSTAT_virq";
    EVTCHNSTAT_IPI: u32 = 5 => "EVTCHNSTAT_ipi";
    EVTCHN_2L_NR_CHANNELS: usize = 4096 => "EVTCHN_2L_NR_CHANNELS";
    EVTCHN_FIFO_PRIORITY_MAX: u32 = 0 => "EVTCHN_FIFO_PRIORITY_MAX";
    EVTCHN_FIFO_PRIORITY_DEFAULT: u32 = 7 => "EVTCHN_FIFO_PRIORITY_DEFAULT";
    EVTCHN_FIFO_PRIORITY_MIN: u32 = 15 => "EVTCHN_FIFO_PRIORITY_MIN";
    EVTCHN_FIFO_MAX_QUEUES: usize = 16 => "EVTCHN_FIFO_MAX_QUEUES";
    EVTCHN_FIFO_PENDING: u32 = 31 => "EVTCHN_FIFO_PENDING";
    EVTCHN_FIFO_MASKED: u32 = 30 => "EVTCHN_FIFO_MASKED";
    EVTCHN_FIFO_LINKED: u32 = 29 => "EVTCHN_FIFO_LINKED";
    EVTCHN_FIFO_BUSY: u32 = 28 => "EVTCHN_FIFO_BUSY";
    EVTCHN_FIFO_LINK_BITS: u32 = 17 => "EVTCHN_FIFO_LINK_BITS";
    EVTCHN_FIFO_LINK_MASK: u32 = 0x1ffff => "EVTCHN_FIFO_LINK_MASK";
    EVTCHN_FIFO_NR_CHANNELS: usize = 0x20000 => "EVTCHN_FIFO_NR_CHANNELS";
}

wire! { "event_channel.h";
    /// `EVTCHNOP_alloc_unbound`: opens a port of `dom` that `remote_dom` may bind.
    struct EvtchnAllocUnbound = "struct evtchn_alloc_unbound", 8 {
        /// Owner of the new port; `DOMID_SELF` for the caller.
        0x0 dom: u16,
        /// The domain that may bind the port.
        0x2 remote_dom: u16,
        /// Out: the port.
        0x4 port: u32,
    }

    /// `EVTCHNOP_bind_interdomain`: joins a new local port to a remote unbound one.
    struct EvtchnBindInterdomain = "struct evtchn_bind_interdomain", 12 {
        0x0 remote_dom: u16,
        0x2 _pad0: u16 = "",
        0x4 remote_port: u32,
        /// Out: the port.
        0x8 local_port: u32,
    }

    /// `EVTCHNOP_bind_virq`.
    struct EvtchnBindVirq = "struct evtchn_bind_virq", 12 {
        /// `VIRQ_*`.
        0x0 virq: u32,
        0x4 vcpu: u32,
        /// Out: the port.
        0x8 port: u32,
    }

    /// `EVTCHNOP_bind_pirq`.
    struct EvtchnBindPirq = "struct evtchn_bind_pirq", 12 {
        0x0 pirq: u32,
        /// `BIND_PIRQ__WILL_SHARE`.
        0x4 flags: u32,
        /// Out: the port.
        0x8 port: u32,
    }

    /// `EVTCHNOP_bind_ipi`.
    struct EvtchnBindIpi = "struct evtchn_bind_ipi", 8 {
        0x0 vcpu: u32,
        /// Out: the port.
        0x4 port: u32,
    }

    /// `EVTCHNOP_close`.
    struct EvtchnClose = "struct evtchn_close", 4 {
        0x0 port: u32,
    }

    /// `EVTCHNOP_send`.
    struct EvtchnSend = "struct evtchn_send", 4 {
        0x0 port: u32,
    }

    /// `EVTCHNOP_status`.
    struct EvtchnStatus = "struct evtchn_status", 24 {
        0x00 dom: u16,
        0x02 _pad0: u16 = "",
        0x04 port: u32,
        /// Out: `EVTCHNSTAT_*`.
        0x08 status: u32,
        /// Out: vCPU that the port notifies.
        0x0c vcpu: u32,
        /// Out, by `status`: the low half of the first word is the remote domain and the second word the remote
        /// port, or the first word is the pirq or virq.
        0x10 u: [u32; 2],
    }

    /// `EVTCHNOP_bind_vcpu`.
    struct EvtchnBindVcpu = "struct evtchn_bind_vcpu", 8 {
        0x0 port: u32,
        0x4 vcpu: u32,
    }

    /// `EVTCHNOP_unmask`.
    struct EvtchnUnmask = "struct evtchn_unmask", 4 {
        0x0 port: u32,
    }

    /// `EVTCHNOP_reset`.
    struct EvtchnReset = "struct evtchn_reset", 2 {
        0x0 dom: u16,
    }

    /// `EVTCHNOP_init_control`.
    struct EvtchnInitControl = "struct evtchn_init_control", 24 {
        /// Frame of the control block.
        0x00 control_gfn: u64,
        /// Byte offset of the block in that frame.
        0x08 offset: u32,
        0x0c vcpu: u32,
        /// Out: [`EVTCHN_FIFO_LINK_BITS`].
        0x10 link_bits: u8,
        0x11 _pad: [u8; 7],
    }

    /// `EVTCHNOP_expand_array`.
    struct EvtchnExpandArray = "struct evtchn_expand_array", 8 {
        0x0 array_gfn: u64,
    }

    /// `EVTCHNOP_set_priority`.
    struct EvtchnSetPriority = "struct evtchn_set_priority", 8 {
        0x0 port: u32,
        0x4 priority: u32,
    }

    /// Argument of the old `event_channel_op_compat`: command and any of the above.
    struct EvtchnOp = "struct evtchn_op", 28 {
        0x0 cmd: u32,
        0x4 u: [u32; 6],
    }

    /// Per-vCPU control block of the FIFO layout.
    struct EvtchnFifoControlBlock = "struct evtchn_fifo_control_block", 72 {
        /// Bit n: queue n has events.
        0x0 ready: u32,
        0x4 _rsvd: u32,
        /// First event of each queue.
        0x8 head: [u32; EVTCHN_FIFO_MAX_QUEUES],
    }
}

/// Virtual interrupts.
pub mod virq {
    use crate::layout::constants;

    constants! { "xen.h";
        VIRQ_TIMER: u32 = 0 => "VIRQ_TIMER";
        VIRQ_DEBUG: u32 = 1 => "VIRQ_DEBUG";
        VIRQ_CONSOLE: u32 = 2 => "VIRQ_CONSOLE";
        VIRQ_DOM_EXC: u32 = 3 => "VIRQ_DOM_EXC";
        VIRQ_TBUF: u32 = 4 => "VIRQ_TBUF";
        VIRQ_DEBUGGER: u32 = 6 => "VIRQ_DEBUGGER";
        VIRQ_XENOPROF: u32 = 7 => "VIRQ_XENOPROF";
        VIRQ_CON_RING: u32 = 8 => "VIRQ_CON_RING";
        VIRQ_PCPU_STATE: u32 = 9 => "VIRQ_PCPU_STATE";
        VIRQ_MEM_EVENT: u32 = 10 => "VIRQ_MEM_EVENT";
        VIRQ_ARGO: u32 = 11 => "VIRQ_ARGO";
        VIRQ_ENOMEM: u32 = 12 => "VIRQ_ENOMEM";
        VIRQ_XENPMU: u32 = 13 => "VIRQ_XENPMU";
        VIRQ_ARCH_0: u32 = 16 => "VIRQ_ARCH_0";
        VIRQ_ARCH_1: u32 = 17 => "VIRQ_ARCH_1";
        VIRQ_ARCH_2: u32 = 18 => "VIRQ_ARCH_2";
        VIRQ_ARCH_3: u32 = 19 => "VIRQ_ARCH_3";
        VIRQ_ARCH_4: u32 = 20 => "VIRQ_ARCH_4";
        VIRQ_ARCH_5: u32 = 21 => "VIRQ_ARCH_5";
        VIRQ_ARCH_6: u32 = 22 => "VIRQ_ARCH_6";
        VIRQ_ARCH_7: u32 = 23 => "VIRQ_ARCH_7";
        NR_VIRQS: u32 = 24 => "NR_VIRQS";
    }
}
