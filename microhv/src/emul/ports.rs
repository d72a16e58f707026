//! I/O ports of a guest.
//!
//! Two questions, in this order: may the running mode use ports at all (IOPL, I/O bitmap; else #GP), and does the
//! domain own this port (else reads give all ones and writes are lost, as on a bus where no device answers). PCI
//! configuration ports are never a domain's own: the hardware domain's accesses go through `pirq`, which guards
//! interrupt messages.

use core::sync::atomic::Ordering;

use ring_abi::types::GuestVa;
use ring_abi::vm_assist::VMASST_TYPE_ARCHITECTURAL_IOPL;

use super::Emulated;
use super::decode::Direction;
use crate::domain::{Current, Vcpu};
use crate::pirq::pci;
use crate::platform::Platform;

/// The most repetitions of `rep ins`/`outs` before the guest re-executes the instruction.
const MAX_REPEAT: u64 = 512;

/// Whether IOPL lets the mode use ports, `cli` and `sti`. The kernel counts as level 1, or as level 0, which may always, if
/// the domain has the assist that makes IOPL architectural.
pub(super) fn iopl_allows<P: Platform>(cur: &Current<'_, P>, user: bool) -> bool {
    let kernel = u64::from(!cur.domain.assists(VMASST_TYPE_ARCHITECTURAL_IOPL));
    cur.vcpu.iopl.load(Ordering::Relaxed) >= if user { Vcpu::IOPL } else { kernel }
}

/// Emulates `in` and `out`.
pub(super) fn access<P: Platform>(
    cur: &mut Current<'_, P>,
    direction: Direction,
    port: Option<u8>,
    bytes: u8,
    user: bool,
) -> Emulated {
    let port = port.map_or(cur.regs.rdx as u16, u16::from);
    if !may_use_ports(cur, port, bytes, user) {
        return Emulated::NotEmulated;
    }
    if direction == Direction::Out {
        transfer(cur, port, bytes, Some(cur.regs.rax as u32 & ones(bytes)));
        return Emulated::Done;
    }
    let value = transfer(cur, port, bytes, None) & ones(bytes);
    // A 32-bit result clears the upper half.
    let kept = if bytes == 4 { 0 } else { cur.regs.rax & !u64::from(ones(bytes)) };
    cur.regs.rax = kept | u64::from(value);
    Emulated::Done
}

/// Emulates `ins` and `outs`. Apart, so that the emulation of all others does not save registers for it.
#[inline(never)]
pub(super) fn string<P: Platform>(
    cur: &mut Current<'_, P>,
    direction: Direction,
    bytes: u8,
    repeat: bool,
    address32: bool,
    user: bool,
) -> Emulated {
    let port = cur.regs.rdx as u16;
    if !may_use_ports(cur, port, bytes, user) {
        return Emulated::NotEmulated;
    }
    let address_mask = if address32 { 0xffff_ffff } else { u64::MAX };
    let len = usize::from(bytes);
    let step = if cur.regs.rflags & 1 << 10 != 0 { 0u64.wrapping_sub(len as u64) } else { len as u64 };
    let mut budget = MAX_REPEAT;
    loop {
        if repeat && cur.regs.rcx & address_mask == 0 {
            return Emulated::Done;
        }
        if budget == 0 {
            // rip stays: the guest executes the rest after the pending work.
            return Emulated::Again;
        }
        budget -= 1;
        let index = if direction == Direction::In { cur.regs.rdi } else { cur.regs.rsi };
        let address = GuestVa::new(index & address_mask);
        let mut buffer = [0; 4];
        let moved = match direction {
            Direction::In => {
                // The page must take the value before the device gives it up.
                let probe = &mut buffer[..len];
                if cur.copy_from_guest(probe, address).is_err() || cur.copy_to_guest(address, probe).is_err()
                {
                    return Emulated::PageFault { address: address.raw(), write: true };
                }
                let value = transfer(cur, port, bytes, None).to_le_bytes();
                cur.copy_to_guest(address, &value[..len])
            }
            Direction::Out => {
                let copied = cur.copy_from_guest(&mut buffer[..len], address);
                if copied.is_ok() {
                    transfer(cur, port, bytes, Some(u32::from_le_bytes(buffer)));
                }
                copied
            }
        };
        if let Err(fault) = moved {
            return Emulated::PageFault {
                address: address.wrapping_add(fault.copied as u64).raw(),
                write: direction == Direction::In,
            };
        }
        let next = index & !address_mask | index.wrapping_add(step) & address_mask;
        match direction {
            Direction::In => cur.regs.rdi = next,
            Direction::Out => cur.regs.rsi = next,
        }
        if !repeat {
            return Emulated::Done;
        }
        cur.regs.rcx = cur.regs.rcx & !address_mask | cur.regs.rcx.wrapping_sub(1) & address_mask;
    }
}

