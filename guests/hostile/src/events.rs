//! Event channels and timers: ports that do not exist, use of all ports, floods.

use alloc::format;
use alloc::vec::Vec;

use pvrt::hypercall::event;
use ring_abi::errno::Errno::{EBUSY, EEXIST, EINVAL, ENOENT, ENOSPC, ENOSYS, EPERM, ESRCH, ETIME};
use ring_abi::evtchn::*;
use ring_abi::hypercall::*;
use ring_abi::types::{DOMID_SELF, DomId};
use ring_abi::vcpu::*;

use crate::ground::set_own_timer;
use crate::ground::space::{self, call, op};
use crate::report::Report;

/// The number of sends of a flood.
const FLOOD: u32 = 20_000;

/// Runs all cases.
pub(crate) fn run(report: &mut Report) {
    ports(report);
    floods(report);
    timers(report);
}

fn channel<T>(command: u32, mut arg: T) -> i64 {
    op(__HYPERVISOR_EVENT_CHANNEL_OP, command, &mut arg)
}

fn ports(report: &mut Report) {
    for port in [0, 4000, 4095, 4096, 131_071, 1 << 31, u32::MAX] {
        report.refused(&format!("send to {port:#x}"), channel(EVTCHNOP_SEND, EvtchnSend { port }), &[EINVAL]);
        report.refused(
            &format!("close of {port:#x}"),
            channel(EVTCHNOP_CLOSE, EvtchnClose { port }),
            &[EINVAL],
        );
        let got = channel(EVTCHNOP_BIND_VCPU, EvtchnBindVcpu { port, vcpu: 0 });
        report.refused(&format!("bind_vcpu of {port:#x}"), got, &[EINVAL]);
        if port >= 4096 {
            let got = channel(EVTCHNOP_UNMASK, EvtchnUnmask { port });
            report.refused(&format!("unmask of {port:#x}"), got, &[EINVAL]);
        }
    }
    for virq in [24, 255, u32::MAX] {
        let got = channel(EVTCHNOP_BIND_VIRQ, EvtchnBindVirq { virq, vcpu: 0, port: 0 });
        report.refused(&format!("VIRQ {virq:#x}"), got, &[EINVAL]);
    }
    for vcpu in [1 << 16, u32::MAX] {
        let got = channel(EVTCHNOP_BIND_VIRQ, EvtchnBindVirq { virq: 0, vcpu, port: 0 });
        report.refused(&format!("a VIRQ of vCPU {vcpu:#x}"), got, &[ENOENT]);
        let got = channel(EVTCHNOP_BIND_IPI, EvtchnBindIpi { vcpu, port: 0 });
        report.refused(&format!("an IPI to vCPU {vcpu:#x}"), got, &[ENOENT]);
    }
    for remote_dom in [12345, 0x7ff2, 0x7ff4] {
        let arg = EvtchnBindInterdomain { remote_dom, remote_port: 1, ..Default::default() };
        report.refused(
            &format!("domain {remote_dom:#x}"),
            channel(EVTCHNOP_BIND_INTERDOMAIN, arg),
            &[ESRCH, EPERM],
        );
    }
    if !report.privileged {
        let mut bound = None;
        for remote_port in 0..64 {
            let arg = EvtchnBindInterdomain { remote_dom: 0, remote_port, ..Default::default() };
            if channel(EVTCHNOP_BIND_INTERDOMAIN, arg) >= 0 {
                bound = Some(remote_port);
            }
        }
        report.case("dom0's ports", bound.is_none(), bound);
        let arg = EvtchnAllocUnbound { dom: 0, remote_dom: DOMID_SELF, port: 0 };
        report.refused("a port in dom0", channel(EVTCHNOP_ALLOC_UNBOUND, arg), &[EPERM, ESRCH]);
        let arg = EvtchnStatus { dom: 0, port: 1, ..Default::default() };
        report.refused("the state of dom0's port", channel(EVTCHNOP_STATUS, arg), &[EPERM, ESRCH]);
        report.refused("a reset of dom0", channel(EVTCHNOP_RESET, EvtchnReset { dom: 0 }), &[EPERM, ESRCH]);
        let arg = EvtchnBindPirq { pirq: 1, flags: 0, port: 0 };
        report.refused("a PIRQ", channel(EVTCHNOP_BIND_PIRQ, arg), &[EPERM, EINVAL]);
    }
    for pirq in [1 << 20, u32::MAX] {
        let arg = EvtchnBindPirq { pirq, flags: 0, port: 0 };
        report.refused(&format!("PIRQ {pirq:#x}"), channel(EVTCHNOP_BIND_PIRQ, arg), &[EPERM, EINVAL]);
    }
    for command in [15, 99, u32::MAX] {
        report.refused(&format!("command {command:#x}"), channel(command, [0u64; 4]), &[ENOSYS]);
    }
    let arg = EvtchnInitControl { control_gfn: u64::MAX, offset: 4090, vcpu: 99, ..Default::default() };
    report.refused("a control block nowhere", channel(EVTCHNOP_INIT_CONTROL, arg), &[EINVAL, ENOENT, ENOSYS]);
    exhaustion(report);
}

