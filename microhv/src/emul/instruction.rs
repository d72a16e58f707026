//! The bytes of an instruction in 64-bit mode: prefixes, opcode, ModRM, SIB, displacement and immediate. What the
//! instruction means is its caller's business.
//!
//! Encodings: AMD64 Architecture Programmer's Manual, volume 3, chapter 1; Intel SDM, volume 2, chapter 2.

use ring_abi::guest_context::CpuUserRegs;

use crate::nospec::At;

/// The longest legal x86 instruction.
pub(super) const MAX_INSTRUCTION_BYTES: usize = 15;

/// An instruction whose bytes are taken one after the other; its prefixes and opcode are taken already.
pub(super) struct Instruction<'a> {
    bytes: &'a [u8],
    at: usize,
    /// The REX prefix, 0 without one.
    pub(super) rex: u8,
    pub(super) lock: bool,
    /// `rep`, `repne`.
    pub(super) repeat: bool,
    pub(super) operand16: bool,
    pub(super) address32: bool,
    /// The opcode; of two bytes: 0x0f00 and the second.
    pub(super) opcode: u16,
}

/// A ModRM byte. The byte's register numbers have the bits of the REX prefix.
#[derive(Clone, Copy)]
pub(super) struct ModRm {
    byte: u8,
    rex: u8,
}

impl ModRm {
    /// The middle field as it stands: a part of some opcodes.
    pub(super) const fn extension(self) -> u8 {
        self.byte >> 3 & 7
    }

    /// The register that the middle field names.
    pub(super) const fn register(self) -> u8 {
        self.extension() | (self.rex & 4) << 1
    }

    /// The register that the low field names.
    pub(super) const fn low_register(self) -> u8 {
        self.byte & 7 | (self.rex & 1) << 3
    }

    /// Whether the low field is part of an address.
    pub(super) const fn is_memory(self) -> bool {
        self.byte >> 6 != 3
    }
}

impl<'a> Instruction<'a> {
    /// Takes prefixes and opcode. `None`: the bytes end before, or an fs or gs prefix moves the memory operand.
    #[inline(always)]
    pub(super) fn new(bytes: &'a [u8]) -> Option<Self> {
        let bytes = &bytes[..bytes.len().min(MAX_INSTRUCTION_BYTES)];
        let (lock, repeat, operand16, address32) = (false, false, false, false);
        let mut it = Self { bytes, at: 0, rex: 0, lock, repeat, operand16, address32, opcode: 0 };
        let opcode = loop {
            let byte = it.byte()?;
            match byte {
                0x40..=0x4f => {
                    it.rex = byte;
                    continue;
                }
                0xf0 => it.lock = true,
                0xf2 | 0xf3 => it.repeat = true,
                0x66 => it.operand16 = true,
                0x67 => it.address32 = true,
                0x26 | 0x2e | 0x36 | 0x3e => {} // segments without effect
                0x64 | 0x65 => return None,
                opcode => break opcode,
            }
            it.rex = 0; // a REX prefix counts only right before the opcode
        };
        it.opcode = match opcode {
            0x0f => 0x0f00 | u16::from(it.byte()?),
            _ => u16::from(opcode),
        };
        Some(it)
    }

    /// How many bytes were taken: the length of the instruction once it is decoded.
    pub(super) const fn length(&self) -> u8 {
        self.at as u8
    }

    #[inline(always)]
    pub(super) fn byte(&mut self) -> Option<u8> {
        let byte = *self.bytes.get(self.at)?;
        self.at += 1;
        Some(byte)
    }

    /// A little-endian number of `size` bytes, sign-extended.
    pub(super) fn signed(&mut self, size: u8) -> Option<u64> {
        let mut value = 0u64;
        for n in 0..size {
            value |= u64::from(self.byte()?) << (8 * n);
        }
        let unused = (64 - 8 * u32::from(size)) % 64;
        Some(((value << unused) as i64 >> unused) as u64)
    }

    #[inline(always)]
    pub(super) fn modrm(&mut self) -> Option<ModRm> {
        Some(ModRm { byte: self.byte()?, rex: self.rex })
    }

    /// The address of the memory operand; an immediate of `immediate` bytes follows it.
    pub(super) fn address(&mut self, modrm: ModRm, immediate: u8, regs: &mut CpuUserRegs) -> Option<u64> {
        let mode = modrm.byte >> 6;
        let mut displacement = *[0, 1, 4].at(usize::from(mode))?;
        let from = match modrm.byte & 7 {
            4 => {
                let sib = self.byte()?;
                let (index, base) = (sib >> 3 & 7 | (self.rex & 2) << 2, sib & 7);
                let scaled = if index == 4 { 0 } else { *regs.general(index) << (sib >> 6) };
                if base == 5 && mode == 0 {
                    displacement = 4;
                    scaled
                } else {
                    scaled.wrapping_add(*regs.general(base | (self.rex & 1) << 3))
                }
            }
            5 if mode == 0 => {
                displacement = 4;
                regs.rip.wrapping_add(self.at as u64 + 4 + u64::from(immediate)) // the next instruction
            }
            _ => *regs.general(modrm.low_register()),
        };
        let address = from.wrapping_add(self.signed(displacement)?);
        Some(if self.address32 { address & 0xffff_ffff } else { address })
    }
}
