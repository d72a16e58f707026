//! The vCPU that runs on this CPU, and copies between a handler and the vCPU's memory: a handler reads each argument
//! once.

use alloc::sync::Arc;

use ring_abi::guest_context::CpuUserRegs;
use ring_abi::types::GuestVa;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::{Domain, GuestCpu, Vcpu};
use crate::Hypervisor;
use crate::platform::{GuestFault, Platform, Settled};

/// The vCPU that runs on this CPU, and all that the vCPU may act on.
#[derive(Debug)]
pub struct Current<'a, P: Platform> {
    /// The hypervisor.
    pub hv: &'a Hypervisor<P>,
    /// The caller's domain.
    pub domain: &'a Arc<Domain>,
    /// The caller.
    pub vcpu: &'a Vcpu,
    /// The caller's registers.
    pub regs: &'a mut CpuUserRegs,
}

/// The platform's copies, for the vCPU whose tables are loaded. A session on page tables borrows the `Current`, so no
/// session is open here and no flush is owed.
impl<P: Platform> Current<'_, P> {
    #[inline(always)]
    fn settled(&self) -> Settled<'_> {
        Settled::new()
    }

    /// Reads guest memory with the rights of the guest's kernel; stops at the first fault.
    ///
    /// # Errors
    /// How far the copy came.
    #[inline(always)]
    pub fn copy_from_guest(&self, to: &mut [u8], va: GuestVa) -> Result<(), GuestFault> {
        self.hv.platform.copy_from_guest(self.settled(), to, va)
    }

    /// Writes guest memory with the rights of the guest's kernel; stops at the first fault.
    ///
    /// # Errors
    /// How far the copy came.
    #[inline(always)]
    pub fn copy_to_guest(&self, va: GuestVa, from: &[u8]) -> Result<(), GuestFault> {
        let Err(fault) = self.hv.platform.copy_to_guest(self.settled(), va, from) else { return Ok(()) };
        // By value, so that what is written at once need not be in memory.
        if let Ok(word) = <[u8; 8]>::try_from(from) {
            self.write_word_again(va, u64::from_ne_bytes(word), 8)
        } else if let Ok(word) = <[u8; 4]>::try_from(from) {
            self.write_word_again(va, u32::from_ne_bytes(word).into(), 4)
        } else if let Ok(word) = <[u8; 2]>::try_from(from) {
            self.write_word_again(va, u16::from_ne_bytes(word).into(), 2)
        } else {
            self.hv.write_again(self.domain, self.vcpu, va, from, fault)
        }
    }

    /// Writes the words of a trap frame at guest address `va`. After a fault `Hypervisor::write_again` may get further.
    ///
    /// # Errors
    /// How far the write came.
    #[inline(always)]
    pub fn write_frame<const N: usize>(&self, va: GuestVa, words: [u64; N]) -> Result<(), GuestFault> {
        self.hv.platform.write_frame(self.settled(), va, words)
    }

    /// Reads a few words at guest address `va`.
    ///
    /// # Errors
    /// How far the read came.
    #[inline(always)]
    pub fn read_words(&self, to: &mut [u64], va: GuestVa) -> Result<(), GuestFault> {
        self.hv.platform.read_words(self.settled(), to, va)
    }

    /// Reads the words of a frame at guest address `va`.
    ///
    /// # Errors
    /// How far the read came.
    #[inline(always)]
    pub fn read_frame<const N: usize>(&self, va: GuestVa) -> Result<[u64; N], GuestFault> {
        self.hv.platform.read_frame(self.settled(), va)
    }
}

impl<P: Platform> Current<'_, P> {
    /// Sets CR0.TS, the guest's and the processor's.
    pub fn set_task_switched(&self, on: bool) {
        let mut cpu = self.vcpu.cpu.lock();
        cpu.cr0 = cpu.cr0 & !GuestCpu::CR0_TS | if on { GuestCpu::CR0_TS } else { 0 };
        drop(cpu);
        self.hv.platform.set_task_switched(on);
    }

    /// Reads a `T` at guest address `va`.
    ///
    /// # Errors
    /// How far the read came.
    #[inline]
    pub fn copy_in<T: FromBytes + IntoBytes>(&self, va: GuestVa) -> Result<T, GuestFault> {
        let mut value = T::new_zeroed();
        self.copy_from_guest(value.as_mut_bytes(), va)?;
        Ok(value)
    }

    /// Reads entry `index` of an array of `T` at guest address `array` into `value`, where the compiler would move the
    /// result of [`Current::copy_in_at`] about.
    ///
    /// # Errors
    /// How far the read came; `value` may have been written in part.
    #[inline]
    pub fn copy_in_place<T: FromBytes + IntoBytes>(
        &self,
        array: GuestVa,
        index: u64,
        value: &mut T,
    ) -> Result<(), GuestFault> {
        self.copy_from_guest(value.as_mut_bytes(), element::<T>(array, index)?)
    }

    /// Writes `value` at guest address `va`.
    ///
    /// # Errors
    /// How far the write came.
    #[inline]
    pub fn copy_out<T: IntoBytes + Immutable>(&self, va: GuestVa, value: &T) -> Result<(), GuestFault> {
        self.copy_to_guest(va, value.as_bytes())
    }

    /// Reads entry `index` of an array of `T` at guest address `array`.
    ///
    /// # Errors
    /// How far the read came.
    #[inline]
    pub fn copy_in_at<T: FromBytes + IntoBytes>(&self, array: GuestVa, index: u64) -> Result<T, GuestFault> {
        self.copy_in(element::<T>(array, index)?)
    }

    /// Writes entry `index` of an array of `T` at guest address `array`.
    ///
    /// # Errors
    /// How far the write came.
    #[inline]
    pub fn copy_out_at<T: IntoBytes + Immutable>(
        &self,
        array: GuestVa,
        index: u64,
        value: &T,
    ) -> Result<(), GuestFault> {
        self.copy_out(element::<T>(array, index)?, value)
    }
}

/// Address of entry `index`; an array that wraps round is a fault.
fn element<T>(array: GuestVa, index: u64) -> Result<GuestVa, GuestFault> {
    array.element::<T>(index).ok_or(GuestFault { copied: 0 })
}
