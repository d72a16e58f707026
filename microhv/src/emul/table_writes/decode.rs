//! Decoding of the instructions that write one memory operand, and what they compute. No state: bytes and registers in.

use ring_abi::guest_context::CpuUserRegs;

use crate::emul::instruction::Instruction;

/// Carry, which is all that bit operations set.
pub(super) const CF: u64 = 1;
const PF: u64 = 1 << 2;
const AF: u64 = 1 << 4;
const ZF: u64 = 1 << 6;
const SF: u64 = 1 << 7;
const OF: u64 = 1 << 11;
/// The flags that arithmetic sets.
pub(super) const ARITHMETIC: u64 = CF | PF | AF | ZF | SF | OF;

/// What an instruction does with its memory operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    Mov,
    Xchg,
    CmpXchg,
    Add,
    Or,
    And,
    Sub,
    Xor,
    SetBit,
    ResetBit,
    FlipBit,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    Register(Register),
    Immediate(u64),
}

/// A general register of some size; `high`: bits 8-15 of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Register {
    number: u8,
    high: bool,
}

impl Register {
    /// The accumulator.
    pub(super) const RAX: Self = Self { number: 0, high: false };
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Decoded {
    pub(super) operation: Operation,
    pub(super) source: Source,
    /// Bytes of the operand: 1, 2, 4, 8.
    pub(super) size: u8,
    pub(super) address: u64,
    pub(super) length: u8,
}

pub(super) fn mask(size: u8) -> u64 {
    u64::MAX >> (64 - 8 * u32::from(size))
}

pub(super) fn read_register(regs: &mut CpuUserRegs, which: Register, size: u8) -> u64 {
    let value = *regs.general(which.number);
    (if which.high { value >> 8 } else { value }) & mask(size)
}

pub(super) fn write_register(regs: &mut CpuUserRegs, which: Register, size: u8, value: u64) {
    let target = regs.general(which.number);
    *target = match (size, which.high) {
        (1, true) => *target & !0xff00 | (value & 0xff) << 8,
        (4, _) => value & mask(4), // a 32-bit write clears the upper half
        _ => *target & !mask(size) | value & mask(size),
    };
}

/// The register and the length of `xchg %register,(%base)`, both 64 bits wide, when it begins `word` and the base register
/// holds `address`. Other forms of it are [`decode`]'s.
pub(super) fn exchange(word: u64, regs: &mut CpuUserRegs, address: u64) -> Option<(u8, u8)> {
    let [rex, opcode, modrm, ..] = word.to_le_bytes();
    // REX.W, the opcode, no displacement; base 4 means a SIB byte follows, and 5 that there is no base.
    if rex & 0xf8 != 0x48 || opcode != 0x87 || modrm & 0xc0 != 0 || matches!(modrm & 7, 4 | 5) {
        return None;
    }
    let (register, base) = (modrm >> 3 | (rex & 4) << 1, modrm & 7 | (rex & 1) << 3);
    (*regs.general(base) == address).then_some((register, 3))
}

/// Decodes an instruction in 64-bit mode that writes one memory operand.
pub(super) fn decode(bytes: &[u8], regs: &mut CpuUserRegs) -> Option<Decoded> {
    let mut code = Instruction::new(bytes)?;
    let modrm = code.modrm()?;
    if code.repeat || !modrm.is_memory() {
        return None;
    }
    let (opcode, extension) = (code.opcode, modrm.extension());
    // Bit 0 tells bytes from the operand size, but for bit operations.
    let size = match (opcode & 1 == 0 && opcode != 0x0fba, code.rex & 8 != 0, code.operand16) {
        (true, ..) => 1,
        (_, true, _) => 8,
        (_, _, true) => 2,
        _ => 4,
    };
    // Operation, bytes of the immediate (0: the register of ModRM is the source).
    let (operation, immediate) = match opcode {
        0x88 | 0x89 => (Operation::Mov, 0),
        0xc6 | 0xc7 if extension == 0 => (Operation::Mov, size.min(4)),
        0x86 | 0x87 => (Operation::Xchg, 0),
        0x0fb0 | 0x0fb1 => (Operation::CmpXchg, 0),
        0x80 | 0x81 => (arithmetic(extension)?, size.min(4)),
        0x83 => (arithmetic(extension)?, 1),
        0x00..=0x3f if opcode & 6 == 0 => (arithmetic((opcode >> 3) as u8)?, 0),
        0x0fba if extension == 5 => (Operation::SetBit, 1),
        0x0fba if extension == 6 => (Operation::ResetBit, 1),
        0x0fba if extension == 7 => (Operation::FlipBit, 1),
        _ => return None,
    };
    let address = code.address(modrm, immediate, regs)?;
    let source = if immediate > 0 {
        Source::Immediate(code.signed(immediate)? & mask(size))
    } else {
        let number = modrm.register();
        let high = size == 1 && code.rex == 0 && number >= 4;
        Source::Register(Register { number: if high { number - 4 } else { number }, high })
    };
    Some(Decoded { operation, source, size, address, length: code.length() })
}

fn arithmetic(number: u8) -> Option<Operation> {
    match number {
        0 => Some(Operation::Add),
        1 => Some(Operation::Or),
        4 => Some(Operation::And),
        5 => Some(Operation::Sub),
        6 => Some(Operation::Xor),
        _ => None, // with carry, and compare
    }
}

/// The operand after the operation, and the arithmetic flags. `None`: the flags stay.
pub(super) fn compute(operation: Operation, size: u8, old: u64, source: u64, rax: u64) -> (u64, Option<u64>) {
    let all = mask(size);
    let sign = 1u64 << (8 * u32::from(size) - 1);
    let common = |value: u64| {
        let parity = if (value as u8).count_ones().is_multiple_of(2) { PF } else { 0 };
        parity | if value == 0 { ZF } else { 0 } | if value & sign != 0 { SF } else { 0 }
    };
    let logic = |value: u64| (value, Some(common(value)));
    let subtract = |a: u64, b: u64| {
        let value = a.wrapping_sub(b) & all;
        let borrow = if a < b { CF } else { 0 };
        let overflow = if (a ^ b) & (a ^ value) & sign != 0 { OF } else { 0 };
        (value, common(value) | borrow | overflow | (a ^ b ^ value) & AF)
    };
    let bit = 1u64 << (source & (8 * u64::from(size) - 1));
    let carry = Some(if old & bit != 0 { CF } else { 0 });
    match operation {
        Operation::Mov | Operation::Xchg => (source, None),
        Operation::Or => logic(old | source),
        Operation::And => logic(old & source),
        Operation::Xor => logic(old ^ source),
        Operation::Add => {
            let value = old.wrapping_add(source) & all;
            let carry = if value < old { CF } else { 0 };
            let overflow = if (old ^ value) & (source ^ value) & sign != 0 { OF } else { 0 };
            (value, Some(common(value) | carry | overflow | (old ^ source ^ value) & AF))
        }
        Operation::Sub => {
            let (value, flags) = subtract(old, source);
            (value, Some(flags))
        }
        Operation::CmpXchg => {
            let (_, flags) = subtract(rax, old);
            (if rax == old { source } else { old }, Some(flags))
        }
        Operation::SetBit => (old | bit, carry),
        Operation::ResetBit => (old & !bit, carry),
        Operation::FlipBit => (old ^ bit, carry),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn regs() -> CpuUserRegs {
        let mut regs: CpuUserRegs = zerocopy::FromZeros::new_zeroed();
        (regs.rax, regs.rdi, regs.rsi, regs.r12, regs.rip) = (0x11, 0x2000, 0x3000, 0x4000, 0x9000);
        regs
    }

    fn decoded(bytes: &[u8]) -> Option<Decoded> {
        decode(bytes, &mut regs())
    }

    #[test]
    fn linux_forms_are_known() {
        let rax = Source::Register(Register { number: 0, high: false });
        let rsi = Source::Register(Register { number: 6, high: false });
        // xchg %rax,(%rdi)
        assert_eq!(
            decoded(&[0x48, 0x87, 0x07]),
            Some(Decoded { operation: Operation::Xchg, source: rax, size: 8, address: 0x2000, length: 3 })
        );
        // mov %rsi,(%rdi)
        assert_eq!(
            decoded(&[0x48, 0x89, 0x37, 0x90]),
            Some(Decoded { operation: Operation::Mov, source: rsi, size: 8, address: 0x2000, length: 3 })
        );
        for prefix in [0xf0, 0x3e] {
            // lock andb $0xfd,(%r12)
            assert_eq!(
                decoded(&[prefix, 0x41, 0x80, 0x24, 0x24, 0xfd]),
                Some(Decoded {
                    operation: Operation::And,
                    source: Source::Immediate(0xfd),
                    size: 1,
                    address: 0x4000,
                    length: 6
                })
            );
        }
    }

    #[test]
    fn the_short_way_for_exchanges_finds_what_the_decoder_finds() {
        let code = |rex: u8, opcode: u8, modrm: u8| u64::from_le_bytes([rex, opcode, modrm, 0, 0, 0, 0, 0]);
        let mut found = 0;
        for rex in 0x30..=0x4f {
            for opcode in [0x86, 0x87, 0x89] {
                for modrm in 0..=0xff {
                    let mut regs = regs();
                    (0..16).for_each(|number| *regs.general(number) = u64::from(number) << 12);
                    let word = code(rex, opcode, modrm);
                    let address = u64::from(modrm & 7 | (rex & 1) << 3) << 12;
                    let Some((register, length)) = exchange(word, &mut regs, address) else { continue };
                    let source = Source::Register(Register { number: register, high: false });
                    let whole = Decoded { operation: Operation::Xchg, source, size: 8, address, length };
                    assert_eq!(decode(&word.to_le_bytes(), &mut regs), Some(whole), "{rex:#x} {modrm:#x}");
                    assert_eq!(exchange(word, &mut regs, address + 8), None, "another address");
                    found += 1;
                }
            }
        }
        assert_eq!(found, 8 * 8 * 6, "REX.W with R, X, B; eight registers; six bases");
    }

    #[test]
    fn addressing_forms() {
        // mov %eax,0x10(%rip): relative to the end of the instruction
        let d = decoded(&[0x89, 0x05, 0x10, 0, 0, 0]).expect("known");
        assert_eq!((d.address, d.size, d.length), (0x9016, 4, 6));
        // movq $-1,0x8(%rdi,%rsi,2)
        let d = decoded(&[0x48, 0xc7, 0x44, 0x77, 0x08, 0xff, 0xff, 0xff, 0xff]).expect("known");
        assert_eq!((d.address, d.source, d.length), (0x8008, Source::Immediate(u64::MAX), 9));
        // mov %ah,(%rdi) and mov %spl,(%rdi)
        let d = decoded(&[0x88, 0x27]).expect("known");
        assert_eq!(d.source, Source::Register(Register { number: 0, high: true }));
        let d = decoded(&[0x40, 0x88, 0x27]).expect("known");
        assert_eq!(d.source, Source::Register(Register { number: 4, high: false }));
    }

    #[test]
    fn others_are_refused() {
        assert_eq!(decoded(&[]), None);
        assert_eq!(decoded(&[0x48]), None);
        assert_eq!(decoded(&[0x48, 0x89]), None, "cut off");
        assert_eq!(decoded(&[0x48, 0x89, 0xf8]), None, "no memory operand");
        assert_eq!(decoded(&[0x65, 0x48, 0x89, 0x07]), None, "gs");
        assert_eq!(decoded(&[0x48, 0x8b, 0x07]), None, "a load");
        assert_eq!(decoded(&[0xf3, 0xa4]), None);
        assert_eq!(decoded(&[0x66; 15]), None);
    }

    #[test]
    fn results_and_flags() {
        assert_eq!(compute(Operation::And, 1, 0x63, 0xfd, 0), (0x61, Some(0)));
        assert_eq!(compute(Operation::And, 8, 1, 2, 0), (0, Some(ZF | PF)));
        assert_eq!(compute(Operation::Sub, 8, 0, 1, 0), (u64::MAX, Some(CF | SF | PF | AF)));
        assert_eq!(compute(Operation::Add, 1, 0x7f, 1, 0), (0x80, Some(SF | OF | AF)));
        assert_eq!(compute(Operation::CmpXchg, 8, 5, 9, 5).0, 9);
        assert_eq!(compute(Operation::CmpXchg, 8, 5, 9, 6).0, 5);
        assert_eq!(compute(Operation::SetBit, 4, 0, 33, 0), (2, Some(0)));
        assert_eq!(compute(Operation::ResetBit, 8, 2, 1, 0), (0, Some(CF)));
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_decode_or_not(bytes in proptest::collection::vec(0u8.., 0..16), value in 0u64..) {
            let mut regs = regs();
            for number in 0..16 {
                *regs.general(number) = value.rotate_left(u32::from(number) * 7) | value >> 3;
            }
            regs.rip = value;
            if let Some(d) = decode(&bytes, &mut regs) {
                proptest::prop_assert!(usize::from(d.length) <= bytes.len());
                let source = match d.source {
                    Source::Immediate(immediate) => immediate,
                    Source::Register(which) => read_register(&mut regs, which, d.size),
                };
                proptest::prop_assert_eq!(source & !mask(d.size), 0);
                let (new, _) = compute(d.operation, d.size, value & mask(d.size), source, regs.rax & mask(d.size));
                proptest::prop_assert_eq!(new & !mask(d.size), 0);
            }
        }
    }

    #[test]
    fn registers_are_written_by_size() {
        let mut regs = regs();
        regs.rax = u64::MAX;
        write_register(&mut regs, Register { number: 0, high: false }, 4, 1);
        assert_eq!(regs.rax, 1);
        write_register(&mut regs, Register { number: 0, high: true }, 1, 0xab);
        assert_eq!(regs.rax, 0xab01);
        write_register(&mut regs, Register { number: 0, high: false }, 2, 0xffff_1234);
        assert_eq!(regs.rax, 0x1234);
    }
}
