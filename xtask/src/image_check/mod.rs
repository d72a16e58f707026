//! The image check, run after every link: no vector or x87 instruction, no use of the red zone, capped frames, no indirect
//! branch, no return that finds the CPU's return stack empty, accesses to guest memory between STAC and CLAC where there is SMAP.
//!
//! The compiler's flags do not reach the prebuilt `core` and `alloc`, and code with run-time CPU detection
//! ignores them, so what counts is what lies in the linked file. Every executable section but `.boot` (headers,
//! 16 and 32-bit code) is decoded, function by function.

mod accesses;
mod returns;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use anyhow::{Context, Result};
use iced_x86::{
    Code, CpuidFeature, Decoder, DecoderOptions, FlowControl, Formatter, Instruction, InstructionInfoFactory,
    IntelFormatter, Mnemonic, OpKind, Register,
};
use object::{Object, ObjectSection, ObjectSymbol, SectionKind, SymbolKind};

pub use returns::Returns;

/// The limits of one image.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// The largest stack frame of any one function, in bytes.
    pub max_frame_bytes: u64,
    /// Name prefixes of the functions that may save and load a guest's floating point state.
    pub fpu_switch: &'static [&'static str],
    /// Whether there may be indirect branches. Where a CPU predicts the target of one, it executes what stands there before
    /// the target is known, and what ran before may have trained the prediction (Spectre v2). A retpoline ends in a return.
    pub indirect_branches: bool,
    /// What the depth of calls is checked by, if it is.
    pub returns: Option<Returns>,
}

/// One broken rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The instruction's address; for a frame, the function's.
    pub address: u64,
    /// The function's demangled name.
    pub function: String,
    /// What is wrong, with the instruction.
    pub what: String,
}

/// What the check saw.
#[derive(Debug, Default)]
pub struct Report {
    /// Instructions decoded.
    pub instructions: u64,
    /// Every broken rule, in order of address.
    pub problems: Vec<Problem>,
    /// The deepest frames, in bytes, deepest first.
    pub deepest: Vec<(u64, String)>,
    /// The fewest entries of the return stack that are left at any return, and where. Only if that is checked.
    pub fewest: Option<(u8, String)>,
}

/// How many problems and frames a report shows.
const SHOWN: usize = 12;
const SHOWN_FRAMES: usize = 3;

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} instructions checked, {} problems; deepest frames:",
            self.instructions,
            self.problems.len()
        )?;
        for (bytes, function) in self.deepest.iter().take(SHOWN_FRAMES) {
            write!(f, " {bytes} {function};")?;
        }
        if let Some((entries, function)) = &self.fewest {
            write!(f, " entries left of the return stack: {entries} {function};")?;
        }
        for problem in self.problems.iter().take(SHOWN) {
            write!(f, "\n  {:#x} {}: {}", problem.address, problem.function, problem.what)?;
        }
        let mut by_function = BTreeMap::new();
        for problem in &self.problems {
            *by_function.entry(&problem.function).or_insert(0u64) += 1;
        }
        if self.problems.len() > SHOWN {
            write!(f, "\n  ... by function:")?;
            for (function, count) in by_function {
                write!(f, "\n  {count:6} {function}")?;
            }
        }
        Ok(())
    }
}

/// Checks a linked ELF image.
///
/// # Errors
/// The file is no ELF file that can be read. Broken rules are no error but in the report.
pub fn check(file: &[u8], rules: &Rules) -> Result<Report> {
    let file = object::File::parse(file)?;
    let mut checker = Checker::new(rules, names(&file));
    for section in file.sections() {
        if section.kind() != SectionKind::Text || section.name() == Ok(".boot") {
            continue;
        }
        let bytes = section.data().context("a section's bytes cannot be read")?;
        checker.code(bytes, section.address());
    }
    for (address, what) in accesses::wrong(&file) {
        let function = checker.name(address).to_string();
        checker.report.problems.push(Problem { address, function, what });
    }
    if let Some(returns) = &rules.returns {
        for section in
            file.sections().filter(|section| section.address() != 0 && section.kind() != SectionKind::Text)
        {
            checker.addresses(section.data().context("a section's bytes cannot be read")?);
        }
        checker.returns(returns)?;
    }
    checker.report.deepest.sort_by(|a, b| b.cmp(a));
    checker.report.deepest.truncate(SHOWN_FRAMES);
    Ok(checker.report)
}

