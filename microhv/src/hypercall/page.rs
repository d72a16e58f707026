//! The hypercall page: a stub for each call, at 32 bytes times its number.

use ring_abi::hypercall::__HYPERVISOR_IRET;
use ring_abi::shared::SharedBytes;
use ring_abi::types::PAGE_SIZE;

const STUB_BYTES: usize = 32;
const INT3: u8 = 0xcc;

/// push rcx; push r11; mov eax, number; syscall; pop r11; pop rcx; ret
const fn stub(number: u32) -> [u8; 15] {
    let [a, b, c, d] = number.to_le_bytes();
    [0x51, 0x41, 0x53, 0xb8, a, b, c, d, 0x0f, 0x05, 0x41, 0x5b, 0x59, 0xc3, INT3]
}

/// push rcx; push r11; push rax; mov eax, 23; syscall: it is jumped to, and does not return.
const fn iret_stub() -> [u8; 11] {
    [0x51, 0x41, 0x53, 0x50, 0xb8, __HYPERVISOR_IRET as u8, 0, 0, 0, 0x0f, 0x05]
}

/// Fills a page with the stubs.
pub fn write_hypercall_page(page: &SharedBytes) {
    page.fill(0, PAGE_SIZE, INT3);
    for number in 0..(PAGE_SIZE / STUB_BYTES) as u32 {
        let at = number as usize * STUB_BYTES;
        if u64::from(number) == __HYPERVISOR_IRET as u64 {
            page.write(at, &iret_stub());
        } else {
            page.write(at, &stub(number));
        }
    }
}
