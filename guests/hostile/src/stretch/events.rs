//! Calls on event channels, with as many ports as there can be.

use alloc::vec;
use alloc::vec::Vec;

use pvrt::space::*;
use ring_abi::evtchn::*;
use ring_abi::hypercall::*;
use ring_abi::types::DOMID_SELF;

use super::case;

/// The cases.
pub(super) fn events() {
    let event = |command: u32, arg: u64| call(__HYPERVISOR_EVENT_CHANNEL_OP, [command.into(), arg, 0, 0, 0]);
    let alloc = EvtchnAllocUnbound { dom: DOMID_SELF, remote_dom: DOMID_SELF, ..Default::default() };
    let mut ports = vec![alloc; 4096];
    let start = ports.as_mut_ptr() as u64;
    let mut calls: Vec<MulticallEntry> = (0..4096)
        .map(|n| MulticallEntry {
            op: __HYPERVISOR_EVENT_CHANNEL_OP.into(),
            result: 0,
            args: [
                EVTCHNOP_ALLOC_UNBOUND.into(),
                start + n * size_of::<EvtchnAllocUnbound>() as u64,
                0,
                0,
                0,
                0,
            ],
        })
        .collect();
    case("4,096 ports", || call(__HYPERVISOR_MULTICALL, [calls.as_mut_ptr() as u64, 4096, 0, 0, 0]));
    let opened: Vec<u32> =
        ports.iter().zip(&calls).filter(|(_, call)| call.result == 0).map(|(port, _)| port.port).collect();
    let mut closes: Vec<EvtchnClose> = opened.iter().map(|port| EvtchnClose { port: *port }).collect();
    let start = closes.as_mut_ptr() as u64;
    let half = closes.len() / 2;
    let mut calls: Vec<MulticallEntry> = (0..half as u64)
        .map(|n| MulticallEntry {
            op: __HYPERVISOR_EVENT_CHANNEL_OP.into(),
            result: 0,
            args: [EVTCHNOP_CLOSE.into(), start + n * size_of::<EvtchnClose>() as u64, 0, 0, 0, 0],
        })
        .collect();
    case("half of them closed", || {
        call(__HYPERVISOR_MULTICALL, [calls.as_mut_ptr() as u64, half as u64, 0, 0, 0])
    });
    // All ports but the last are open again. The first is closed and opened, and then the hypervisor must
    // search for another.
    let mut first = EvtchnClose { port: 1 };
    let mut other = alloc;
    let call_of = |command: u32, arg: u64| MulticallEntry {
        op: __HYPERVISOR_EVENT_CHANNEL_OP.into(),
        result: 0,
        args: [command.into(), arg, 0, 0, 0, 0],
    };
    while event(EVTCHNOP_ALLOC_UNBOUND, (&raw mut other) as u64) == 0 {
        first.port = other.port;
    }
    let (close, open) = ((&raw mut first) as u64, (&raw mut other) as u64);
    let mut calls: Vec<MulticallEntry> = (0..512)
        .flat_map(|_| {
            [(EVTCHNOP_CLOSE, close), (EVTCHNOP_ALLOC_UNBOUND, open), (EVTCHNOP_ALLOC_UNBOUND, open)]
        })
        .map(|(command, arg)| call_of(command, arg))
        .collect();
    case("ports sought where none is free", || {
        call(__HYPERVISOR_MULTICALL, [calls.as_mut_ptr() as u64, calls.len() as u64, 0, 0, 0])
    });
    for close in &mut closes[half..] {
        event(EVTCHNOP_CLOSE, (&raw mut *close) as u64);
    }
}
