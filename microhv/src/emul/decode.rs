//! Decoder for the instructions that fault in a paravirtualized guest.
//!
//! A guest runs in ring 3, so each of these ends in #GP or #UD; everything else that faults is the guest's own business.
//! Encodings: AMD64 Architecture Programmer's Manual, volume 3, and Intel SDM, volume 2.

/// The longest legal x86 instruction.
pub const MAX_INSTRUCTION_BYTES: usize = 15;

/// `ud2; .ascii "xen"`: asks for the emulated form of the `cpuid` that follows.
///
/// ABI: `XEN_EMULATE_PREFIX`, `xen/include/public/arch-x86/xen.h`.
const EMULATE_PREFIX: [u8; 5] = [0x0f, 0x0b, 0x78, 0x65, 0x6e];

/// Width of a port access in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoWidth {
    /// One byte.
    Byte,
    /// Two bytes.
    Word,
    /// Four bytes.
    Dword,
}

impl IoWidth {
    /// The width in bytes.
    pub const fn bytes(self) -> u8 {
        match self {
            Self::Byte => 1,
            Self::Word => 2,
            Self::Dword => 4,
        }
    }

    /// All ones of this width: what a read without rights gives.
    pub const fn ones(self) -> u32 {
        match self {
            Self::Byte => 0xff,
            Self::Word => 0xffff,
            Self::Dword => 0xffff_ffff,
        }
    }
}

/// Where the port number stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoPort {
    /// In the instruction.
    Imm(u8),
    /// In dx.
    Dx,
}

/// What a faulting instruction asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "operands carry the manuals' names")]
pub enum Privileged {
    /// `cpuid`, with or without the emulation prefix.
    Cpuid,
    /// `in`.
    In { port: IoPort, width: IoWidth },
    /// `out`.
    Out { port: IoPort, width: IoWidth },
    /// `ins`, memory operand es:rdi.
    Ins { width: IoWidth, repeat: bool, address32: bool },
    /// `outs`, memory operand ds:rsi (a segment override of es, cs, ss or ds has no effect in 64-bit mode).
    Outs { width: IoWidth, repeat: bool, address32: bool },
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
    /// `int imm8`.
    Int(u8),
}

/// A decoded instruction and its length in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decoded {
    /// What to do.
    pub what: Privileged,
    /// How far rip moves.
    pub len: u8,
}

/// The prefixed `cpuid`, if the eight bytes begin with it: kernels execute it thousands of times while they boot.
#[inline]
pub fn forced_cpuid(bytes: u64) -> Option<Decoded> {
    const FORCED: u64 = 0x00a2_0f6e_6578_0b0f;
    (bytes & 0x00ff_ffff_ffff_ffff == FORCED).then_some(Decoded { what: Privileged::Cpuid, len: 7 })
}

/// Decodes the instruction that starts at `bytes[0]` in 64-bit mode; `None` if it is not one of [`Privileged`] or the
/// bytes end inside it.
pub fn decode(bytes: &[u8]) -> Option<Decoded> {
    if bytes.starts_with(&EMULATE_PREFIX) {
        return match bytes.get(5..7)? {
            [0x0f, 0xa2] => Some(Decoded { what: Privileged::Cpuid, len: 7 }),
            _ => None,
        };
    }
    let mut at = Cursor { bytes, pos: 0 };
    let (mut operand16, mut address32, mut repeat, mut rex) = (false, false, false, 0u8);
    let opcode = loop {
        let byte = at.next()?;
        match byte {
            0x66 => operand16 = true,
            0x67 => address32 = true,
            0xf2 | 0xf3 => repeat = true,
            0x26 | 0x2e | 0x36 | 0x3e => {}
            // fs and gs change the address of outs, which no kernel does: the guest gets its #GP.
            0x64 | 0x65 => return None,
            0x40..=0x4f => {
                rex = byte;
                break at.next()?; // a REX prefix counts only right before the opcode
            }
            other => break other,
        }
    };
    let wide = if operand16 { IoWidth::Word } else { IoWidth::Dword };
    let what = match opcode {
        0x6c => Privileged::Ins { width: IoWidth::Byte, repeat, address32 },
        0x6d => Privileged::Ins { width: wide, repeat, address32 },
        0x6e => Privileged::Outs { width: IoWidth::Byte, repeat, address32 },
        0x6f => Privileged::Outs { width: wide, repeat, address32 },
        0xcd => Privileged::Int(at.next()?),
        0xe4 => Privileged::In { port: IoPort::Imm(at.next()?), width: IoWidth::Byte },
        0xe5 => Privileged::In { port: IoPort::Imm(at.next()?), width: wide },
        0xe6 => Privileged::Out { port: IoPort::Imm(at.next()?), width: IoWidth::Byte },
        0xe7 => Privileged::Out { port: IoPort::Imm(at.next()?), width: wide },
        0xec => Privileged::In { port: IoPort::Dx, width: IoWidth::Byte },
        0xed => Privileged::In { port: IoPort::Dx, width: wide },
        0xee => Privileged::Out { port: IoPort::Dx, width: IoWidth::Byte },
        0xef => Privileged::Out { port: IoPort::Dx, width: wide },
        0xfa => Privileged::Cli,
        0xfb => Privileged::Sti,
        0x0f => decode_two_byte(&mut at, rex)?,
        _ => return None,
    };
    Some(Decoded { what, len: at.pos as u8 })
}

