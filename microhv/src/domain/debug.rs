//! Debug registers of a vCPU: which values a guest may give them.

use ring_abi::segment::{HYPERVISOR_VIRT_END, HYPERVISOR_VIRT_START};

use super::GuestCpu;
use crate::frames::pte::is_canonical;
use crate::nospec::Wrapped;
use crate::platform::Platform;

/// DR7: bits that are always one, that are always zero, and general detect.
pub(super) const DR7_FIXED_ONES: u64 = 0x400;
const DR7_FIXED_ZEROS: u64 = 0xffff_ffff_0000_d800;
const DR7_GENERAL_DETECT: u64 = 1 << 13;
/// DR7: local and global enable bits of the four breakpoints.
const DR7_ENABLE: u64 = 0xff;
/// DR6: bits that are always one and always zero.
pub(super) const DR6_FIXED_ONES: u64 = 0xffff_0ff0;
const DR6_FIXED_ZEROS: u64 = 0xffff_ffff_0000_1000;

/// Why a guest cannot give a debug register a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DebugRegisterError {
    /// A breakpoint in the hypervisor, an I/O breakpoint without CR4.DE, an execution breakpoint of more than one byte,
    /// or general detect.
    NotPermitted,
    /// No such register.
    NoDevice,
}

/// The value that debug register `index` takes when a guest writes `value`.
///
/// # Errors
/// [`DebugRegisterError`] says why a guest must not have the value.
pub(crate) fn checked_debug_value(index: u64, value: u64, cr4: u64) -> Result<u64, DebugRegisterError> {
    match index {
        0..=3 if is_canonical(value) && !(HYPERVISOR_VIRT_START..HYPERVISOR_VIRT_END).contains(&value) => {
            Ok(value)
        }
        0..=3 => Err(DebugRegisterError::NotPermitted),
        6 => Ok(value & !DR6_FIXED_ZEROS | DR6_FIXED_ONES),
        7 => {
            if value & DR7_GENERAL_DETECT != 0 {
                return Err(DebugRegisterError::NotPermitted);
            }
            let value = value & !DR7_FIXED_ZEROS | DR7_FIXED_ONES;
            for breakpoint in 0..4 {
                let enabled = value >> (2 * breakpoint) & 3 != 0;
                let kind = value >> (16 + 4 * breakpoint) & 15;
                // Kind 2 is an I/O breakpoint with DE, undefined without; an execution breakpoint has length 1.
                if enabled
                    && ((kind & 3 == 2 && cr4 & GuestCpu::CR4_DE == 0) || (kind & 3 == 0 && kind >> 2 != 0))
                {
                    return Err(DebugRegisterError::NotPermitted);
                }
            }
            Ok(value)
        }
        _ => Err(DebugRegisterError::NoDevice),
    }
}

impl GuestCpu {
    /// Sets debug register `index` of the vCPU that runs.
    ///
    /// # Errors
    /// The errors of [`checked_debug_value`].
    pub(crate) fn set_debug_register<P: Platform>(
        &mut self,
        platform: &P,
        index: u64,
        value: u64,
    ) -> Result<(), DebugRegisterError> {
        let value = checked_debug_value(index, value, self.cr4)?;
        if index == 7 && value & DR7_ENABLE != 0 && self.debug[7] & DR7_ENABLE == 0 {
            // A switch leaves the addresses of a vCPU out of the processor that has no breakpoint on.
            for index in 0..4 {
                platform.set_debug_register(index, self.debug[usize::from(index)]);
            }
        }
        *self.debug.wrapped_mut(index as usize) = value;
        platform.set_debug_register(index as u8, value);
        Ok(())
    }

    /// The value of debug register `index`.
    ///
    /// # Errors
    /// `NoDevice`: there is no such register.
    pub(crate) fn debug_register(&self, index: u64) -> Result<u64, DebugRegisterError> {
        match index {
            0..=3 | 6 | 7 => Ok(*self.debug.wrapped(index as usize)),
            _ => Err(DebugRegisterError::NoDevice),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_registers_keep_out_of_the_hypervisor() {
        assert_eq!(checked_debug_value(0, 0x1000, 0), Ok(0x1000));
        for bad in [HYPERVISOR_VIRT_START, HYPERVISOR_VIRT_END - 1, 0x8000_0000_0000, 1 << 63] {
            assert_eq!(checked_debug_value(3, bad, 0), Err(DebugRegisterError::NotPermitted), "{bad:#x}");
        }
        assert!(checked_debug_value(1, HYPERVISOR_VIRT_END, 0).is_ok());
        for none in [4, 5, 8, u64::MAX] {
            assert_eq!(checked_debug_value(none, 0, 0), Err(DebugRegisterError::NoDevice));
        }
    }

    #[test]
    fn debug_control_is_checked() {
        assert_eq!(checked_debug_value(7, 0, 0), Ok(0x400));
        assert_eq!(checked_debug_value(7, DR7_GENERAL_DETECT, 0), Err(DebugRegisterError::NotPermitted));
        let io = 1 | (2 << 16);
        assert_eq!(checked_debug_value(7, io, 0), Err(DebugRegisterError::NotPermitted));
        assert_eq!(checked_debug_value(7, io, GuestCpu::CR4_DE), Ok(io | 0x400));
        assert_eq!(checked_debug_value(7, 1 | (4 << 16), 0), Err(DebugRegisterError::NotPermitted));
        assert_eq!(checked_debug_value(7, !DR7_GENERAL_DETECT, GuestCpu::CR4_DE), Ok(0xffff_07ff));
        assert_eq!(checked_debug_value(6, 0, 0), Ok(DR6_FIXED_ONES));
    }
}