/// IOPL, or a clear bit for each byte of the access in the I/O bitmap that the kernel set.
fn may_use_ports<P: Platform>(cur: &Current<'_, P>, port: u16, bytes: u8, user: bool) -> bool {
    if iopl_allows(cur, user) {
        return true;
    }
    let (bitmap, ports) = {
        let cpu = cur.vcpu.cpu.lock();
        (cpu.io_bitmap, cpu.io_bitmap_ports)
    };
    let Some(bitmap) = bitmap else { return false };
    let (first, count) = (u32::from(port), u32::from(bytes));
    if first + count > ports {
        return false;
    }
    with_kernel_tables(cur, user, || {
        // An access may straddle two bytes of the bitmap.
        (first..first + count).all(|port| {
            let mut byte = [0];
            let at = GuestVa::new(bitmap).wrapping_add(u64::from(port / 8));
            cur.copy_from_guest(&mut byte, at).is_ok() && byte[0] >> (port % 8) & 1 == 0
        })
    })
}

/// Runs `access` with the tables of the guest's kernel: the user tables need not map what the kernel registered.
fn with_kernel_tables<P: Platform, R>(cur: &Current<'_, P>, user: bool, access: impl FnOnce() -> R) -> R {
    let tables = if user { cur.vcpu.cr3_kernel.get().zip(cur.vcpu.cr3_user.get()) } else { None };
    if let Some((kernel, _)) = tables {
        cur.hv.platform.load_cr3(kernel);
    }
    let result = access();
    if let Some((_, user)) = tables {
        cur.hv.platform.load_cr3(user);
    }
    result
}

/// All ones of an access: what a read without rights gives.
const fn ones(bytes: u8) -> u32 {
    u32::MAX >> (32 - 8 * bytes as u32)
}

/// Makes an access: `out` goes to the port, or what the port says is given. Configuration space is guarded by the
/// hypervisor; a port that the domain does not own says all ones, and takes nothing.
fn transfer<P: Platform>(cur: &Current<'_, P>, port: u16, bytes: u8, out: Option<u32>) -> u32 {
    let (hv, domain) = (cur.hv, cur.domain);
    let (first, end) = (u64::from(port), u64::from(port) + u64::from(bytes));
    let is_config = port <= pci::DATA_PORT + 3 && end > u64::from(pci::ADDRESS_PORT);
    let is_allowed = match is_config {
        true => domain.privileged && port >= pci::ADDRESS_PORT,
        false => domain.permissions.lock().ports.contains_range(first, end - 1),
    };
    match (out, is_config) {
        _ if !is_allowed => return ones(bytes),
        (None, true) => return hv.pci_port_in(port, bytes),
        (None, false) => return hv.platform.port_in(port, bytes),
        (Some(value), true) => hv.pci_port_out(port, bytes, value),
        (Some(value), false) => hv.platform.port_out(port, bytes, value),
    }
    0
}

#[cfg(test)]
mod tests {
    use alloc::sync::Arc;

    use ring_abi::guest_context::CpuUserRegs;
    use ring_abi::types::{DomId, Mfn};
    use zerocopy::IntoBytes;

    use super::*;
    use crate::Hypervisor;
    use crate::domain::{Domain, DomainConfig};
    use crate::frames::FrameTable;
    use crate::platform::{MachineMemory, Paging};
    use crate::testing::TestMachine;

