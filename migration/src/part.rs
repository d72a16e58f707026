//! The parts of a vCPU's state, each a record of its own.

use crate::format::*;

/// A part of a vCPU's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VcpuPart {
    /// `struct vcpu_guest_context`.
    Basic,
    /// `struct xen_domctl_ext_vcpucontext`.
    Extended,
    /// XCR0, the components ever used, and the area of `XSAVE`.
    Xsave,
    /// `struct xen_domctl_vcpu_msr`, any number.
    Msrs,
}

impl VcpuPart {
    pub(crate) const ALL: [(Self, u32); 4] = [
        (Self::Basic, X86_PV_VCPU_BASIC),
        (Self::Extended, X86_PV_VCPU_EXTENDED),
        (Self::Xsave, X86_PV_VCPU_XSAVE),
        (Self::Msrs, X86_PV_VCPU_MSRS),
    ];

    /// The part's name in the specification.
    #[must_use]
    pub fn name(self) -> &'static str {
        record_name(self.kind())
    }

    pub(crate) fn kind(self) -> u32 {
        Self::ALL[self as usize].1
    }
}
