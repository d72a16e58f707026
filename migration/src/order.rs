//! Which record may come where.

use crate::format::*;

/// What a stream has had so far.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Order {
    info: bool,
    cpuid: bool,
    msr: bool,
    running: bool,
    p2m: bool,
    tsc: bool,
    shared_info: bool,
    /// Of each vCPU, a bit each: basic, extended, XSAVE, MSRs.
    vcpus: [u128; 4],
}

impl Order {
    /// Notes a record.
    ///
    /// # Errors
    /// Why the record may not be there.
    pub(crate) fn next(&mut self, kind: u32) -> Result<(), &'static str> {
        let once =
            |had: &mut bool| if core::mem::replace(had, true) { Err("there was one before") } else { Ok(()) };
        match kind {
            X86_PV_INFO => once(&mut self.info),
            STATIC_DATA_END if !self.info => Err("X86_PV_INFO is missing before it"),
            STATIC_DATA_END => once(&mut self.running),
            X86_CPUID_POLICY | X86_MSR_POLICY if self.running => Err("it stands behind STATIC_DATA_END"),
            X86_CPUID_POLICY => once(&mut self.cpuid),
            X86_MSR_POLICY => once(&mut self.msr),
            _ if !self.info => Err("X86_PV_INFO is missing before it"),
            X86_PV_P2M_FRAMES if self.shared_info || self.vcpus != [0; 4] => {
                Err("it stands behind the state of vCPUs")
            }
            X86_PV_P2M_FRAMES => {
                self.running = true; // version 2 has no STATIC_DATA_END
                // A guest that runs may move its list: then there is another.
                self.p2m = true;
                Ok(())
            }
            _ if !self.p2m => Err("X86_PV_P2M_FRAMES is missing before it"),
            PAGE_DATA if self.shared_info || self.vcpus != [0; 4] => {
                Err("it stands behind the state of vCPUs")
            }
            X86_TSC_INFO => once(&mut self.tsc),
            SHARED_INFO => once(&mut self.shared_info),
            VERIFY | CHECKPOINT => Err("streams that are verified or sent again and again are not read"),
            END if !self.shared_info => Err("SHARED_INFO is missing"),
            END if self.vcpus[0] & 1 == 0 => Err("X86_PV_VCPU_BASIC of vCPU 0 is missing"),
            _ => Ok(()),
        }
    }

    /// Notes part `index` of a vCPU's state.
    pub(crate) fn vcpu(&mut self, id: u32, index: usize) -> Result<(), &'static str> {
        let bit = 1 << id;
        if index > 0 && self.vcpus[0] & bit == 0 {
            return Err("X86_PV_VCPU_BASIC of that vCPU is missing before it");
        }
        if self.vcpus[index] & bit != 0 {
            return Err("there was one of that vCPU before");
        }
        self.vcpus[index] |= bit;
        Ok(())
    }
}