/// Address and demangled name of every function or code label, in order.
pub fn names(file: &object::File<'_>) -> Vec<(u64, String)> {
    let is_code = |kind| matches!(kind, SymbolKind::Text | SymbolKind::Unknown | SymbolKind::Label);
    let mut names: Vec<(u64, String)> = file
        .symbols()
        .filter(|symbol| symbol.is_definition() && is_code(symbol.kind()))
        .filter_map(|symbol| {
            let name = symbol.name().ok()?;
            Some((symbol.address(), format!("{:#}", rustc_demangle::demangle(name))))
        })
        .collect();
    names.sort();
    names
}

struct Checker<'a> {
    rules: &'a Rules,
    names: Vec<(u64, String)>,
    starts: BTreeSet<u64>,
    report: Report,
    info: InstructionInfoFactory,
    /// All instructions, and of the functions whose addresses are taken and of those with arguments on the stack where they begin.
    all: Vec<Instruction>,
    taken: BTreeSet<u64>,
    with_stack_arguments: BTreeMap<u64, Instruction>,
}

impl<'a> Checker<'a> {
    fn new(rules: &'a Rules, names: Vec<(u64, String)>) -> Self {
        let starts = names.iter().map(|(address, _)| *address).collect();
        Self {
            rules,
            names,
            starts,
            report: Report::default(),
            info: InstructionInfoFactory::new(),
            all: Vec::new(),
            taken: BTreeSet::new(),
            with_stack_arguments: BTreeMap::new(),
        }
    }

    /// Checks code that lies at `address`, function by function.
    fn code(&mut self, bytes: &[u8], address: u64) {
        let mut function = Vec::new();
        for instruction in Decoder::with_ip(64, bytes, address, DecoderOptions::NONE) {
            if self.starts.contains(&instruction.ip()) && !function.is_empty() {
                self.function(&function);
                function.clear();
            }
            function.push(instruction);
        }
        self.function(&function);
    }

    /// The name at or below `address`.
    fn name(&self, address: u64) -> &str {
        let above = self.names.partition_point(|(start, _)| *start <= address);
        above.checked_sub(1).map_or("?", |index| &self.names[index].1)
    }

    /// Checks one function's instructions.
    fn function(&mut self, code: &[Instruction]) {
        let Some(first) = code.first() else { return };
        let name = self.name(first.ip()).to_string();
        let may_switch = self.rules.fpu_switch.iter().any(|prefix| name.starts_with(prefix));
        let frame = Frame::of(code);
        self.report.instructions += code.len() as u64;
        for instruction in code {
            let what = if instruction.code() == Code::INVALID {
                "undecodable bytes"
            } else if self.is_vector(instruction) && !(may_switch && is_state_switch(instruction.mnemonic()))
            {
                "vector or x87 instruction"
            } else if self.below_stack(instruction, &frame) {
                "red zone"
            } else if is_override(instruction) {
                "a segment that processors ignore and QEMU's emulator does not"
            } else if !self.rules.indirect_branches && is_indirect_branch(instruction) {
                "indirect branch"
            } else {
                continue;
            };
            let what = format!("{what}: {}", text(instruction));
            self.report.problems.push(Problem { address: instruction.ip(), function: name.clone(), what });
        }
        if frame.bytes() > self.rules.max_frame_bytes {
            let what = format!("a frame of {} bytes, over {}", frame.bytes(), self.rules.max_frame_bytes);
            self.report.problems.push(Problem { address: first.ip(), function: name.clone(), what });
        }
        self.report.deepest.push((frame.bytes(), name));
        if self.rules.returns.is_some() {
            self.note(code, frame.base == Some(-8));
        }
    }

