//! Events without upcalls, taken from the shared page by a loop that polls for them.

use pvrt::hypercall::{event, sched};
use ring_abi::shared_info::{
    EVTCHN_PENDING_OFFSET, PENDING_SEL_OFFSET, UPCALL_MASK_OFFSET, UPCALL_PENDING_OFFSET, VcpuInfo,
};
use ring_abi::types::Port;

/// Words of pending events that are looked at: enough for the few hundred ports of this kernel.
const WORDS: usize = 8;

/// The offset of the `vcpu_info` of `vcpu` in the shared page.
fn record(vcpu: usize) -> usize {
    vcpu * size_of::<VcpuInfo>()
}

/// The word of `port` in the shared page, and its bit.
fn place(port: Port) -> (usize, u64) {
    let number = port.raw() as usize;
    (EVTCHN_PENDING_OFFSET + number / 64 * 8, 1 << (number % 64))
}

/// Sends on `port`.
pub(crate) fn send(port: Port) {
    // If the port is closed, no answer comes, which ends the test.
    let _ = event::send(port);
}

/// Blocks vCPU `vcpu`, which calls this, until `port` has an event, and takes it.
pub(crate) fn wait(port: Port, vcpu: usize) {
    let info = pvrt::shared_info();
    let (word, bit) = place(port);
    while info.load_u64(word) & bit == 0 {
        // If the port is closed, this loop never ends.
        let _ = sched::poll(&[port], 0);
    }
    info.and_u64(word, !bit);
    forget(vcpu);
}

/// Takes the event of `port`, bound to another vCPU `vcpu`, as that vCPU would.
pub(crate) fn take(port: Port, vcpu: usize) {
    let (word, bit) = place(port);
    pvrt::shared_info().and_u64(word, !bit);
    forget(vcpu);
}

/// Takes every event that vCPU 0 has.
pub(crate) fn take_all() {
    let info = pvrt::shared_info();
    for word in 0..WORDS {
        info.store_u64(EVTCHN_PENDING_OFFSET + word * 8, 0);
    }
    forget(0);
}

fn forget(vcpu: usize) {
    let info = pvrt::shared_info();
    info.store_u64(record(vcpu) + PENDING_SEL_OFFSET, 0);
    info.store_u8(record(vcpu) + UPCALL_PENDING_OFFSET, 0);
}

/// Holds upcalls of `vcpu` back.
pub(crate) fn mask(vcpu: usize) {
    pvrt::shared_info().store_u8(record(vcpu) + UPCALL_MASK_OFFSET, 1);
}

/// Makes the runtime look at every word again, since the functions above also clear events of the runtime's
/// ports.
pub(crate) fn look_again() {
    let info = pvrt::shared_info();
    info.store_u64(PENDING_SEL_OFFSET, u64::MAX);
    info.store_u8(UPCALL_PENDING_OFFSET, 1);
}
