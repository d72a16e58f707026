//! Accesses to guest memory: each is there twice, plain, and between STAC and CLAC for a CPU with SMAP, which makes the first
//! instruction of the plain one a jump to the other.

use std::collections::BTreeSet;

use iced_x86::{Code, Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic, OpKind, Register};
use object::{Object, ObjectSection, ObjectSymbol};

/// Bytes of a jump.
const JUMP: usize = 5;

/// What of the instructions is the same in both forms: not how their displacements are written, nor prefixes without effect.
type Use = (Code, [Register; 2], Register, u64);

/// The accesses of `file`, if it has any: those that are wrong, each with the address and what is wrong.
pub(super) fn wrong(file: &object::File<'_>) -> Vec<(u64, String)> {
    let pairs = table(file, "__smap_table_start", "__smap_table_end");
    let faulting = table(file, "__ex_table_start", "__ex_table_end");
    let (mut known, mut wrong) = (BTreeSet::new(), Vec::new());
    for [place, guarded] in pairs {
        let read = |address| bytes(file, address).unwrap_or_default();
        match pair((place, read(place)), (guarded, read(guarded))) {
            Ok(addresses) => known.extend(addresses),
            Err(why) => wrong.push((place, format!("an access to guest memory: {why}"))),
        }
    }
    for [address, _] in faulting {
        let code = bytes(file, address).unwrap_or_default();
        let instruction = Decoder::with_ip(64, code, address, DecoderOptions::NONE).decode();
        if uses_memory(&instruction) && !known.contains(&address) {
            wrong.push((address, "an access to guest memory without a form for SMAP".into()));
        }
    }
    wrong
}

/// The pairs of addresses between two symbols; none where there are no such symbols.
fn table(file: &object::File<'_>, start: &str, end: &str) -> Vec<[u64; 2]> {
    let address =
        |name| file.symbols().find(|symbol| symbol.name() == Ok(name)).map(|symbol| symbol.address());
    let (Some(start), Some(end)) = (address(start), address(end)) else { return Vec::new() };
    let bytes = bytes(file, start).and_then(|bytes| bytes.get(..(end - start) as usize)).unwrap_or_default();
    let word = |bytes: &[u8]| bytes.iter().rev().fold(0, |all, byte| all << 8 | u64::from(*byte));
    bytes.chunks_exact(16).map(|pair| [word(&pair[..8]), word(&pair[8..])]).collect()
}

/// What the file has from `address` on.
fn bytes<'a>(file: &object::File<'a>, address: u64) -> Option<&'a [u8]> {
    let holds = |section: &object::Section<'a, '_>| {
        (section.address()..section.address() + section.size()).contains(&address)
    };
    let section = file.sections().find(holds)?;
    section.data().ok()?.get((address - section.address()) as usize..)
}

/// Checks the two forms of an access; the addresses of the instructions that use memory in both.
fn pair(place: (u64, &[u8]), guarded: (u64, &[u8])) -> Result<Vec<u64>, String> {
    let guarded = run(guarded, None)?;
    let is = |mnemonic| move |instruction: &Instruction| instruction.mnemonic() == mnemonic;
    let (Some(stac), Some(clac)) =
        (guarded.iter().position(is(Mnemonic::Stac)), guarded.iter().position(is(Mnemonic::Clac)))
    else {
        return Err("no STAC with a CLAC".into());
    };
    let inside = guarded.get(stac..clac).ok_or("CLAC ahead of STAC")?;
    let uses = |code: &[Instruction]| -> Vec<Use> {
        code.iter().filter(|one| uses_memory(one)).map(as_use).collect()
    };
    if uses(inside).is_empty() || uses(inside) != uses(&guarded) {
        return Err("not between STAC and CLAC".into());
    }
    let back = guarded.last().filter(|last| last.flow_control() == FlowControl::UnconditionalBranch);
    let plain = run(place, back.map(Instruction::near_branch_target))?;
    if uses(&plain) != uses(&guarded) {
        return Err("not the same in both forms".into());
    }
    let first = plain.iter().position(uses_memory).unwrap_or(0);
    if plain[..=first].iter().map(Instruction::len).sum::<usize>() < JUMP {
        return Err("no room for a jump".into());
    }
    Ok(plain.iter().chain(&guarded).filter(|one| uses_memory(one)).map(Instruction::ip).collect())
}

