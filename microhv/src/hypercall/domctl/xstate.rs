//! The toolstack reads and sets a vCPU's floating-point and vector state, and its MSRs.

use ring_abi::domctl::*;
use ring_abi::types::GuestVa;
use zerocopy::FromZeros;

use super::Operation;
use crate::domain::FpuArea;
use crate::emul::valid_xcr0;
use crate::hypercall::{Answer, HypercallError};
use crate::platform::Platform;

/// What the toolstack's buffer begins with: XCR0, and the components that the guest ever enabled.
const HEAD: usize = 16;
/// Where the header of the area stands: the components that the area has, and how it is laid out.
const HEADER: usize = 512;
/// Bytes of x87 and SSE with the header behind them.
const LEGACY: usize = HEADER + 64;

impl<P: Platform> Operation<'_, '_, P> {
    /// Bytes of an area of `XSAVE` that has `components`.
    fn area_bytes(&self, components: u64) -> usize {
        let end = |component: u32| {
            let part = self.cur.hv.platform.cpuid(0xd, component);
            (part.ebx as usize).saturating_add(part.eax as usize)
        };
        let above = (2..63).filter(|component| components >> component & 1 != 0);
        above.map(end).fold(LEGACY, usize::max).min(FpuArea::BYTES)
    }

    fn components(&self) -> u64 {
        self.domain.levels.states(self.cur.hv.platform.xcr0_mask())
    }

    /// `XEN_DOMCTL_getvcpuextstate`: without a buffer, how large one must be: 0 on a CPU without `XSAVE`.
    pub(super) fn get_xstate(&self, wanted: XenDomctlVcpuextstate) -> Answer<XenDomctlVcpuextstate> {
        self.not_own()?;
        let vcpu = self.vcpu(wanted.vcpu)?;
        let components = self.components();
        let bytes = if components == 0 { 0 } else { HEAD + self.area_bytes(components) };
        let told = XenDomctlVcpuextstate { xfeature_mask: components, size: bytes as u64, ..wanted };
        if wanted.buffer == 0 || components == 0 {
            return Ok(told);
        }
        HypercallError::Invalid.when(wanted.size < told.size)?;
        let mut buffer =
            <[u8; HEAD + FpuArea::BYTES]>::new_box_zeroed().map_err(|_| HypercallError::NoMemory)?;
        self.hold()?;
        let (head, area) = buffer.split_at_mut(HEAD);
        vcpu.fpu.copy_to(area);
        let xcr0 = vcpu.fpu.xcr0();
        self.cur.hv.unpause_domain(self.domain);
        head[..8].copy_from_slice(&xcr0.to_le_bytes());
        head[8..].copy_from_slice(&(xcr0 | word(area, HEADER)).to_le_bytes());
        self.cur.copy_to_guest(GuestVa::new(wanted.buffer), &buffer[..bytes])?;
        Ok(told)
    }

    /// `XEN_DOMCTL_setvcpuextstate`.
    ///
    /// # Errors
    /// `Invalid`: the CPU does not have what the state has, or would not load the state.
    pub(super) fn set_xstate(&self, wanted: &XenDomctlVcpuextstate) -> Answer {
        self.not_own()?;
        let vcpu = self.vcpu(wanted.vcpu)?;
        let size = usize::try_from(wanted.size).unwrap_or(usize::MAX);
        HypercallError::Invalid.when(!(HEAD + LEGACY..=HEAD + FpuArea::BYTES).contains(&size))?;
        let mut buffer =
            <[u8; HEAD + FpuArea::BYTES]>::new_box_zeroed().map_err(|_| HypercallError::NoMemory)?;
        self.cur.copy_from_guest(&mut buffer[..size], GuestVa::new(wanted.buffer))?;
        let (xcr0, ever) = (word(&buffer[..], 0), word(&buffer[..], 8));
        let area = buffer.last_chunk::<{ FpuArea::BYTES }>().ok_or(HypercallError::Invalid)?;
        let (has, mask) = (word(&area[..], HEADER), self.components());
        // The rest of the header says how the area is laid out: 0 is as `XSAVE` does, and all else is reserved or another way.
        let is_plain = area[HEADER + 8..LEGACY].iter().all(|byte| *byte == 0);
        let is_fine = mask != 0
            && valid_xcr0(xcr0, mask)
            && (xcr0 | ever) & !mask == 0
            && has & !(xcr0 | ever) == 0
            && is_plain
            && size >= HEAD + self.area_bytes(has);
        HypercallError::Invalid.when(!is_fine)?;
        self.hold()?;
        vcpu.fpu.replace(xcr0, area);
        self.cur.hv.unpause_domain(self.domain);
        Ok(())
    }

    /// `XEN_DOMCTL_get_vcpu_msrs`: a guest has no MSR of its own that a toolstack must keep.
    pub(super) fn get_msrs(&self, wanted: XenDomctlVcpuMsrs) -> Answer<XenDomctlVcpuMsrs> {
        self.not_own()?;
        self.vcpu(wanted.vcpu)?;
        Ok(XenDomctlVcpuMsrs { msr_count: 0, ..wanted })
    }

    /// `XEN_DOMCTL_set_vcpu_msrs`.
    ///
    /// # Errors
    /// `Invalid`: there is one to be set.
    pub(super) fn set_msrs(&self, wanted: &XenDomctlVcpuMsrs) -> Answer {
        self.not_own()?;
        self.vcpu(wanted.vcpu)?;
        HypercallError::Invalid.when(wanted.msr_count != 0)
    }
}

fn word(bytes: &[u8], at: usize) -> u64 {
    bytes[at..].first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
}
