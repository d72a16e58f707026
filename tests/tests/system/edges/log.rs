//! What QEMU writes down of the code that runs: each block's instructions when QEMU translates it, and each run of it.

use std::collections::{BTreeMap, HashMap};
use std::io::{BufRead, BufReader};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use object::{Object, ObjectSymbol, SymbolKind};

/// An executed instruction.
#[derive(Clone, Debug)]
pub(super) struct Step {
    pub(super) function: String,
    /// As QEMU disassembles the instruction, in AT&T's syntax.
    pub(super) text: String,
    /// The CPU came here from elsewhere: by an interruption or a system call.
    pub(super) is_entry: bool,
    /// The flag AC was set at the beginning of the instruction's block: the CPU's mode is part of a block.
    pub(super) has_ac: bool,
}

/// AC in the flags.
const AC: u32 = 1 << 18;

impl Step {
    /// Whether the step is one of those that change tables.
    pub(super) fn is_own(&self) -> bool {
        self.function.starts_with("own_")
    }

    /// The function; one for guests on tables of the hypervisor's own by the name of that for others.
    pub(super) fn function(&self) -> &str {
        match self.function.strip_prefix("own_") {
            Some("trap") => "trap_common",
            Some("ist") => "ist_common",
            Some(name) => name,
            None => &self.function,
        }
    }

    /// Whether the step is of an entry's first function.
    pub(super) fn is_stub(&self) -> bool {
        is_entry(&self.function)
    }

    pub(super) fn is_return(&self) -> bool {
        self.text.contains("sysret") || self.text.contains("iret")
    }
}

/// The entry code of the hypervisor.
pub(crate) struct Code {
    /// By their addresses.
    functions: BTreeMap<u64, String>,
    /// The addresses of these and of all other names.
    names: HashMap<String, u64>,
    range: std::ops::Range<u64>,
}

impl Code {
    /// The functions of the linked image.
    pub(crate) fn of_image() -> Result<Self> {
        let path = xtask::images::find("microhv")?.linked();
        let bytes = std::fs::read(&path).with_context(|| format!("{}", path.display()))?;
        let file = object::File::parse(&*bytes)?;
        let is_function =
            |symbol: &object::Symbol<'_, '_>| symbol.kind() == SymbolKind::Text && symbol.size() == 0;
        let mut code = Self { functions: BTreeMap::new(), names: HashMap::new(), range: 0..0 };
        for symbol in file.symbols() {
            let (name, address) = (symbol.name()?.to_string(), symbol.address());
            if is_function(&symbol) {
                code.functions.insert(address, name.clone());
            }
            code.names.insert(name, address);
        }
        let entries = code.functions.iter().filter(|(_, name)| is_entry(name)).map(|(address, _)| *address);
        code.range = entries.min().context("no entry in the image")?..code.address("__entry_text_end")?;
        Ok(code)
    }

    pub(crate) fn address(&self, name: &str) -> Result<u64> {
        self.names.get(name).copied().with_context(|| format!("no {name} in the image"))
    }

    /// What QEMU is to be told.
    pub(super) fn trace_to(&self, file: &Path) -> Vec<String> {
        let range = format!("{:#x}..{:#x}", self.range.start, self.range.end - 1);
        let file = file.display().to_string();
        ["-d", "in_asm,exec,nochain", "-dfilter", &range, "-D", &file].map(str::to_string).to_vec()
    }

    /// The steps, in their order.
    pub(super) fn read(&self, file: &Path) -> Result<Vec<Step>> {
        let lines = BufReader::new(std::fs::File::open(file)?).lines();
        let mut blocks: HashMap<u64, Vec<Step>> = HashMap::new();
        let (mut block, mut steps, mut last) = (None, Vec::new(), 0);
        for line in lines {
            let line = line?;
            if let Some((address, step)) = self.instruction(&line) {
                let begin = *block.get_or_insert_with(|| {
                    blocks.insert(address, Vec::new());
                    address
                });
                // More bytes of a long instruction have a line without text.
                if !step.text.is_empty() {
                    blocks.entry(begin).or_default().push(step);
                }
                continue;
            }
            block = None;
            if line.starts_with("Trace ") {
                // Trace CPU: BLOCK [BASE/ADDRESS/FLAGS/...
                let mut words = line.split('/').skip(1);
                let address = words.next().and_then(|word| u64::from_str_radix(word, 16).ok());
                let flags = words.next().and_then(|word| u32::from_str_radix(word, 16).ok());
                let has_ac = flags.with_context(|| format!("no flags: {line}"))? & AC != 0;
                let steps_of = address.and_then(|address| blocks.get(&address));
                let steps_of =
                    steps_of.with_context(|| format!("a block that was not translated: {line}"))?;
                last = steps.len();
                steps.extend(steps_of.iter().map(|step| Step { has_ac, ..step.clone() }));
            } else if line.starts_with("Stopped execution") {
                steps.truncate(last);
            }
        }
        ensure!(!steps.is_empty(), "nothing was executed: {}", file.display());
        Ok(steps)
    }

    /// `ADDRESS:  BYTES  MNEMONIC OPERANDS`
    fn instruction(&self, line: &str) -> Option<(u64, Step)> {
        let (address, rest) = line.strip_prefix("0x")?.split_once(':')?;
        let address = u64::from_str_radix(address, 16).ok()?;
        let (begin, name) = self.functions.range(..=address).next_back()?;
        let words = rest
            .split_whitespace()
            .skip_while(|word| word.len() == 2 && u8::from_str_radix(word, 16).is_ok());
        let text = words.collect::<Vec<_>>().join(" ");
        let is_entry = *begin == address && is_entry(name);
        Some((address, Step { function: name.clone(), text, is_entry, has_ac: false }))
    }
}

/// The address of a function of a guest's kernel.
pub(super) fn guest_address(image: &str, name: &str) -> Result<u64> {
    let path = xtask::images::find(image)?.linked();
    let bytes = std::fs::read(&path).with_context(|| format!("{}", path.display()))?;
    let file = object::File::parse(&*bytes)?;
    let symbol = file.symbols().find(|symbol| symbol.name() == Ok(name));
    Ok(symbol.with_context(|| format!("no {name} in {image}"))?.address())
}

/// Whether the CPU itself goes to a function of this name.
fn is_entry(name: &str) -> bool {
    let of_cpu = |prefix: &str| name.strip_prefix(prefix).is_some_and(|cpu| cpu.len() == 2);
    ["syscall_entry_", "syscall32_entry_", "own_syscall_entry_", "own_syscall32_entry_", "vector_"]
        .iter()
        .any(|prefix| of_cpu(prefix))
        || [
            "sysenter_entry",
            "own_sysenter_entry",
            "debug_stub",
            "nmi_stub",
            "machine_check_stub",
            "double_fault_stub",
        ]
        .contains(&name)
}
