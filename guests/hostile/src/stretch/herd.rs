//! All vCPUs of a guest at once: one event wakes them all, and each has a time area.
#![allow(unsafe_code)] // brings up vCPUs

use alloc::boxed::Box;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use pvrt::hypercall::{event, sched};
use pvrt::marker::mark;
use pvrt::mem::Pages;
use pvrt::println;
use pvrt::space::*;
use ring_abi::guest_context::{VGCF_IN_KERNEL, VcpuGuestContext};
use ring_abi::hypercall::*;
use ring_abi::sched::{SCHEDOP_POLL, SchedPoll};
use ring_abi::segment::{FLAT_KERNEL_CS, FLAT_KERNEL_SS};
use ring_abi::types::PAGE_SIZE;
use ring_abi::vcpu::*;

/// vCPUs of a domain at most.
const MOST: u32 = 128;
const INFO_BYTES: u64 = 64;
const AREA_BYTES: u64 = 32;
/// All guests do what they do at multiples of this.
const TOGETHER_NS: u64 = 1_000_000_000;

static WOKEN: AtomicU32 = AtomicU32::new(0);
static BUSY: AtomicBool = AtomicBool::new(false);

/// Does it once, and says how; `quiet`: over and over.
pub(super) fn run(quiet: bool) {
    let (Ok(stacks), Ok(infos), Ok(areas)) =
        (Pages::zeroed(MOST as usize), Pages::zeroed(2), Pages::zeroed(1))
    else {
        return println!("herd: no memory");
    };
    let started = (1..MOST).take_while(|&vcpu| start(vcpu, &stacks, &infos, &areas)).count() as u32;
    wait_for(started);
    println!("herd: {started} others");
    let Ok(port) = event::bind_ipi(0) else { return };
    let Ok(timer) = event::bind_virq(0, 0) else { return println!("herd: no timer") };
    pvrt::shared_info().store_u8(1, 1);
    if quiet {
        loop {
            due(timer);
            wait_for(started);
        }
    }
    say("one event wakes all", &mut || {
        let _ = event::send(port);
    });
    wait_for(started);
    for _ in 0..2 {
        say("timers that wake all at one instant", &mut || due(timer));
        wait_for(started);
    }
    BUSY.store(true, Ordering::Relaxed);
    say("all busy", &mut || {
        let _ = event::send(port);
        clear(port);
        let until = pvrt::time::now_ns() + 200_000_000;
        while pvrt::time::now_ns() < until {
            sched::yield_cpu();
        }
    });
    BUSY.store(false, Ordering::Relaxed);
    say("two seconds of clocks", &mut || {
        let until = pvrt::time::now_ns() + 2_200_000_000;
        while pvrt::time::now_ns() < until {}
    });
}

fn say(name: &str, act: &mut dyn FnMut()) {
    mark::<300>();
    act();
    mark::<301>();
    println!("stretch: {name}: 0x0");
}

fn clear<T>(_port: T) {}

fn wait_for(_started: u32) {
    // Long enough for all to be in their polls again.
    let until = pvrt::time::now_ns() + 300_000_000;
    while pvrt::time::now_ns() < until {
        sched::yield_cpu();
    }
    let info = pvrt::shared_info();
    for word in 0..64 {
        info.store_u64(ring_abi::shared_info::EVTCHN_PENDING_OFFSET + word * 8, 0);
    }
}

/// The timer fires at the next instant that all guests know.
fn due<T>(_timer: T) {
    let at = (pvrt::time::now_ns() / TOGETHER_NS + 1) * TOGETHER_NS;
    call(__HYPERVISOR_SET_TIMER_OP, [at, 0, 0, 0, 0]);
    while pvrt::time::now_ns() < at + 100_000 {}
}

fn start(vcpu: u32, stacks: &Pages, infos: &Pages, areas: &Pages) -> bool {
    let op = |command: u32, arg: u64| call(__HYPERVISOR_VCPU_OP, [command.into(), vcpu.into(), arg, 0, 0]);
    if vcpu >= 32 {
        let at = u64::from(vcpu) * INFO_BYTES;
        let info = VcpuRegisterVcpuInfo {
            mfn: infos.mfn(at as usize / PAGE_SIZE).raw(),
            offset: at as u32 % PAGE_SIZE as u32,
            ..Default::default()
        };
        if op(VCPUOP_REGISTER_VCPU_INFO, (&raw const info) as u64) != 0 {
            return false;
        }
    }
    let area = VcpuRegisterTimeMemoryArea { addr: areas.va() as u64 + u64::from(vcpu) * AREA_BYTES % 4096 };
    op(VCPUOP_REGISTER_VCPU_TIME_MEMORY_AREA, (&raw const area) as u64);
    let top = (stacks.va() + (vcpu as usize + 1) * PAGE_SIZE) as u64;
    let mut context = Box::<VcpuGuestContext>::default();
    context.flags = VGCF_IN_KERNEL;
    context.user_regs.rip = other as *const () as u64;
    context.user_regs.rsp = top - 8;
    context.user_regs.rdi = vcpu.into();
    context.user_regs.rflags = 0x200;
    context.user_regs.cs = FLAT_KERNEL_CS;
    context.user_regs.ss = FLAT_KERNEL_SS;
    context.kernel_ss = FLAT_KERNEL_SS.into();
    context.kernel_sp = top;
    context.ctrlreg[3] = base() << 12;
    op(VCPUOP_INITIALISE, (&raw const *context) as u64) == 0
        && op(VCPUOP_STOP_PERIODIC_TIMER, 0) == 0
        && op(VCPUOP_UP, 0) == 0
}

extern "C" fn other(_vcpu: u64) -> ! {
    loop {
        let poll = SchedPoll::default();
        call(__HYPERVISOR_SCHED_OP, [SCHEDOP_POLL.into(), (&raw const poll) as u64, 0, 0, 0]);
        WOKEN.fetch_add(1, Ordering::Relaxed);
        while BUSY.load(Ordering::Relaxed) {
            core::hint::spin_loop();
        }
    }
}