fn decode_two_byte(at: &mut Cursor<'_>, rex: u8) -> Option<Privileged> {
    Some(match at.next()? {
        0x01 => match at.next()? {
            0xd1 => Privileged::Xsetbv,
            0xf9 => Privileged::Rdtscp,
            _ => return None,
        },
        0x06 => Privileged::Clts,
        0x09 => Privileged::CacheFlush,
        op @ 0x20..=0x23 => {
            // The mod field is ignored: the operand is always a register.
            let modrm = at.next()?;
            let reg = (modrm >> 3 & 7) | (rex & 4) << 1;
            let gpr = (modrm & 7) | (rex & 1) << 3;
            match op {
                0x20 => Privileged::ReadCr { cr: reg, gpr },
                0x21 => Privileged::ReadDr { dr: reg, gpr },
                0x22 => Privileged::WriteCr { cr: reg, gpr },
                _ => Privileged::WriteDr { dr: reg, gpr },
            }
        }
        0x30 => Privileged::Wrmsr,
        0x31 => Privileged::Rdtsc,
        0x32 => Privileged::Rdmsr,
        0xa2 => Privileged::Cpuid,
        _ => return None,
    })
}

struct Cursor<'a> {
    bytes: &'a [u8],
    pos: usize,
}

impl Cursor<'_> {
    fn next(&mut self) -> Option<u8> {
        if self.pos >= MAX_INSTRUCTION_BYTES {
            return None;
        }
        let byte = *self.bytes.get(self.pos)?;
        self.pos += 1;
        Some(byte)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ok(bytes: &[u8]) -> Privileged {
        let d = decode(bytes).unwrap_or_else(|| panic!("{bytes:02x?} must decode"));
        assert_eq!(d.len as usize, bytes.len(), "{bytes:02x?}");
        d.what
    }

    #[test]
    fn forced_emulation_cpuid_is_seven_bytes() {
        assert_eq!(ok(&[0x0f, 0x0b, 0x78, 0x65, 0x6e, 0x0f, 0xa2]), Privileged::Cpuid);
        let eight = [0x0f, 0x0b, 0x78, 0x65, 0x6e, 0x0f, 0xa2, 0x90];
        assert_eq!(forced_cpuid(u64::from_le_bytes(eight)), decode(&eight));
        assert_eq!(forced_cpuid(u64::from_le_bytes(eight) ^ 1 << 48), None);
        assert_eq!(decode(&[0x0f, 0x0b, 0x78, 0x65, 0x6e, 0x0f]), None);
        assert_eq!(decode(&[0x0f, 0x0b, 0x78, 0x65, 0x6e, 0x0f, 0x32]), None);
        assert_eq!(decode(&[0x0f, 0x0b]), None, "a plain ud2 is the guest's");
    }

    #[test]
    fn port_instructions() {
        let byte = IoWidth::Byte;
        assert_eq!(ok(&[0xe4, 0x61]), Privileged::In { port: IoPort::Imm(0x61), width: byte });
        assert_eq!(ok(&[0xec]), Privileged::In { port: IoPort::Dx, width: byte });
        assert_eq!(ok(&[0x66, 0xed]), Privileged::In { port: IoPort::Dx, width: IoWidth::Word });
        assert_eq!(ok(&[0xef]), Privileged::Out { port: IoPort::Dx, width: IoWidth::Dword });
        assert_eq!(ok(&[0xe6, 0x80]), Privileged::Out { port: IoPort::Imm(0x80), width: byte });
        assert_eq!(ok(&[0xf3, 0x6e]), Privileged::Outs { width: byte, repeat: true, address32: false });
        assert_eq!(
            ok(&[0xf3, 0x66, 0x6d]),
            Privileged::Ins { width: IoWidth::Word, repeat: true, address32: false }
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
        assert_eq!(ok(&[0xcd, 0x20]), Privileged::Int(0x20));
        assert_eq!(decode(&[0xf4]), None, "hlt is not emulated");
        assert_eq!(decode(&[0x0f, 0x08]), None, "invd is not emulated");
        assert_eq!(decode(&[0x0f, 0x01, 0x38]), None, "invlpg is not emulated");
    }

    #[test]
    fn endless_prefixes_end() {
        assert_eq!(decode(&[0x66; 32]), None);
        assert_eq!(decode(&[]), None);
        let mut long = [0x3e; 16];
        long[15] = 0xfa;
        assert_eq!(decode(&long), None, "sixteen bytes are no instruction");
        long[14] = 0xfa;
        assert_eq!(decode(&long).map(|d| d.len), Some(15));
    }

    #[test]
    fn every_truncation_of_any_byte_string_is_safe() {
        // Two-byte space exhaustively: no panic, and a length never beyond the input.
        for a in 0..=255u8 {
            for b in 0..=255u8 {
                for bytes in [&[a, b][..], &[a][..], &[a, b, 0xc0][..]] {
                    if let Some(d) = decode(bytes) {
                        assert!(d.len as usize <= bytes.len());
                    }
                }
            }
        }
    }
}