    /// Whether the instruction belongs to the floating point and vector unit.
    fn is_vector(&mut self, instruction: &Instruction) -> bool {
        if is_harmless(instruction.mnemonic()) {
            return false;
        }
        instruction.cpuid_features().iter().any(|feature| is_vector_feature(*feature))
            || self.info.info(instruction).used_registers().iter().any(|used| {
                let register = used.register();
                register.is_vector_register() || register.is_mm() || register.is_st()
            })
    }

    /// Whether the instruction touches memory below the stack pointer, where an interrupt may write.
    fn below_stack(&mut self, instruction: &Instruction, frame: &Frame) -> bool {
        if instruction.mnemonic() == Mnemonic::Lea || instruction.is_stack_instruction() {
            return false;
        }
        self.info.info(instruction).used_memory().iter().any(|memory| {
            let displacement = memory.displacement() as i64;
            if memory.index() != Register::None || displacement >= 0 {
                return false;
            }
            match memory.base() {
                Register::RSP => true,
                // The depth relative to a frame pointer is not known here, so the check compares with the
                // function's deepest frame.
                Register::RBP => {
                    frame.known && frame.base.is_some_and(|base| base + displacement < frame.lowest)
                }
                _ => false,
            }
        })
    }
}

/// A function's stack use relative to the stack pointer at its entry, by one pass over its instructions.
struct Frame {
    /// The lowest the stack pointer gets: zero or negative.
    lowest: i64,
    /// Where the frame pointer points, once it is set.
    base: Option<i64>,
    /// False when the function loads a stack pointer from elsewhere: depths below say nothing then.
    known: bool,
}

impl Frame {
    fn of(code: &[Instruction]) -> Self {
        let mut frame = Self { lowest: 0, base: None, known: true };
        let mut depth = 0i64;
        // The depth at the targets of forward jumps, for the code behind an unconditional one.
        let mut at_target = BTreeMap::new();
        for (index, instruction) in code.iter().enumerate() {
            if let Some(known) = at_target.get(&instruction.ip()) {
                depth = *known;
            }
            depth = frame.step(instruction, depth);
            frame.lowest = frame.lowest.min(depth);
            match instruction.flow_control() {
                FlowControl::ConditionalBranch => {
                    at_target.entry(instruction.near_branch_target()).or_insert(depth);
                }
                FlowControl::UnconditionalBranch | FlowControl::Return | FlowControl::IndirectBranch => {
                    if instruction.flow_control() == FlowControl::UnconditionalBranch {
                        at_target.entry(instruction.near_branch_target()).or_insert(depth);
                    }
                    // The code behind this instruction is reached by a jump, most often with the frame set
                    // up.
                    let follows = code.get(index + 1).map(Instruction::ip);
                    depth = follows.and_then(|ip| at_target.get(&ip).copied()).unwrap_or(frame.lowest);
                }
                _ => {}
            }
        }
        frame
    }

    /// The depth behind `instruction`.
    fn step(&mut self, instruction: &Instruction, depth: i64) -> i64 {
        let to_stack = instruction.op_count() > 0 && instruction.op0_register() == Register::RSP;
        let by_constant = instruction.op_count() > 1
            && !matches!(instruction.op1_kind(), OpKind::Register | OpKind::Memory);
        match instruction.mnemonic() {
            Mnemonic::Push => return depth - 8,
            Mnemonic::Pop if !to_stack => return depth + 8,
            Mnemonic::Sub if to_stack && by_constant => return depth - instruction.immediate(1) as i64,
            Mnemonic::Add if to_stack && by_constant => return depth + instruction.immediate(1) as i64,
            Mnemonic::Lea if instruction.memory_index() == Register::None => {
                let displacement = instruction.memory_displacement64() as i64;
                let source = match instruction.memory_base() {
                    Register::RSP => Some(depth + displacement),
                    Register::RBP => self.base.map(|base| base + displacement),
                    _ => None,
                };
                if to_stack {
                    return source.unwrap_or_else(|| self.lose(depth));
                }
                if instruction.memory_base() == Register::RSP {
                    // The end of a stack probe's loop: the frame reaches that far.
                    self.lowest = self.lowest.min(depth + displacement);
                    if instruction.op0_register() == Register::RBP {
                        self.base = source;
                    }
                }
            }
            Mnemonic::Mov if to_stack => {
                return match (instruction.op1_register(), self.base) {
                    (Register::RBP, Some(base)) => base,
                    _ => self.lose(depth),
                };
            }
            Mnemonic::Mov
                if instruction.op0_register() == Register::RBP
                    && instruction.op1_register() == Register::RSP =>
            {
                self.base = Some(depth);
            }
            Mnemonic::Leave => return self.base.map_or(depth, |base| base + 8),
            Mnemonic::Sub | Mnemonic::Add | Mnemonic::Pop | Mnemonic::Xchg if to_stack => {
                return self.lose(depth);
            }
            _ => {}
        }
        depth
    }

