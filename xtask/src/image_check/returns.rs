//! Whether a return may find the CPU's stack of return addresses empty (ITS).
//!
//! The stack has 16 entries at least. A call takes one more, and the oldest are lost; a return uses one up. So behind calls that went n
//! deep, the stack has only 16 - n entries for the returns that are left. The check follows all ways through each function, and
//! counts at each return how many entries are left in the worst case. What fills the stack sets that back.
//!
//! Indirect calls need not be followed: what they lead through fills the stack behind them, at run time. The targets of
//! such calls are checked as all functions are.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use anyhow::{Context, Result};
use iced_x86::{FlowControl, Instruction, Mnemonic, OpKind, Register};

use super::{Checker, Problem, text};

/// What a call of an image's functions leaves of the return stack.
#[derive(Clone, Copy, Debug)]
pub struct Returns {
    /// The function that fills the stack.
    pub fill: &'static str,
    /// The compiler's code for indirect calls, behind which the stack is filled.
    pub indirect: &'static str,
    /// Functions that interrupt others: they fill the stack last, on each way out.
    pub interrupting: &'static [&'static str],
    /// Functions in assembly that are right for a reason of their own.
    pub by_hand: &'static [&'static str],
}

/// Entries that are left where the stack has just been filled: three returns use one up each, that of the function that fills,
/// that of the handler of an interrupt here, and that of an NMI's handler at the end of that.
const FULL: u8 = 13;
/// Entries that are left behind an indirect call, at least: the code for it, and what it calls, are one deep each.
const BEHIND_INDIRECT: u8 = FULL - 2;
/// Functions of a way into the depth that are named.
const SHOWN_CALLS: usize = 24;

/// What a function leaves at its return, in the worst case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Left {
    entries: u8,
    /// The function whose call leaves so few.
    deepest: Option<u64>,
}

/// All calls of an image.
struct Calls<'a> {
    code: HashMap<u64, &'a Instruction>,
    fill: u64,
    indirect: u64,
    /// For each function that returns.
    left: BTreeMap<u64, Left>,
}

impl<'a> Calls<'a> {
    /// Counts what all functions leave: those that begin at `starts`, and those that are called.
    fn new(code: &'a [Instruction], starts: &BTreeSet<u64>, fill: u64, indirect: u64) -> Self {
        let is_call = |instruction: &&Instruction| instruction.flow_control() == FlowControl::Call;
        let called = code.iter().filter(is_call).map(Instruction::near_branch_target);
        let starts: BTreeSet<u64> = starts.iter().copied().chain(called).collect();
        let code = code.iter().map(|instruction| (instruction.ip(), instruction)).collect();
        let mut calls = Self { code, fill, indirect, left: BTreeMap::new() };
        // What a function leaves only shrinks from turn to turn, and a function that is found to return stays one.
        loop {
            let mut changed = false;
            for start in starts.iter().rev() {
                if let Some(left) = calls.leaves(*start, FULL) {
                    let before = calls.left.insert(*start, left);
                    changed |= before.map(|before| before.entries) != Some(left.entries);
                }
            }
            if !changed {
                return calls;
            }
        }
    }

    /// What is left at the worst return of the function at `start`, which begins with `entries`. `None`: the function does not return.
    fn leaves(&self, start: u64, entries: u8) -> Option<Left> {
        let mut seen: HashMap<u64, u8> = HashMap::new();
        let mut ways = vec![(start, Left { entries, deepest: None })];
        let mut worst: Option<Left> = None;
        let mut end = |left: Left| {
            if worst.is_none_or(|worst| left.entries < worst.entries) {
                worst = Some(left);
            }
        };
        while let Some((at, left)) = ways.pop() {
            let Some(instruction) = self.code.get(&at) else { continue };
            if seen.get(&at).is_some_and(|seen| *seen <= left.entries) {
                continue;
            }
            seen.insert(at, left.entries);
            let (next, target) = (instruction.next_ip(), instruction.near_branch_target());
            match instruction.flow_control() {
                FlowControl::Call => ways.extend(self.behind_call(target, left).map(|left| (next, left))),
                FlowControl::ConditionalBranch => ways.extend([(next, left), (target, left)]),
                FlowControl::UnconditionalBranch if target == self.fill => {
                    end(Left { entries: FULL, ..left })
                }
                FlowControl::UnconditionalBranch if target == self.indirect => {
                    end(self.behind_call(target, left).unwrap_or(left));
                }
                FlowControl::UnconditionalBranch => ways.push((target, left)),
                FlowControl::Return if instruction.mnemonic() == Mnemonic::Ret => end(left),
                FlowControl::Next | FlowControl::XbeginXabortXend => ways.push((next, left)),
                // Ways out of the hypervisor, and traps that end it.
                _ => {}
            }
        }
        worst
    }

