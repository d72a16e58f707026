//! `shared_info`: the page that a domain and the hypervisor share.
//!
//! These structures describe the layout. Code reads and writes a live page field by field through
//! [`crate::shared::SharedPage`] with the offsets below, never through references.

use core::mem::offset_of;

use crate::evtchn::EVTCHN_2L_NR_CHANNELS;
use crate::layout::{constants, wire};

/// Number of vCPUs that have a `vcpu_info` in the shared page.
pub const XEN_LEGACY_MAX_VCPUS: usize = crate::guest_context::XEN_LEGACY_MAX_VCPUS;

wire! { "xen.h";
    /// Clock of one vCPU.
    struct VcpuTimeInfo = "struct vcpu_time_info", 32 {
        /// Odd while the hypervisor writes.
        0x00 version: u32,
        0x04 pad0: u32,
        /// TSC when `system_time` was read.
        0x08 tsc_timestamp: u64,
        /// Nanoseconds since power-on at `tsc_timestamp`.
        0x10 system_time: u64,
        /// Multiplier, 32 fraction bits.
        0x18 tsc_to_system_mul: u32,
        /// Left shift before multiplying; right if negative.
        0x1c tsc_shift: i8,
        /// `XEN_PVCLOCK_*`.
        0x1d flags: u8,
        0x1e pad1: [u8; 2],
    }

    /// Event and trap state of one vCPU.
    struct VcpuInfo = "struct vcpu_info", 64 {
        /// Nonzero if an event waits.
        0x00 evtchn_upcall_pending: u8,
        /// Nonzero to hold upcalls back.
        0x01 evtchn_upcall_mask: u8,
        0x02 _pad0: [u8; 6] = "",
        /// Bit n: word n of `evtchn_pending` has a bit set.
        0x08 evtchn_pending_sel: u64,
        /// Page-fault address and padding.
        0x10 arch: ArchVcpuInfo,
        /// Clock.
        0x20 time: VcpuTimeInfo,
    }

    /// Architecture part of [`VcpuInfo`].
    struct ArchVcpuInfo = "struct arch_vcpu_info", 16 {
        /// CR2 of the last page fault delivered.
        0x0 cr2: u64,
        0x8 pad: u64,
    }

    /// Architecture part of [`SharedInfo`]: written by the guest, read by the toolstack.
    struct ArchSharedInfo = "struct arch_shared_info", 48 {
        /// Pages in the P2M table.
        0x00 max_pfn: u64,
        /// Frame of the list of lists of P2M frames.
        0x08 pfn_to_mfn_frame_list_list: u64,
        /// `XEN_NMIREASON_*`.
        0x10 nmi_reason: u64,
        /// cr3 under which `p2m_vaddr` is valid; 0 if the linear list is not used.
        0x18 p2m_cr3: u64,
        /// Address of the linear P2M list.
        0x20 p2m_vaddr: u64,
        /// Odd while the guest changes the list.
        0x28 p2m_generation: u64,
    }

    /// The shared page of a domain; the rest of the 4096 bytes is zero.
    struct SharedInfo = "struct shared_info", 0xc40 {
        /// vCPUs 0 to 31.
        0x000 vcpu_info: [VcpuInfo; XEN_LEGACY_MAX_VCPUS],
        /// 2-level pending bits, one per port.
        0x800 evtchn_pending: [u64; 64],
        /// 2-level mask bits, one per port.
        0xa00 evtchn_mask: [u64; 64],
        /// Odd while the hypervisor writes the wall clock.
        0xc00 wc_version: u32,
        /// Wall clock at system time 0: low half of the seconds.
        0xc04 wc_sec: u32,
        /// Nanoseconds.
        0xc08 wc_nsec: u32,
        /// High half of the seconds.
        0xc0c wc_sec_hi: u32,
        /// Architecture part.
        0xc10 arch: ArchSharedInfo,
    }
}

constants! { "xen.h";
    XEN_PVCLOCK_TSC_STABLE_BIT: u8 = 1 => "XEN_PVCLOCK_TSC_STABLE_BIT";
    XEN_PVCLOCK_GUEST_STOPPED: u8 = 2 => "XEN_PVCLOCK_GUEST_STOPPED";
}

/// Offset of `vcpu_info[vcpu]` in the shared page, or `None` above vCPU 31.
#[must_use]
pub const fn vcpu_info_offset(vcpu: usize) -> Option<usize> {
    if vcpu < XEN_LEGACY_MAX_VCPUS { Some(vcpu * size_of::<VcpuInfo>()) } else { None }
}

