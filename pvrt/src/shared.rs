//! The page shared with the hypervisor. ABI: `struct shared_info`, `xen/include/public/xen.h`.
#![allow(unsafe_code)] // the page's address becomes an accessor

use ring_abi::shared::SharedBytes;
use ring_abi::shared_info::CR2_OFFSET;
use ring_abi::types::PAGE_SIZE;

use crate::arch::entry::shared_info_va;
use crate::hypercall::mmu::{pte, update_va_mapping};

/// Maps shared_info, at machine address `maddr`, in place of the page reserved for it in the image.
pub(crate) fn map(maddr: u64) {
    let entry = maddr | pte::P | pte::RW | pte::A | pte::D;
    // SAFETY: the page is reserved for this mapping, and no object lives in the page.
    unsafe { update_va_mapping(shared_info_va(), entry, ring_abi::mmu::UVMF_INVLPG) }
        .expect("mapping shared_info");
}

/// The page shared with the hypervisor, `struct shared_info`. The executor takes events from this page.
#[inline]
pub fn info() -> SharedBytes<'static> {
    // SAFETY: a page of the image, mapped for ever, reached only through this accessor.
    unsafe { SharedBytes::new(shared_info_va() as *mut u8, PAGE_SIZE) }
}

/// The faulting address of the last page fault of vCPU 0, whose record comes first in the page.
pub(crate) fn fault_address() -> u64 {
    info().load_u64(CR2_OFFSET)
}
