//! The instructions that fault in a paravirtualized guest and that the ABI promises to it.
//!
//! A guest runs in ring 3, so each of these ends in #GP or #UD; everything else that faults is the guest's own business.
//! Encodings: AMD64 Architecture Programmer's Manual, volume 3, and Intel SDM, volume 2.

use super::instruction::Instruction;

/// `ud2; .ascii "xen"; cpuid`: asks for the emulated `cpuid`.
///
/// ABI: `XEN_CPUID`, `xen/include/public/arch-x86/xen.h`.
const FORCED_CPUID: [u8; 7] = [0x0f, 0x0b, 0x78, 0x65, 0x6e, 0x0f, 0xa2];

/// Which way the data goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the port.
    In,
    /// To the port.
    Out,
}

/// What a faulting instruction asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "operands carry the manuals' names")]
pub enum Privileged {
    /// `cpuid`, with or without the emulation prefix.
    Cpuid,
    /// `in`, `out` of `bytes` bytes; without a port in the instruction, the port stands in dx.
    Port { direction: Direction, port: Option<u8>, bytes: u8 },
    /// `ins`, memory operand es:rdi; `outs`, memory operand ds:rsi (a segment override of es, cs, ss or ds has no effect
    /// in 64-bit mode).
    PortString { direction: Direction, bytes: u8, repeat: bool, address32: bool },
    /// `cli`.
    Cli,
    /// `sti`.
    Sti,
    /// `clts`.
    Clts,
    /// `wbinvd`. Not `invd`, which would lose what others wrote.
    CacheFlush,
    /// `mov gpr, crN`.
    ReadCr { cr: u8, gpr: u8 },
    /// `mov crN, gpr`.
    WriteCr { cr: u8, gpr: u8 },
    /// `mov gpr, drN`.
    ReadDr { dr: u8, gpr: u8 },
    /// `mov drN, gpr`.
    WriteDr { dr: u8, gpr: u8 },
    /// `rdmsr`.
    Rdmsr,
    /// `wrmsr`.
    Wrmsr,
    /// `rdtsc`.
    Rdtsc,
    /// `rdtscp`.
    Rdtscp,
    /// `xsetbv`.
    Xsetbv,
}

/// The length of the prefixed `cpuid`, if the eight bytes begin with it: kernels execute it thousands of times while they
/// boot.
pub fn forced_cpuid(bytes: u64) -> Option<u8> {
    let [forced @ .., _] = bytes.to_le_bytes();
    (forced == FORCED_CPUID).then_some(FORCED_CPUID.len() as u8)
}

/// Decodes the instruction that starts at `bytes[0]` in 64-bit mode, and tells its length; `None` if it is not one of
/// [`Privileged`] or the bytes end inside it.
pub fn decode(bytes: &[u8]) -> Option<(Privileged, u8)> {
    if bytes.starts_with(&FORCED_CPUID) {
        return Some((Privileged::Cpuid, FORCED_CPUID.len() as u8));
    }
    let mut code = Instruction::new(bytes)?;
    let (repeat, address32) = (code.repeat, code.address32);
    // In the opcodes of port instructions bit 0 tells the width, and bit 1 the direction.
    let bytes = match (code.opcode & 1, code.operand16) {
        (0, _) => 1,
        (_, true) => 2,
        _ => 4,
    };
    let direction = if code.opcode & 2 == 0 { Direction::In } else { Direction::Out };
    let what = match code.opcode {
        // `outs` from fs or gs, which no kernel does, was refused with the prefix: the guest gets its #GP.
        0x6c..=0x6f => Privileged::PortString { direction, bytes, repeat, address32 },
        0xe4..=0xe7 => Privileged::Port { direction, port: Some(code.byte()?), bytes },
        0xec..=0xef => Privileged::Port { direction, port: None, bytes },
        0xfa => Privileged::Cli,
        0xfb => Privileged::Sti,
        0x0f01 => match code.byte()? {
            0xd1 => Privileged::Xsetbv,
            0xf9 => Privileged::Rdtscp,
            _ => return None,
        },
        0x0f06 => Privileged::Clts,
        0x0f09 => Privileged::CacheFlush,
        op @ 0x0f20..=0x0f23 => {
            // The mod field is ignored: the operand is always a register.
            let modrm = code.modrm()?;
            let (number, gpr) = (modrm.register(), modrm.low_register());
            match op {
                0x0f20 => Privileged::ReadCr { cr: number, gpr },
                0x0f21 => Privileged::ReadDr { dr: number, gpr },
                0x0f22 => Privileged::WriteCr { cr: number, gpr },
                _ => Privileged::WriteDr { dr: number, gpr },
            }
        }
        0x0f30 => Privileged::Wrmsr,
        0x0f31 => Privileged::Rdtsc,
        0x0f32 => Privileged::Rdmsr,
        0x0fa2 => Privileged::Cpuid,
        _ => return None,
    };
    (!code.lock).then_some((what, code.length()))
}

#[cfg(test)]
mod tests {
    use super::Direction::{In, Out};
    use super::*;

    fn ok(bytes: &[u8]) -> Privileged {
        let (what, length) = decode(bytes).unwrap_or_else(|| panic!("{bytes:02x?} must decode"));
        assert_eq!(length as usize, bytes.len(), "{bytes:02x?}");
        what
    }

