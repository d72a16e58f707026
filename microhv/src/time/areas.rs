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

use super::{TimeArea, VcpuTime};
use crate::Hypervisor;
use crate::domain::{Domain, Vcpu};
use crate::platform::{CpuId, Platform, Settled, TimeParams};

const NS_PER_SECOND: u64 = 1_000_000_000;

/// Bytes of `struct vcpu_time_info`.
const TIME_BYTES: usize = 32;

/// Writes `params` into a `vcpu_time_info`; the version is odd meanwhile.
fn publish(time: &SharedBytes, params: &TimeParams) {
    let version = time.load_u32(0) | 1;
    time.store_u32(0, version);
    time.store_u64(0x08, params.tsc);
    time.store_u64(0x10, params.system_ns);
    time.store_u32(0x18, params.mul);
    time.store_u8(0x1c, params.shift as u8);
    time.store_u8(0x1d, flags(params));
    time.store_u32(0, version.wrapping_add(1));
}

/// `vcpu_time_info` as bytes, for a time area.
fn time_info(params: &TimeParams, version: u32) -> [u8; TIME_BYTES] {
    let mut bytes = [0; TIME_BYTES];
    bytes[0..4].copy_from_slice(&version.to_le_bytes());
    bytes[0x08..0x10].copy_from_slice(&params.tsc.to_le_bytes());
    bytes[0x10..0x18].copy_from_slice(&params.system_ns.to_le_bytes());
    bytes[0x18..0x1c].copy_from_slice(&params.mul.to_le_bytes());
    bytes[0x1c] = params.shift as u8;
    bytes[0x1d] = flags(params);
    bytes
}

fn flags(params: &TimeParams) -> u8 {
    if params.is_stable { XEN_PVCLOCK_TSC_STABLE_BIT } else { 0 }
}

/// `vcpu_runstate_info` as bytes: state u32, entry time @8, four times @10.
pub(crate) fn runstate_info(time: &VcpuTime) -> [u8; 48] {
    let mut bytes = [0; 48];
    bytes[0..4].copy_from_slice(&(time.state as u32).to_le_bytes());
    bytes[0x08..0x10].copy_from_slice(&time.entry_ns.to_le_bytes());
    for (slot, ns) in bytes[0x10..].chunks_exact_mut(8).zip(time.spent_ns) {
        slot.copy_from_slice(&ns.to_le_bytes());
    }
    bytes
}

impl<P: Platform> Hypervisor<P> {
    /// Shows a vCPU the clock, if its `vcpu_info` does not show it already.
    pub(crate) fn publish_time(&self, vcpu: &Vcpu) {
        let mut time = vcpu.time.lock();
        if time.published == self.platform.clock_generation() {
            return;
        }
        let params = self.platform.time_params();
        if let Some(time_info) = vcpu.info.get().and_then(|info| info.slice(TIME_OFFSET, TIME_BYTES)) {
            publish(&time_info, &params);
            time.published = params.generation;
        }
    }

    /// The clock was calibrated anew: the domains that run now see it at once, the others when they run next. Nobody reads
    /// the clocks of a domain that does not run, and the machine may have any number of vCPUs. (I13)
    pub fn clock_changed(&self) {
        for cpu in (0..self.platform.machine_info().cpus).filter_map(CpuId::new) {
            if let Some(running) = self.running(cpu) {
                self.show_clock(running.domain());
            }
        }
    }

    /// All vCPUs of a domain see the clock, running or not. What they read is to agree ([`XEN_PVCLOCK_TSC_STABLE_BIT`]): a
    /// process on one vCPU reads the time area of another, which may sleep for long.
    fn show_clock(&self, domain: &Domain) {
        let generation = self.platform.clock_generation();
        for vcpu in &domain.vcpus {
            self.publish_time(vcpu);
            self.publish_time_area(domain, vcpu);
        }
        // Last: another CPU that finds this lets a vCPU of the domain run.
        domain.clock_shown.store(generation, Ordering::Release);
    }

    /// The new vCPU of this CPU has its page tables loaded: its domain's clocks and its areas are brought up to date.
    pub fn switched_in(&self, domain: &Arc<Domain>, vcpu: &Vcpu) {
        let generation = self.platform.clock_generation();
        if domain.clock_shown.load(Ordering::Acquire) != generation {
            self.show_clock(domain);
        }
        let time = vcpu.time.lock();
        let is_area_stale =
            time.runstate_area.is_some() || time.time_area.is_some_and(|area| area.published != generation);
        drop(time);
        if is_area_stale {
            self.update_areas(domain, vcpu);
        }
    }