    const BITMAP: u64 = 0xffff_8880_0000_0ffe;
    const TABLE_FRAMES: u64 = 2;
    const BITMAP_FRAMES: u64 = 10;
    const USER_L4: u64 = 9;

    /// Kernel tables (L4 in frame 2) with the two pages around the bitmap's crossing; user tables (frame 9) are empty.
    fn scene() -> (Hypervisor<TestMachine>, Arc<Domain>) {
        let machine = TestMachine::new(16);
        let shared = machine.shared(Mfn::new(1));
        let domain = Domain::new(DomId::new(1), DomainConfig::default(), Mfn::new(1), shared);
        let entry = |frame: u64| (frame << 12 | 7).as_bytes().to_vec();
        let set = |table: u64, index: u64, frame| {
            machine.shared(Mfn::new(table)).write(index as usize * 8, &entry(frame))
        };
        set(TABLE_FRAMES, BITMAP >> 39 & 511, TABLE_FRAMES + 1);
        set(TABLE_FRAMES + 1, BITMAP >> 30 & 511, TABLE_FRAMES + 2);
        set(TABLE_FRAMES + 2, BITMAP >> 21 & 511, TABLE_FRAMES + 3);
        for page in 0..2 {
            set(TABLE_FRAMES + 3, (BITMAP >> 12 & 511) + page, BITMAP_FRAMES + page);
        }
        let vcpu = &domain.vcpus[0];
        vcpu.cr3_kernel.replace(Some(Mfn::new(TABLE_FRAMES)));
        vcpu.cr3_user.replace(Some(Mfn::new(USER_L4)));
        machine.load_cr3(Mfn::new(USER_L4));
        (Hypervisor::new(machine, FrameTable::default()), domain)
    }

    #[test]
    fn user_mode_may_use_ports_that_the_bitmap_in_kernel_memory_clears() {
        let (hv, domain) = scene();
        let vcpu = &domain.vcpus[0];
        {
            let mut cpu = vcpu.cpu.lock();
            (cpu.io_bitmap, cpu.io_bitmap_ports) = (Some(BITMAP), 0x100);
        }
        let mut bits = [0xff; 32];
        bits[1] = 0x7f; // port 15
        bits[2] = 0xfe; // port 16: its byte lies in the next page
        hv.platform.shared(Mfn::new(BITMAP_FRAMES)).write(0xffe, &bits[..2]);
        hv.platform.shared(Mfn::new(BITMAP_FRAMES + 1)).write(0, &bits[2..]);
        let mut regs = CpuUserRegs::default();
        let cur = Current { hv: &hv, domain: &domain, vcpu, regs: &mut regs };
        let may = |port, width| may_use_ports(&cur, port, width, true);
        assert!(may(15, 1) && may(16, 1) && may(15, 2));
        assert!(!may(14, 1) && !may(14, 2) && !may(16, 2));
        assert!(!may(0xff, 1) && !may(0xff, 2), "set, and past the bitmap's end");
        assert!(!may(0xffff, 4));
        assert_eq!(hv.platform.cr3(), Some(Mfn::new(USER_L4)), "the user's tables are loaded again");
        vcpu.iopl.store(Vcpu::IOPL, Ordering::Relaxed);
        assert!(may(0xff, 2), "IOPL goes before the bitmap");
    }

    #[test]
    fn the_kernel_counts_as_level_1_and_with_the_assist_as_level_0() {
        let (hv, domain) = scene();
        let vcpu = &domain.vcpus[0];
        let mut regs = CpuUserRegs::default();
        let cur = Current { hv: &hv, domain: &domain, vcpu, regs: &mut regs };
        for (assist, kernel_from) in [(0, 1), (1 << VMASST_TYPE_ARCHITECTURAL_IOPL, 0)] {
            domain.assist.store(assist, Ordering::Relaxed);
            for level in 0..=3 {
                vcpu.iopl.store(level << 12, Ordering::Relaxed);
                assert_eq!(iopl_allows(&cur, false), level >= kernel_from, "kernel, {level}, {assist:#x}");
                assert_eq!(iopl_allows(&cur, true), level == 3, "user, {level}, {assist:#x}");
            }
        }
    }
}
