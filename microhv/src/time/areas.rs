//! What guests read of time: `vcpu_time_info`, the wall clock, runstate and time areas.

use alloc::sync::Arc;
use core::sync::atomic::Ordering;

use ring_abi::shared::SharedBytes;
use ring_abi::shared_info::{
    TIME_OFFSET, WC_NSEC_OFFSET, WC_SEC_HI_OFFSET, WC_SEC_OFFSET, WC_VERSION_OFFSET,
    XEN_PVCLOCK_TSC_STABLE_BIT,
};
use ring_abi::types::GuestVa;
use ring_abi::vcpu::XEN_RUNSTATE_UPDATE;
use ring_abi::vm_assist::VMASST_TYPE_RUNSTATE_UPDATE_FLAG;
use zerocopy::IntoBytes;

use super::state::{RunstateInfo, TimeArea};
use crate::Hypervisor;
use crate::domain::{Domain, Vcpu};
use crate::platform::{Clock, GuestMemory, Platform, Settled, TimeParams};

const NS_PER_SECOND: u64 = 1_000_000_000;

/// Bytes of `struct vcpu_time_info`.
const TIME_BYTES: usize = 32;

/// The offset of the entry time in a runstate area; the highest bit of that is [`XEN_RUNSTATE_UPDATE`].
const ENTRY_TIME: usize = 8;

/// `vcpu_time_info` from offset 8 on: TSC u64, system time u64 @10, multiplier u32 @18, shift i8 @1c, flags u8 @1d.
fn time_words(params: &TimeParams) -> [u64; 3] {
    let flags = if params.is_one_clock { u64::from(XEN_PVCLOCK_TSC_STABLE_BIT) } else { 0 };
    let scale = u64::from(params.mul) | u64::from(params.shift as u8) << 32 | flags << 40;
    [params.tsc, params.system_ns, scale]
}

/// Writes `params` into a `vcpu_time_info`; the version, at its start, is odd meanwhile.
fn publish(time: &SharedBytes, params: &TimeParams) {
    let version = time.load_u32(0) | 1;
    time.store_u32(0, version);
    for (offset, word) in [0x08, 0x10, 0x18].into_iter().zip(time_words(params)) {
        time.store_u64(offset, word);
    }
    time.store_u32(0, version.wrapping_add(1));
}

/// Shows a vCPU the clock, if its `vcpu_info` does not show that clock already.
pub(crate) fn publish_time(clock: &impl Clock, vcpu: &Vcpu) {
    let mut time = vcpu.time.lock();
    if time.published == clock.clock_generation() {
        return;
    }
    let params = time.shown_on.params(clock);
    if let Some(time_info) = vcpu.info.get().and_then(|info| info.slice(TIME_OFFSET, TIME_BYTES)) {
        publish(&time_info, &params);
        time.published = params.generation;
    }
}

/// Writes the areas that a vCPU registered by address, if its kernel's tables are loaded. If not, the areas are stale, and the
/// switch to kernel mode calls this again.
pub(crate) fn update_areas<P: Clock + GuestMemory>(platform: &P, domain: &Domain, vcpu: &Vcpu) {
    let time = vcpu.time.lock();
    let generation = platform.clock_generation();
    let runstate = time.runstate_area;
    let clock = time.time_area.filter(|area| area.published != generation);
    if runstate.is_none() && clock.is_none() {
        return;
    }
    let is_stale = vcpu.user_mode.load(Ordering::Relaxed);
    vcpu.areas_stale.store(is_stale, Ordering::Relaxed);
    if is_stale {
        return;
    }
    let info = time.runstate_info(time.entry_ns);
    drop(time);
    if let Some(va) = runstate {
        write_runstate(platform, domain, va, info);
    }
    if let Some(area) = clock {
        write_time_area(platform, vcpu, area.va);
    }
}

/// Writes a runstate area of the vCPU that runs here; after a fault the area keeps what it had. No session on page tables is
/// open here, in a hypercall of that vCPU or right after the switch to it.
pub(crate) fn write_runstate(
    memory: &impl GuestMemory,
    domain: &Domain,
    va: GuestVa,
    mut info: RunstateInfo,
) {
    let to_guest = |at: usize, bytes: &[u8]| {
        memory.copy_to_guest(Settled::new(), va.wrapping_add(at as u64), bytes).is_ok()
    };
    if !domain.assists(VMASST_TYPE_RUNSTATE_UPDATE_FLAG) {
        to_guest(0, info.as_bytes());
        return;
    }
    let entry_ns = info[ENTRY_TIME / 8];
    info[ENTRY_TIME / 8] |= XEN_RUNSTATE_UPDATE;
    if to_guest(ENTRY_TIME, info[ENTRY_TIME / 8].as_bytes()) && to_guest(0, info.as_bytes()) {
        to_guest(ENTRY_TIME, entry_ns.as_bytes());
    }
}