    /// Writes the areas that a vCPU registered by address, if its kernel's tables are loaded; else they are stale,
    /// and the switch to kernel mode calls this again.
    pub fn update_areas(&self, domain: &Arc<Domain>, vcpu: &Vcpu) {
        let time = vcpu.time.lock();
        let generation = self.platform.clock_generation();
        let runstate = time.runstate_area;
        let clock = time.time_area.filter(|area| area.published != generation);
        if runstate.is_none() && clock.is_none() {
            return;
        }
        if vcpu.user_mode.load(Ordering::Relaxed) {
            vcpu.areas_stale.store(true, Ordering::Relaxed);
            return;
        }
        vcpu.areas_stale.store(false, Ordering::Relaxed);
        let info = runstate_info(&time);
        drop(time);
        if let Some(va) = runstate {
            self.write_runstate(domain, va, info);
        }
        if let Some(area) = clock {
            self.write_time_area(vcpu, area.va);
        }
    }

    /// Writes a runstate area of the vCPU that runs here; a fault is the guest's loss. No session on page tables is open
    /// here, in a hypercall of that vCPU or right after the switch to it.
    pub(crate) fn write_runstate(&self, domain: &Domain, va: u64, mut info: [u8; 48]) {
        let to_guest = |at: u64, bytes: &[u8]| {
            self.platform.copy_to_guest(Settled::new(), va.wrapping_add(at), bytes).is_ok()
        };
        if !domain.assists(VMASST_TYPE_RUNSTATE_UPDATE_FLAG) {
            to_guest(0, &info);
            return;
        }
        let entry = u64::from_le_bytes([
            info[8], info[9], info[10], info[11], info[12], info[13], info[14], info[15],
        ]);
        let marked = (entry | XEN_RUNSTATE_UPDATE).to_le_bytes();
        info[8..16].copy_from_slice(&marked);
        if to_guest(8, &marked) && to_guest(0, &info) {
            to_guest(8, &entry.to_le_bytes());
        }
    }

    /// Writes the time area of `vcpu` at `va` of the loaded tables; a fault is the guest's loss. No session on page tables
    /// is open here, as in [`Hypervisor::write_runstate`].
    pub(crate) fn write_time_area(&self, vcpu: &Vcpu, va: u64) {
        let params = self.platform.time_params();
        let mut time = vcpu.time.lock();
        // Also where it faults: that it is tried at each switch would not help.
        time.time_area = Some(TimeArea { va, published: params.generation });
        let mut version = [0; 4];
        if self.platform.copy_from_guest(Settled::new(), &mut version, va).is_err() {
            return;
        }
        let version = u32::from_le_bytes(version) | 1;
        let mut info = time_info(&params, version);
        let done = self.platform.copy_to_guest(Settled::new(), va, &version.to_le_bytes()).is_ok()
            && self.platform.copy_to_guest(Settled::new(), va, &info).is_ok();
        if done {
            info[..4].copy_from_slice(&version.wrapping_add(1).to_le_bytes());
            let _ = self.platform.copy_to_guest(Settled::new(), va, &info[..4]);
        }
    }

    /// Writes the time area of a vCPU where its kernel's tables map it, loaded or not. What is not a writable page of the
    /// domain, or crosses two, waits until the vCPU is switched in.
    fn publish_time_area(&self, domain: &Domain, vcpu: &Vcpu) {
        let params = self.platform.time_params();
        let Some(area) = vcpu.time.lock().time_area else { return };
        let offset = (area.va & 0xfff) as usize;
        if area.published == params.generation || !area.va.is_multiple_of(8) || offset > 4096 - TIME_BYTES {
            return;
        }
        let Some(page) = self.writable_page_at(domain, vcpu, GuestVa::new(area.va)) else { return };
        let mut time = vcpu.time.lock();
        if let Some(place) = self.platform.shared(page.mfn()).slice(offset, TIME_BYTES)
            && let Some(still) = time.time_area.as_mut().filter(|still| still.va == area.va)
        {
            publish(&place, &params);
            still.published = params.generation;
        }
    }

    /// Wall time at system time 0, ns since 1970.
    pub fn wall_base_ns(&self) -> u64 {
        self.time.set_wall().unwrap_or_else(|| self.platform.boot_wall_ns())
    }

    /// Sets the wall clock: `wall_ns` was the time at system time `system_ns`. All domains see it.
    pub(crate) fn set_wall_clock(&self, wall_ns: u64, system_ns: u64) {
        self.time.store_wall(wall_ns.wrapping_sub(system_ns).max(1));
        for domain in self.domains.snapshot() {
            self.publish_wall_clock(&domain);
        }
    }

    /// Writes the wall clock into a domain's `shared_info`.
    pub fn publish_wall_clock(&self, domain: &Domain) {
        let offset = domain.time_offset_seconds.load(Ordering::Relaxed);
        let base = self.wall_base_ns();
        let seconds = (base / NS_PER_SECOND).wrapping_add_signed(offset);
        let page = &domain.shared_info;
        let version = page.load_u32(WC_VERSION_OFFSET) | 1;
        page.store_u32(WC_VERSION_OFFSET, version);
        page.store_u32(WC_SEC_OFFSET, seconds as u32);
        page.store_u32(WC_SEC_HI_OFFSET, (seconds >> 32) as u32);
        page.store_u32(WC_NSEC_OFFSET, (base % NS_PER_SECOND) as u32);
        page.store_u32(WC_VERSION_OFFSET, version.wrapping_add(1));
    }
}