    #[test]
    fn forced_emulation_cpuid_is_seven_bytes() {
        assert_eq!(ok(&[0x0f, 0x0b, 0x78, 0x65, 0x6e, 0x0f, 0xa2]), Privileged::Cpuid);
        let eight = [0x0f, 0x0b, 0x78, 0x65, 0x6e, 0x0f, 0xa2, 0x90];
        assert_eq!(forced_cpuid(u64::from_le_bytes(eight)), decode(&eight).map(|(_, length)| length));
        assert_eq!(forced_cpuid(u64::from_le_bytes(eight) ^ 1 << 48), None);
        assert_eq!(decode(&[0x0f, 0x0b, 0x78, 0x65, 0x6e, 0x0f]), None);
        assert_eq!(decode(&[0x0f, 0x0b, 0x78, 0x65, 0x6e, 0x0f, 0x32]), None);
        assert_eq!(decode(&[0x0f, 0x0b]), None, "a plain ud2 is the guest's");
    }

    #[test]
    fn port_instructions() {
        assert_eq!(ok(&[0xe4, 0x61]), Privileged::Port { direction: In, port: Some(0x61), bytes: 1 });
        assert_eq!(ok(&[0xec]), Privileged::Port { direction: In, port: None, bytes: 1 });
        assert_eq!(ok(&[0x66, 0xed]), Privileged::Port { direction: In, port: None, bytes: 2 });
        assert_eq!(ok(&[0xef]), Privileged::Port { direction: Out, port: None, bytes: 4 });
        assert_eq!(ok(&[0xe6, 0x80]), Privileged::Port { direction: Out, port: Some(0x80), bytes: 1 });
        assert_eq!(
            ok(&[0xf3, 0x6e]),
            Privileged::PortString { direction: Out, bytes: 1, repeat: true, address32: false }
        );
        assert_eq!(
            ok(&[0xf3, 0x66, 0x6d]),
            Privileged::PortString { direction: In, bytes: 2, repeat: true, address32: false }
        );
    }

    #[test]
    fn control_and_debug_registers_use_rex() {
        assert_eq!(ok(&[0x0f, 0x20, 0xc0]), Privileged::ReadCr { cr: 0, gpr: 0 });
        assert_eq!(ok(&[0x0f, 0x22, 0xe7]), Privileged::WriteCr { cr: 4, gpr: 7 });
        assert_eq!(ok(&[0x44, 0x0f, 0x20, 0xc0]), Privileged::ReadCr { cr: 8, gpr: 0 });
        assert_eq!(ok(&[0x41, 0x0f, 0x23, 0xff]), Privileged::WriteDr { dr: 7, gpr: 15 });
    }

    #[test]
    fn the_rest() {
        assert_eq!(ok(&[0xfa]), Privileged::Cli);
        assert_eq!(ok(&[0xfb]), Privileged::Sti);
        assert_eq!(ok(&[0x0f, 0x06]), Privileged::Clts);
        assert_eq!(ok(&[0x0f, 0x09]), Privileged::CacheFlush);
        assert_eq!(ok(&[0x0f, 0x30]), Privileged::Wrmsr);
        assert_eq!(ok(&[0x0f, 0x32]), Privileged::Rdmsr);
        assert_eq!(ok(&[0x0f, 0x31]), Privileged::Rdtsc);
        assert_eq!(ok(&[0x0f, 0x01, 0xf9]), Privileged::Rdtscp);
        assert_eq!(ok(&[0x0f, 0x01, 0xd1]), Privileged::Xsetbv);
        assert_eq!(decode(&[0xcd, 0x20]), None, "int goes by the trap table");
        assert_eq!(decode(&[0xf4]), None, "hlt is not emulated");
        assert_eq!(decode(&[0x0f, 0x08]), None, "invd is not emulated");
        assert_eq!(decode(&[0x0f, 0x01, 0x38]), None, "invlpg is not emulated");
    }

    #[test]
    fn endless_prefixes_end() {
        assert_eq!(decode(&[0x66; 32]), None);
        assert_eq!(decode(&[]), None);
        assert_eq!(decode(&[0xf0, 0xfa]), None, "lock belongs to writes of memory");
        assert_eq!(decode(&[0x64, 0x6e]), None, "outs from fs");
        assert_eq!(
            ok(&[0x41, 0x66, 0x0f, 0x20, 0xc0]),
            Privileged::ReadCr { cr: 0, gpr: 0 },
            "a REX before a prefix"
        );
        let mut long = [0x3e; 16];
        long[15] = 0xfa;
        assert_eq!(decode(&long), None, "sixteen bytes are no instruction");
        long[14] = 0xfa;
        assert_eq!(decode(&long).map(|(_, length)| length), Some(15));
    }

    #[test]
    fn every_truncation_of_any_byte_string_is_safe() {
        // Two-byte space exhaustively: no panic, and a length never beyond the input.
        for a in 0..=255u8 {
            for b in 0..=255u8 {
                for bytes in [&[a, b][..], &[a][..], &[a, b, 0xc0][..]] {
                    if let Some((_, length)) = decode(bytes) {
                        assert!(length as usize <= bytes.len());
                    }
                }
            }
        }
    }
}