/// Writes the time area of `vcpu` at `va` of the loaded tables; after a fault the area keeps what it had. No session on page
/// tables is open here, as in [`write_runstate`].
pub(crate) fn write_time_area<P: Clock + GuestMemory>(platform: &P, vcpu: &Vcpu, va: GuestVa) {
    let mut time = vcpu.time.lock(); // to the end: another CPU may write the area too
    let params = time.shown_on.params(platform);
    // The area is noted even if the write faults: a new attempt at each switch would not help.
    time.time_area = Some(TimeArea { va, published: params.generation });
    let mut version = 0u32;
    if platform.copy_from_guest(Settled::new(), version.as_mut_bytes(), va).is_err() {
        return;
    }
    version |= 1;
    let [tsc, system_ns, scale] = time_words(&params);
    let info = [version.into(), tsc, system_ns, scale];
    let to_guest = |bytes: &[u8]| platform.copy_to_guest(Settled::new(), va, bytes).is_ok();
    if to_guest(version.as_bytes()) && to_guest(info.as_bytes()) {
        to_guest(version.wrapping_add(1).as_bytes());
    }
}

impl<P: Platform> Hypervisor<P> {
    /// Shows a new calibration of the clock. The domains that run now see the new clock at once, the others when they
    /// run next: a domain that does not run cannot read its clocks, and the machine may have too many vCPUs for one
    /// step. (I13)
    pub fn clock_changed(&self) {
        for cpu in self.sched.known() {
            if let Some(running) = self.sched.running(cpu) {
                self.show_clock(running.domain());
            }
        }
    }

    /// Shows all vCPUs of a domain the clock, running or not, so that all read the same ([`XEN_PVCLOCK_TSC_STABLE_BIT`]): a
    /// process on one vCPU reads the time area of another vCPU, which may sleep for long. If the TSCs are not one clock, a vCPU that
    /// moves must be shown its own anew, so the domain's clock stays to be shown.
    fn show_clock(&self, domain: &Domain) {
        let params = self.platform.time_params();
        for vcpu in &domain.vcpus {
            publish_time(&self.platform, vcpu);
            self.publish_time_area(domain, vcpu);
        }
        if params.is_one_clock {
            // This store comes last: another CPU that reads the new value lets a vCPU of the domain run.
            domain.clock_shown.store(params.generation, Ordering::Release);
        }
    }

    /// Shows what a vCPU of the domain, to which this CPU has gone over, does not see yet of the clock.
    #[cold]
    fn show_new_clock(&self, domain: &Domain, vcpu: &Vcpu) {
        if self.platform.time_params().is_one_clock {
            self.show_clock(domain);
        } else {
            self.show_own_clock(domain, vcpu);
        }
    }

    /// Brings a domain's clocks and a vCPU's areas up to date, when this CPU has gone over to the vCPU and its page tables.
    pub fn switched_in(&self, domain: &Arc<Domain>, vcpu: &Vcpu) {
        if domain.clock_shown.load(Ordering::Acquire) != self.platform.clock_generation() {
            self.show_new_clock(domain, vcpu);
        }
        update_areas(&self.platform, domain, vcpu);
    }

    /// Writes the time area of a vCPU where its kernel's tables map the area, loaded or not. An area that crosses two pages, or
    /// lies in no writable page of the domain, waits until the vCPU is switched in.
    pub(super) fn publish_time_area(&self, domain: &Domain, vcpu: &Vcpu) {
        let Some(area) = vcpu.time.lock().time_area else { return };
        let offset = area.va.offset();
        if area.published == self.platform.clock_generation()
            || !offset.is_multiple_of(8)
            || offset > 4096 - TIME_BYTES
        {
            return;
        }
        let Some(page) = self.writable_page_at(domain, vcpu, area.va) else { return };
        let mut time = vcpu.time.lock();
        let params = time.shown_on.params(&self.platform);
        if let Some(place) = self.platform.shared(page.mfn()).slice(offset, TIME_BYTES)
            && let Some(still) = time.time_area.as_mut().filter(|still| still.va == area.va)
        {
            publish(&place, &params);
            still.published = params.generation;
        }
    }

    /// Sets the wall clock: `wall_ns` was the time at system time `system_ns`. All domains see it.
    pub fn set_wall_clock(&self, wall_ns: u64, system_ns: u64) {
        self.time.wall_ns.store(wall_ns.wrapping_sub(system_ns), Ordering::Relaxed);
        for domain in self.domains.snapshot() {
            self.publish_wall_clock(&domain);
        }
    }

    /// Writes the wall clock into a domain's `shared_info`.
    pub fn publish_wall_clock(&self, domain: &Domain) {
        // Another CPU that sets the clock meanwhile either has done so, as is seen under the lock, or writes afterwards.
        let offset = domain.time_offset.lock();
        let base = self.time.wall_ns.load(Ordering::Relaxed);
        let seconds = (base / NS_PER_SECOND).wrapping_add_signed(*offset);
        let page = &domain.shared_info;
        let version = page.load_u32(WC_VERSION_OFFSET) | 1;
        page.store_u32(WC_VERSION_OFFSET, version);
        page.store_u32(WC_SEC_OFFSET, seconds as u32);
        page.store_u32(WC_SEC_HI_OFFSET, (seconds >> 32) as u32);
        page.store_u32(WC_NSEC_OFFSET, (base % NS_PER_SECOND) as u32);
        page.store_u32(WC_VERSION_OFFSET, version.wrapping_add(1));
    }
}