    /// What is left behind a call of `target`, where `left` is before. `None`: the call does not return.
    fn behind_call(&self, target: u64, left: Left) -> Option<Left> {
        let entries = if target == self.fill {
            return Some(Left { entries: FULL, deepest: None });
        } else if target == self.indirect {
            BEHIND_INDIRECT
        } else {
            self.left.get(&target)?.entries.saturating_sub(1)
        };
        Some(if entries < left.entries { Left { entries, deepest: Some(target) } } else { left })
    }

    /// What is wrong with the function at `start`, whose name is `name`.
    fn problem(&self, rules: &Returns, start: u64, name: &dyn Fn(u64) -> String) -> Option<String> {
        let this = name(start);
        if rules.by_hand.contains(&this.as_str()) {
            return None;
        }
        if rules.interrupting.contains(&this.as_str()) {
            let is_full = self.leaves(start, 0).is_none_or(|left| left.entries == FULL);
            return (!is_full)
                .then(|| "a return without a full return stack to who was interrupted".to_string());
        }
        let mut left = *self.left.get(&start)?;
        if left.entries > 0 {
            return None;
        }
        let mut way = this;
        for _ in 0..SHOWN_CALLS {
            let Some(deepest) = left.deepest else { break };
            way = format!("{way} > {}", name(deepest));
            let Some(next) = self.left.get(&deepest) else { break };
            left = *next;
        }
        Some(format!("a return that may find the return stack empty, behind {way}"))
    }

    /// The fewest entries that any function leaves, and that function.
    fn fewest(&self, rules: &Returns, name: &dyn Fn(u64) -> String) -> Option<(u8, String)> {
        let all = self.left.iter().map(|(start, left)| (left.entries, name(*start)));
        all.filter(|(_, name)| !rules.by_hand.contains(&name.as_str())).min()
    }
}

impl Checker<'_> {
    /// Notes what [`Checker::returns`] needs of a function's code.
    pub(super) fn note(&mut self, code: &[Instruction], has_frame_pointer: bool) {
        let Some(first) = code.first() else { return };
        self.taken.extend(code.iter().filter_map(|instruction| taken(instruction, &self.starts)));
        // Without a frame pointer, the register is one like others.
        let argument = code.iter().find(|instruction| has_frame_pointer && is_stack_argument(instruction));
        if let Some(argument) = argument {
            self.with_stack_arguments.insert(first.ip(), *argument);
        }
        self.all.extend_from_slice(code);
    }

    /// Notes the functions whose addresses stand in `data`.
    pub(super) fn addresses(&mut self, data: &[u8]) {
        let words = data.as_chunks().0.iter().map(|word| u64::from_le_bytes(*word));
        self.taken.extend(words.filter(|word| self.starts.contains(word)));
    }

    /// Checks that no return finds the return stack empty.
    pub(super) fn returns(&mut self, rules: &Returns) -> Result<()> {
        let find = |wanted: &str| {
            let found = self.names.iter().find(|(_, name)| name == wanted);
            found.map(|(address, _)| *address).with_context(|| format!("there is no {wanted} in the image"))
        };
        let (fill, indirect) = (find(rules.fill)?, find(rules.indirect)?);
        let calls = Calls::new(&self.all, &self.starts, fill, indirect);
        let name = |address| self.name(address).to_string();
        let mut problems = Vec::new();
        for &address in &self.starts {
            if let Some(what) = calls.problem(rules, address, &name) {
                problems.push(Problem { address, function: name(address), what });
            }
        }
        for (start, argument) in &self.with_stack_arguments {
            if self.taken.contains(start) {
                let what = format!(
                    "an argument on the stack, of a function whose address is taken: {}",
                    text(argument)
                );
                problems.push(Problem { address: argument.ip(), function: name(*start), what });
            }
        }
        self.report.fewest = calls.fewest(rules, &name);
        self.report.problems.extend(problems);
        Ok(())
    }
}

/// The addresses of `starts` that `instruction` takes.
fn taken(instruction: &Instruction, starts: &BTreeSet<u64>) -> Option<u64> {
    let immediate = (0..instruction.op_count()).find_map(|operand| match instruction.op_kind(operand) {
        OpKind::Immediate64 | OpKind::Immediate32to64 | OpKind::Immediate32 => {
            Some(instruction.immediate(operand))
        }
        _ => None,
    });
    let address = (instruction.mnemonic() == Mnemonic::Lea && instruction.is_ip_rel_memory_operand())
        .then(|| instruction.memory_displacement64());
    address.or(immediate).filter(|address| starts.contains(address))
}

/// Whether the instruction, of a function with a frame pointer, touches an argument that was passed on the stack: above the
/// frame pointer of the caller and the return address.
fn is_stack_argument(instruction: &Instruction) -> bool {
    (0..instruction.op_count()).any(|operand| instruction.op_kind(operand) == OpKind::Memory)
        && instruction.memory_base() == Register::RBP
        && instruction.memory_displacement64() as i64 >= 16
}

#[cfg(test)]
mod tests;
