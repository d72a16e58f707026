//! What the keys of domains, run queues, event channels, registers and the heap print.

use core::sync::atomic::Ordering;

use arrayvec::ArrayVec;
use ring_abi::types::Port;

use crate::Hypervisor;
use crate::evtchn::state::PortState;
use crate::platform::{CpuId, Platform};

/// Key `q`: each domain and vCPU.
pub(super) fn domains<P: Platform>(hv: &Hypervisor<P>) {
    let now = hv.platform.now_ns();
    for domain in hv.domains.snapshot() {
        log::info!(
            "{domain:?}: {:?} pages {}/{} pause {} toolstack pause {} shutdown {:?} ports {} assist {:#x}",
            domain.dying(),
            domain.mm.tot_pages(),
            domain.mm.max_pages(),
            domain.pause_count.load(Ordering::Relaxed),
            domain.controller_pause_count.load(Ordering::Relaxed),
            *domain.shutdown.lock(),
            domain.events.open_ports(),
            domain.assist.load(Ordering::Relaxed),
        );
        for vcpu in &domain.vcpus {
            let time = vcpu.time.lock();
            log::info!(
                "  v{}: {:?} flags {:#x} cpu {:?} ran {} us, upcall due {}",
                vcpu.id.raw(),
                time.state,
                vcpu.pause_flags.load(Ordering::Relaxed),
                vcpu.running_on().map(CpuId::raw),
                time.cpu_ns(now) / 1000,
                vcpu.upcall_due(),
            );
        }
    }
}

/// Key `r`: which vCPUs run and wait on each CPU.
pub(super) fn run_queues<P: Platform>(hv: &Hypervisor<P>) {
    for cpu in hv.sched.known() {
        log::info!(
            "CPU{}: idle {} ms, slice ends {:?}, pending {:#x}",
            cpu.raw(),
            hv.sched.idle_ns(cpu, hv.platform.now_ns()) / 1_000_000,
            hv.sched.slice_end(cpu),
            hv.sched.pending(cpu).load(Ordering::Relaxed),
        );
        hv.sched.describe(cpu, |vcpu, run_time, runs| {
            let what = if runs { "runs" } else { "waits" };
            log::info!("  {vcpu:?} {what}, weighted run time {run_time} ns");
        });
    }
    hv.sched.describe_cores(|cpus, turns, runs| {
        log::info!("cores: CPUs {:#x} run {runs:?}, {turns} turns", cpus.bits());
    });
}

/// Key `e`: each open port.
pub(super) fn event_channels<P: Platform>(hv: &Hypervisor<P>) {
    for domain in hv.domains.snapshot() {
        log::info!("{domain:?}: {} ports", domain.events.open_ports());
        for port in (0..domain.events.end()).map(Port::new) {
            let Some(cell) = domain.events.cell(port) else { continue };
            let state = cell.state.lock().clone(); // the line is slow: no lock is held over it
            if !matches!(state, PortState::Free) {
                log::info!(
                    "  {port}: {:?} v{} pending {} masked {}",
                    state,
                    cell.vcpu(),
                    u8::from(domain.events.is_pending(port)),
                    u8::from(domain.events.is_masked(port)),
                );
            }
        }
    }
}

/// Key `d`: the registers of each vCPU at its last entry into the hypervisor.
pub(super) fn registers<P: Platform>(hv: &Hypervisor<P>) {
    for domain in hv.domains.snapshot() {
        for vcpu in domain.vcpus.iter().filter(|vcpu| vcpu.is_up()) {
            let held = vcpu.holder().and_then(|cpu| hv.platform.frame_of(cpu));
            vcpu.log_registers(log::Level::Info, &held.unwrap_or_else(|| vcpu.saved_regs()));
            let history: ArrayVec<_, 16> = vcpu.history.newest_first().take(16).collect();
            log::info!("  last hypercalls, newest first: {history:?}");
        }
    }
}

/// Key `H`: the hypervisor's heap, and what is free.
pub(super) fn heap<P: Platform>(hv: &Hypervisor<P>) {
    let machine = hv.platform.machine_info();
    log::info!(
        "heap: {} of {} bytes in use; {} of {} frames free; {} domains",
        machine.heap_used_bytes,
        machine.heap_bytes,
        hv.frames.free_pages(),
        hv.frames.total_pages(),
        hv.domains.snapshot().len()
    );
}

#[cfg(test)]
mod tests {
    use crate::testing::World;

    #[test]
    fn every_key_copes_with_a_busy_world() {
        let world = World::new(256);
        let guest = world.guest(2);
        world.settle();
        world.hv.alloc_unbound(&guest, world.dom0.id, |_| Ok(())).expect("a port");
        for key in b"hqredmMH" {
            assert!(world.hv.debug_key(*key), "{}", char::from(*key));
        }
        for none in [0, b'~', 0xff] {
            assert!(!world.hv.debug_key(none));
        }
    }

    #[test]
    #[should_panic(expected = "asked for by a debug key")]
    fn the_key_for_a_crash_panics() {
        World::new(256).hv.debug_key(b'C');
    }
}