    /// The stack pointer is no longer the entry's.
    fn lose(&mut self, depth: i64) -> i64 {
        self.known = false;
        depth
    }

    fn bytes(&self) -> u64 {
        self.lowest.unsigned_abs()
    }
}

/// Whether the instruction names a segment other than FS and GS for memory: in 64-bit code that means nothing, but QEMU's emulator
/// adds the segment's base, which a guest chooses.
fn is_override(instruction: &Instruction) -> bool {
    let ignored = [Register::ES, Register::CS, Register::SS, Register::DS];
    ignored.contains(&instruction.segment_prefix())
        && instruction.mnemonic() != Mnemonic::Nop
        && instruction.flow_control() == FlowControl::Next
}

/// Whether the instruction branches to where a register or memory says, and is no return.
fn is_indirect_branch(instruction: &Instruction) -> bool {
    matches!(instruction.flow_control(), FlowControl::IndirectBranch | FlowControl::IndirectCall)
}

/// Instructions that carry a vector feature's name and touch no vector state.
fn is_harmless(mnemonic: Mnemonic) -> bool {
    matches!(
        mnemonic,
        Mnemonic::Pause
            | Mnemonic::Mfence
            | Mnemonic::Lfence
            | Mnemonic::Sfence
            | Mnemonic::Prefetcht0
            | Mnemonic::Prefetcht1
            | Mnemonic::Prefetcht2
            | Mnemonic::Prefetchnta
            | Mnemonic::Movnti
            | Mnemonic::Clflush
            | Mnemonic::Xgetbv
            | Mnemonic::Xsetbv
    )
}

/// Instructions that save, load or reset the whole floating point state, or a part that is then loaded.
fn is_state_switch(mnemonic: Mnemonic) -> bool {
    matches!(
        mnemonic,
        Mnemonic::Fxsave
            | Mnemonic::Fxsave64
            | Mnemonic::Fxrstor
            | Mnemonic::Fxrstor64
            | Mnemonic::Xsave
            | Mnemonic::Xsave64
            | Mnemonic::Xsaveopt
            | Mnemonic::Xsaveopt64
            | Mnemonic::Xrstor
            | Mnemonic::Xrstor64
            | Mnemonic::Fninit
            | Mnemonic::Fnclex
            | Mnemonic::Fild
            | Mnemonic::Fnstsw
            | Mnemonic::Emms
            | Mnemonic::Ldmxcsr
            | Mnemonic::Stmxcsr
    )
}

fn is_vector_feature(feature: CpuidFeature) -> bool {
    let name = format!("{feature:?}");
    const PREFIXES: &[&str] = &["SSE", "SSSE", "AVX", "FPU", "MMX", "FXSR", "XSAVE", "FMA", "F16C", "PCLMUL"];
    PREFIXES.iter().any(|prefix| name.starts_with(prefix)) || name == "AES" || name == "SHA"
}

fn text(instruction: &Instruction) -> String {
    let mut text = String::new();
    IntelFormatter::new().format(instruction, &mut text);
    text
}

#[cfg(test)]
mod tests;