/// Opens all ports, and closes them again.
fn exhaustion(report: &mut Report) {
    let mut taken = Vec::new();
    let full = loop {
        match event::alloc_unbound(DomId::SELF, DomId::SELF) {
            Ok(port) => taken.push(port.raw()),
            Err(errno) => break errno,
        }
    };
    report.case("all ports, then ENOSPC", full == ENOSPC && taken.len() > 900, (full, taken.len()));
    let got = channel(EVTCHNOP_BIND_IPI, EvtchnBindIpi { vcpu: 0, port: 0 });
    report.refused("no port for an IPI", got, &[ENOSPC]);
    let open = taken.iter().find(|port| channel(EVTCHNOP_CLOSE, EvtchnClose { port: **port }) != 0);
    report.case("all closed", open.is_none(), open);
    let mut ipi = EvtchnBindIpi { vcpu: 0, port: 0 };
    report.succeeds("a port again", op(__HYPERVISOR_EVENT_CHANNEL_OP, EVTCHNOP_BIND_IPI, &mut ipi));
    report.succeeds("close", channel(EVTCHNOP_CLOSE, EvtchnClose { port: ipi.port }));
    report.refused("close twice", channel(EVTCHNOP_CLOSE, EvtchnClose { port: ipi.port }), &[EINVAL]);
    let virq = EvtchnBindVirq { virq: 1, vcpu: 0, port: 0 };
    let mut once = virq;
    if op(__HYPERVISOR_EVENT_CHANNEL_OP, EVTCHNOP_BIND_VIRQ, &mut once) == 0 {
        report.refused("a VIRQ twice", channel(EVTCHNOP_BIND_VIRQ, virq), &[EEXIST, EBUSY]);
        channel(EVTCHNOP_CLOSE, EvtchnClose { port: once.port });
    }
}

/// Sends many events to dom0 and to this domain itself.
fn floods(report: &mut Report) {
    let mut sent = 0u32;
    // Port 1 is xenstore's, port 2 the console's; dom0 has neither.
    if !report.privileged {
        for port in [1, 2] {
            for _ in 0..FLOOD {
                sent += u32::from(channel(EVTCHNOP_SEND, EvtchnSend { port }) == 0);
            }
        }
        report.case("events to dom0 without end", sent == 2 * FLOOD, sent);
    }
    let mut ipi = EvtchnBindIpi { vcpu: 0, port: 0 };
    op(__HYPERVISOR_EVENT_CHANNEL_OP, EVTCHNOP_BIND_IPI, &mut ipi);
    let failed = (0..FLOOD).find(|_| channel(EVTCHNOP_SEND, EvtchnSend { port: ipi.port }) != 0);
    report.case("events to itself without end", failed.is_none(), failed);
    for round in 0..2000 {
        channel(EVTCHNOP_CLOSE, EvtchnClose { port: ipi.port });
        if op(__HYPERVISOR_EVENT_CHANNEL_OP, EVTCHNOP_BIND_IPI, &mut ipi) != 0 {
            report.case("bind and close without end", false, round);
        }
    }
    channel(EVTCHNOP_CLOSE, EvtchnClose { port: ipi.port });
}

fn vcpu<T>(command: u32, vcpu: u64, mut arg: T) -> i64 {
    call(__HYPERVISOR_VCPU_OP, [command.into(), vcpu, (&raw mut arg) as u64, 0, 0])
}

fn timers(report: &mut Report) {
    let single = |timeout_abs_ns, flags| {
        let arg = VcpuSetSingleshotTimer { timeout_abs_ns, flags, ..Default::default() };
        vcpu(VCPUOP_SET_SINGLESHOT_TIMER, 0, arg)
    };
    let failed = (0..FLOOD).find(|n| single(u64::from(n % 3), 0) != 0);
    report.case("timers in the past without end", failed.is_none(), failed);
    // Some versions of Xen fire at once instead.
    let got = single(1, VCPU_SSHOTTMR_FUTURE);
    report.case("a past that must be future", got == 0 || got == ETIME.negated(), got);
    report.succeeds("the end of time", single(u64::MAX >> 1, 0));
    let failed =
        (0..FLOOD).find(|n| call(__HYPERVISOR_SET_TIMER_OP, [u64::MAX << (n % 64), 0, 0, 0, 0]) != 0);
    report.case("set_timer_op without end", failed.is_none(), failed);
    for period_ns in [1, 999_999, u64::MAX] {
        let got = vcpu(VCPUOP_SET_PERIODIC_TIMER, 0, VcpuSetPeriodicTimer { period_ns });
        report.refused(&format!("a period of {period_ns} ns"), got, &[EINVAL]);
    }
    report.succeeds("no period", vcpu(VCPUOP_STOP_PERIODIC_TIMER, 0, 0u64));
    for id in [8191, u64::from(u32::MAX), u64::MAX] {
        report.refused(&format!("vCPU {id:#x}"), vcpu(VCPUOP_IS_UP, id, 0u64), &[ENOENT]);
        report.refused(&format!("up of vCPU {id:#x}"), vcpu(VCPUOP_UP, id, 0u64), &[ENOENT]);
    }
    for (name, mfn, offset) in [
        ("nowhere", u64::MAX >> 12, 0),
        ("in a table", space::base(), 0),
        ("over the edge", 0, 4040),
        ("misaligned", 0, 4),
    ] {
        let got = vcpu(VCPUOP_REGISTER_VCPU_INFO, 0, VcpuRegisterVcpuInfo { mfn, offset, rsvd: 0 });
        report.case(&format!("vcpu_info {name}"), got < 0, crate::report::Got(got));
    }
    for at in [space::M2P, 0xffff_8300_0000_0000, 1 << 63] {
        // The hypervisor does not write an area that it cannot write, and later switches must not write it
        // either.
        let got = vcpu(VCPUOP_REGISTER_RUNSTATE_MEMORY_AREA, 0, at);
        pvrt::hypercall::sched::yield_cpu();
        report.case(&format!("a runstate area at {at:#x}"), got <= 0, got);
    }
    vcpu(VCPUOP_REGISTER_RUNSTATE_MEMORY_AREA, 0, 0u64);
    report.succeeds("no timer", vcpu(VCPUOP_STOP_SINGLESHOT_TIMER, 0, 0u64));
    set_own_timer();
}