/// Offset of the pending words in the shared page.
pub const EVTCHN_PENDING_OFFSET: usize = offset_of!(SharedInfo, evtchn_pending);
/// Offset of the mask words in the shared page.
pub const EVTCHN_MASK_OFFSET: usize = offset_of!(SharedInfo, evtchn_mask);
/// Offset of `wc_version`, the first word of the wall clock.
pub const WC_VERSION_OFFSET: usize = offset_of!(SharedInfo, wc_version);
/// Offset of `wc_sec`.
pub const WC_SEC_OFFSET: usize = offset_of!(SharedInfo, wc_sec);
/// Offset of `wc_nsec`.
pub const WC_NSEC_OFFSET: usize = offset_of!(SharedInfo, wc_nsec);
/// Offset of `wc_sec_hi`.
pub const WC_SEC_HI_OFFSET: usize = offset_of!(SharedInfo, wc_sec_hi);
/// Offset of the architecture part.
pub const ARCH_OFFSET: usize = offset_of!(SharedInfo, arch);

/// Offset within `vcpu_info` of `evtchn_upcall_pending`.
pub const UPCALL_PENDING_OFFSET: usize = offset_of!(VcpuInfo, evtchn_upcall_pending);
/// Offset within `vcpu_info` of `evtchn_upcall_mask`.
pub const UPCALL_MASK_OFFSET: usize = offset_of!(VcpuInfo, evtchn_upcall_mask);
/// Offset within `vcpu_info` of `evtchn_pending_sel`.
pub const PENDING_SEL_OFFSET: usize = offset_of!(VcpuInfo, evtchn_pending_sel);
/// Offset within `vcpu_info` of `arch.cr2`.
pub const CR2_OFFSET: usize = offset_of!(VcpuInfo, arch);
/// Offset within `vcpu_info` of `time`.
pub const TIME_OFFSET: usize = offset_of!(VcpuInfo, time);

const _: () = assert!(EVTCHN_2L_NR_CHANNELS == 64 * 64);

impl VcpuTimeInfo {
    /// System time in nanoseconds when the TSC reads `tsc`. For a TSC before `tsc_timestamp`, the result is the time at
    /// `tsc_timestamp`.
    #[must_use]
    pub const fn nanoseconds_at(&self, tsc: u64) -> u64 {
        let ticks = tsc.saturating_sub(self.tsc_timestamp);
        let scaled = if self.tsc_shift >= 0 {
            ticks << (self.tsc_shift as u32 & 63)
        } else {
            ticks >> ((-(self.tsc_shift as i32)) as u32 & 63)
        };
        let passed = (scaled as u128 * self.tsc_to_system_mul as u128) >> 32;
        self.system_time.wrapping_add(passed as u64)
    }

    /// TSC ticks in `ns` nanoseconds; `u64::MAX` for a record that gives no rate.
    #[must_use]
    pub const fn ticks(&self, ns: u64) -> u64 {
        let mul = self.tsc_to_system_mul as u128;
        if mul == 0 {
            return u64::MAX;
        }
        let scaled = ((ns as u128) << 32) / mul;
        let ticks = if self.tsc_shift >= 0 {
            scaled >> (self.tsc_shift as u32 & 63)
        } else {
            scaled << ((-(self.tsc_shift as i32)) as u32 & 63)
        };
        ticks as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vcpu_slots() {
        assert_eq!(vcpu_info_offset(0), Some(0));
        assert_eq!(vcpu_info_offset(31), Some(31 * 64));
        assert_eq!(vcpu_info_offset(32), None);
        assert_eq!(vcpu_info_offset(usize::MAX), None);
    }

    #[test]
    fn clock_arithmetic() {
        let mut time = VcpuTimeInfo { tsc_timestamp: 1000, system_time: 5, ..Default::default() };
        time.tsc_to_system_mul = 1 << 31; // half a nanosecond a tick
        assert_eq!(time.nanoseconds_at(1000), 5);
        assert_eq!(time.nanoseconds_at(1010), 10);
        assert_eq!(time.nanoseconds_at(0), 5);
        time.tsc_shift = 1;
        assert_eq!(time.nanoseconds_at(1010), 15);
        time.tsc_shift = -1;
        assert_eq!(time.nanoseconds_at(1010), 7);
    }

    #[test]
    fn ticks_are_what_nanoseconds_come_from() {
        for (mul, shift) in [(1 << 31, 0), (1 << 31, 1), (1 << 31, -1), (3_000_000_000, -2), (u32::MAX, 3)] {
            let time = VcpuTimeInfo { tsc_to_system_mul: mul, tsc_shift: shift, ..Default::default() };
            let ticks = time.ticks(1_000_000);
            let ns = time.nanoseconds_at(ticks);
            assert!((999_980..=1_000_000).contains(&ns), "{mul} {shift}: {ticks} ticks are {ns} ns");
        }
        assert_eq!(VcpuTimeInfo::default().ticks(1), u64::MAX);
    }
}
