//! A herd: all vCPUs that a guest can have, except the first. The herd sleeps in `SCHEDOP_poll`, and one
//! event wakes all of it.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use pvrt::event::Port;
use pvrt::hypercall::{event, sched, vcpu};
use pvrt::mem::Pages;
use pvrt::time;
use ring_abi::shared_info::EVTCHN_MASK_OFFSET;
use ring_abi::types::{PAGE_SIZE, Port as Number};
use ring_abi::vcpu::*;

use crate::others;

/// vCPUs of a domain at most.
const MOST: u32 = 128;
/// vCPUs whose `vcpu_info` is in the shared page.
const IN_SHARED_INFO: u32 = 32;
/// Bytes of a `vcpu_info`, and of a time area.
const INFO_BYTES: usize = 64;
const AREA_BYTES: usize = 32;
/// How long the first vCPU sleeps before it looks again at the others.
const LOOK_NS: u64 = 10_000_000;

/// The port that the herd polls; 0: any port.
static POLLED: AtomicU32 = AtomicU32::new(0);
/// The number of members that have come up.
static CAME_UP: AtomicU32 = AtomicU32::new(0);
/// How often a member woke.
static WOKE: AtomicU32 = AtomicU32::new(0);
/// Members that wake stay awake until this system time.
static STAY_UNTIL_NS: AtomicU64 = AtomicU64::new(0);

/// Which events wake a herd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WokenBy {
    /// Any event of this domain's.
    All,
    /// Only [`Herd::wake`], once; then the members go down.
    Wake,
}

/// The vCPUs of a herd, which exist until the domain ends.
pub(crate) struct Herd {
    port: Port,
    members: u32,
}

impl Herd {
    /// Brings the members up. When this returns, all sleep or are about to. `None`: this domain lacks memory, or has
    /// no other vCPUs.
    pub(crate) async fn start(woken_by: WokenBy) -> Option<Self> {
        let stacks = Pages::zeroed(MOST as usize).ok()?;
        let infos = Pages::zeroed(MOST as usize * INFO_BYTES / PAGE_SIZE).ok()?;
        let areas = Pages::zeroed(MOST as usize * AREA_BYTES / PAGE_SIZE).ok()?;
        let port = Port::adopt(event::bind_ipi(0).ok()?);
        if woken_by == WokenBy::Wake {
            let number = port.number().raw();
            POLLED.store(number, Ordering::Relaxed);
            // The port is masked, so that the first vCPU does not take the event, and the event stays pending
            // for a member that is about to sleep.
            let word = EVTCHN_MASK_OFFSET + number as usize / 64 * 8;
            pvrt::shared_info().or_u64(word, 1 << (number % 64));
        }
        let start = |vcpu: u32| {
            let n = vcpu as usize;
            if vcpu >= IN_SHARED_INFO {
                let info = VcpuRegisterVcpuInfo {
                    mfn: infos.mfn(n * INFO_BYTES / PAGE_SIZE).raw(),
                    offset: (n * INFO_BYTES % PAGE_SIZE) as u32,
                    ..Default::default()
                };
                others::operate(VCPUOP_REGISTER_VCPU_INFO, vcpu, (&raw const info) as u64);
            }
            let area = VcpuRegisterTimeMemoryArea { addr: (areas.va() + n * AREA_BYTES) as u64 };
            others::operate(VCPUOP_REGISTER_VCPU_TIME_MEMORY_AREA, vcpu, (&raw const area) as u64);
            others::start(vcpu, (stacks.va() + (n + 1) * PAGE_SIZE) as u64, member)
        };
        let members = (1..MOST).take_while(|&vcpu| start(vcpu)).count() as u32;
        core::mem::forget((stacks, infos, areas));
        let herd = (members > 0).then_some(Self { port, members })?;
        while CAME_UP.load(Ordering::Relaxed) < members {
            time::sleep(LOOK_NS).await;
        }
        Some(herd)
    }

    /// The number of members.
    pub(crate) fn members(&self) -> u32 {
        self.members
    }

    /// How often a member woke.
    pub(crate) fn woke(&self) -> u32 {
        WOKE.load(Ordering::Relaxed)
    }

    /// Waits until all members have woken.
    pub(crate) async fn all_woken(&self) {
        while self.woke() < self.members {
            time::sleep(LOOK_NS).await;
        }
    }

    /// Wakes all members, which then stay awake for `stay_ns`.
    pub(crate) fn wake(&self, stay_ns: u64) {
        STAY_UNTIL_NS.store(time::now_ns() + stay_ns, Ordering::Relaxed);
        self.port.notify();
    }
}

/// Sleeps until system time, which all guests of a machine share, is a multiple of `ns`.
pub(crate) async fn sleep_until_multiple_of(ns: u64) {
    time::sleep_until((time::now_ns() / ns + 1) * ns).await;
}

/// The code of one member: sleeps, and wakes.
extern "C" fn member(vcpu: u32) -> ! {
    let _ = vcpu::stop_periodic_timer(vcpu);
    CAME_UP.fetch_add(1, Ordering::Relaxed);
    let polled = match POLLED.load(Ordering::Relaxed) {
        0 => None,
        port => Some(Number::new(port)),
    };
    loop {
        let _ = sched::poll(polled.as_slice(), 0);
        WOKE.fetch_add(1, Ordering::Relaxed);
        while time::now_ns() < STAY_UNTIL_NS.load(Ordering::Relaxed) {
            sched::yield_cpu();
        }
        if polled.is_some() {
            others::go_down(vcpu); // the event stays
        }
    }
}