/// The instructions from an address to `end`, or through the jump or return that ends them.
fn run((address, code): (u64, &[u8]), end: Option<u64>) -> Result<Vec<Instruction>, String> {
    let mut instructions = Vec::new();
    for instruction in Decoder::with_ip(64, code, address, DecoderOptions::NONE) {
        if Some(instruction.ip()) == end {
            return Ok(instructions);
        }
        instructions.push(instruction);
        match instruction.flow_control() {
            FlowControl::Next => {}
            FlowControl::UnconditionalBranch | FlowControl::Return if end.is_none() => {
                return Ok(instructions);
            }
            _ => break,
        }
    }
    Err("code that goes elsewhere".into())
}

fn uses_memory(instruction: &Instruction) -> bool {
    let is_memory = |kind| matches!(kind, OpKind::Memory | OpKind::MemorySegRSI | OpKind::MemoryESRDI);
    instruction.mnemonic() != Mnemonic::Lea && instruction.op_kinds().any(is_memory)
}

fn as_use(instruction: &Instruction) -> Use {
    let registers = [instruction.op0_register(), instruction.op1_register()];
    (instruction.code(), registers, instruction.memory_base(), instruction.memory_displacement64())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The plain form at 0x1000, the other at 0x2000, which ends with a jump to `back` behind the plain one.
    fn checked(plain: &[u8], guarded: &[u8], back: u32) -> Result<usize, String> {
        let end = 0x2000 + guarded.len() as u32 + 5;
        let guarded = [guarded, &[0xe9], &(0x1000 + back).wrapping_sub(end).to_le_bytes()].concat();
        let plain = [plain, &[0xeb, 0xfe]].concat();
        pair((0x1000, &plain), (0x2000, &guarded)).map(|addresses| addresses.len())
    }

    const STAC: [u8; 3] = [0x0f, 0x01, 0xcb];
    const CLAC: [u8; 3] = [0x0f, 0x01, 0xca];
    const LOAD: [u8; 3] = [0x48, 0x8b, 0x07]; // mov rax, [rdi]
    const LONG_LOAD: [u8; 7] = [0x48, 0x8b, 0x87, 0, 0, 0, 0];
    const SECOND: [u8; 4] = [0x48, 0x8b, 0x5f, 0x08]; // mov rbx, [rdi + 8]
    const COPY: [u8; 3] = [0xf3, 0x48, 0xa5];

    #[test]
    fn both_forms_of_an_access_pass() {
        let guarded = [&STAC[..], &LOAD, &CLAC].concat();
        assert_eq!(checked(&LONG_LOAD, &guarded, 7), Ok(2));
        let two = [&STAC[..], &LOAD, &SECOND, &CLAC].concat();
        assert_eq!(checked(&[&LONG_LOAD[..], &SECOND].concat(), &two, 11), Ok(4));
        let copy = [&STAC[..], &COPY, &CLAC].concat();
        assert_eq!(checked(&[&[0x3e, 0x3e][..], &COPY].concat(), &copy, 5), Ok(2));
    }

    #[test]
    fn what_is_wrong_with_an_access_is_found() {
        let found =
            |plain: &[u8], guarded: &[&[u8]], back| checked(plain, &guarded.concat(), back).unwrap_err();
        assert_eq!(found(&LONG_LOAD, &[&LOAD, &CLAC], 7), "no STAC with a CLAC");
        assert_eq!(found(&LONG_LOAD, &[&STAC, &LOAD], 7), "no STAC with a CLAC");
        assert_eq!(found(&LONG_LOAD, &[&CLAC, &LOAD, &STAC], 7), "CLAC ahead of STAC");
        assert_eq!(found(&LONG_LOAD, &[&STAC, &CLAC, &LOAD], 7), "not between STAC and CLAC");
        assert_eq!(found(&LONG_LOAD, &[&LOAD, &STAC, &SECOND, &CLAC], 7), "not between STAC and CLAC");
        assert_eq!(found(&LONG_LOAD, &[&STAC, &SECOND, &CLAC], 7), "not the same in both forms");
        assert_eq!(found(&LOAD, &[&STAC, &LOAD, &CLAC], 3), "no room for a jump");
        assert_eq!(found(&LONG_LOAD, &[&STAC, &LOAD, &CLAC], 5), "code that goes elsewhere");
    }
}
