//! The plugins for QEMU, compiled when they are wanted: `xtask/plugin/count.c` counts instructions, and `returns.c` returns that find the
//! CPU's return stack empty.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::{cargo, paths};

/// Instructions executed since power-on, by what they belong to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Before the hypervisor's first instruction: firmware and loader.
    pub firmware: u64,
    /// The hypervisor's part of the address space.
    pub hypervisor: u64,
    /// The rest of the upper half: dom0's and the guests' kernels.
    pub kernel: u64,
    /// The lower half.
    pub user: u64,
    /// Loads of CR3 among the hypervisor's.
    pub cr3_loads: u64,
    /// Writes of MSRs among the hypervisor's.
    pub msr_writes: u64,
}

impl Counts {
    /// Everything but the firmware.
    pub fn total(&self) -> u64 {
        self.hypervisor + self.kernel + self.user
    }

    /// The sum of both counts.
    pub fn plus(&self, other: &Self) -> Self {
        Self {
            firmware: self.firmware + other.firmware,
            hypervisor: self.hypervisor + other.hypervisor,
            kernel: self.kernel + other.kernel,
            user: self.user + other.user,
            cr3_loads: self.cr3_loads + other.cr3_loads,
            msr_writes: self.msr_writes + other.msr_writes,
        }
    }

    /// The count for one of `times` runs, rounded.
    pub fn each(&self, times: u64) -> Self {
        let each = |count: u64| (count + times / 2) / times;
        Self {
            firmware: each(self.firmware),
            hypervisor: each(self.hypervisor),
            kernel: each(self.kernel),
            user: each(self.user),
            cr3_loads: each(self.cr3_loads),
            msr_writes: each(self.msr_writes),
        }
    }

    /// The instructions executed since `earlier`.
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            firmware: self.firmware.saturating_sub(earlier.firmware),
            hypervisor: self.hypervisor.saturating_sub(earlier.hypervisor),
            kernel: self.kernel.saturating_sub(earlier.kernel),
            user: self.user.saturating_sub(earlier.user),
            cr3_loads: self.cr3_loads.saturating_sub(earlier.cr3_loads),
            msr_writes: self.msr_writes.saturating_sub(earlier.msr_writes),
        }
    }
}

/// Compiles the counting plugin, unless it was already.
///
/// # Errors
/// gcc is missing or fails.
pub fn build() -> Result<PathBuf> {
    build_plugin("count")
}

fn build_plugin(name: &str) -> Result<PathBuf> {
    let source = paths::root().join(format!("xtask/plugin/{name}.c"));
    let library = paths::target().join(format!("plugin/lib{name}.so"));
    let modified = |path: &PathBuf| std::fs::metadata(path).and_then(|data| data.modified()).ok();
    if modified(&library).is_some_and(|made| modified(&source).is_some_and(|written| made >= written)) {
        return Ok(library);
    }
    let directory = library.parent().context("a file lies in a directory")?;
    std::fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    let mut command = Command::new("gcc");
    command.args(["-O2", "-Wall", "-Wextra", "-shared", "-fPIC", "-fvisibility=hidden", "-o"]);
    cargo::run(command.arg(&library).arg(&source))?;
    Ok(library)
}

/// QEMU's arguments that have a model of the return stack write to `output`: see [`Returns`].
///
/// # Errors
/// The plugin cannot be built.
pub fn return_arguments(output: &Path) -> Result<Vec<String>> {
    Ok(vec!["-plugin".into(), format!("{},out={}", build_plugin("returns")?.display(), output.display())])
}

/// What the model of the return stack saw of the hypervisor's returns.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Returns {
    /// Those that found the stack empty: where they are, and how often that was.
    pub empty: Vec<(u64, u64)>,
    /// All, how often they ran.
    pub all: u64,
}

impl Returns {
    /// What the plugin wrote.
    pub fn parse(output: &str) -> Self {
        let mut returns = Self::default();
        for line in output.lines() {
            match line.split(' ').collect::<Vec<_>>()[..] {
                ["empty", address, times] => {
                    let numbers = (u64::from_str_radix(address, 16), times.parse());
                    returns.empty.extend(if let (Ok(address), Ok(times)) = numbers {
                        Some((address, times))
                    } else {
                        None
                    });
                }
                ["returns", times] => returns.all = times.parse().unwrap_or(0),
                _ => {}
            }
        }
        returns
    }
}

/// The longest stretch of the hypervisor's instructions before a mark, in which it takes no interrupt.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stretch {
    /// The mark at its end.
    pub mark: u32,
    /// The length in instructions, with those of other CPUs that were waited for.
    pub length: u64,
    /// The latter alone.
    pub waited: u64,
    /// The guest's code from which the hypervisor was entered.
    pub entered_from: u64,
    /// The blocks that ran in the stretch.
    pub blocks: Vec<Block>,
}

/// What the plugin must know of the hypervisor to find its stretches.
#[derive(Clone, Debug)]
pub struct Places {
    /// The table of stubs for exceptions.
    pub stubs: u64,
    /// The IRET by which the hypervisor returns to a guest.
    pub guest_iret: u64,
    /// The function that waits for other CPUs.
    pub wait: Range<u64>,
    /// Where the hypervisor has looked for interrupts and found none, if stretches are to begin there: else stretches begin only where
    /// interrupts are taken.
    pub none_waits: Option<u64>,
}

/// QEMU's arguments that make the plugin write to `output` the longest stretch before each mark.
///
/// # Errors
/// The plugin cannot be built.
pub fn stretch_arguments(output: &Path, places: &Places) -> Result<Vec<String>> {
    let plugin = build()?;
    let plugin = plugin.display();
    let Places { stubs, guest_iret, wait: Range { start, end }, none_waits } = places;
    let none_waits = none_waits.unwrap_or(0);
    let places = format!("{stubs:x}-{guest_iret:x}-{start:x}-{end:x}-{none_waits:x}");
    Ok(vec!["-plugin".into(), format!("{plugin},out={},stretch={places}", output.display())])
}

/// The stretches in the plugin's output, in the order of their marks.
pub fn stretches(output: &str) -> Vec<Stretch> {
    let mut all: Vec<Stretch> = Vec::new();
    let mut last = None;
    for line in output.lines() {
        if let Some((number, _)) = mark(line) {
            last = Some(number);
        } else if let Some(rest) = line.strip_prefix("stretch ")
            && let [length, from, waited] = rest.split(' ').collect::<Vec<_>>()[..]
            && let (Some(mark), Ok(length), Ok(entered_from), Ok(waited)) =
                (last, length.parse(), u64::from_str_radix(from, 16), waited.parse())
        {
            all.push(Stretch { mark, length, waited, entered_from, blocks: Vec::new() });
        } else if let (Some(block), Some(stretch)) = (block(line, "in "), all.last_mut()) {
            stretch.blocks.push(block);
        }
    }
    all
}

/// QEMU's arguments that make the plugin write to `output`; with the blocks between the two marks, if any.
///
/// # Errors
/// The plugin cannot be built.
pub fn arguments(output: &Path, hot: Option<(u16, u16)>) -> Result<Vec<String>> {
    let hot = hot.map(|(from, to)| format!(",hot={from}-{to}")).unwrap_or_default();
    Ok(vec!["-plugin".into(), format!("{},out={}{hot}", build()?.display(), output.display())])
}

/// QEMU's arguments that make the plugin write to `output` also every block between two marks, of user mode too, with its
/// page: see [`windows`].
///
/// # Errors
/// The plugin cannot be built.
pub fn page_arguments(output: &Path, marks: (u16, u16)) -> Result<Vec<String>> {
    let mut arguments = arguments(output, Some(marks))?;
    if let Some(last) = arguments.last_mut() {
        last.push_str(",pages=1");
    }
    Ok(arguments)
}

/// What ran between two marks: the instructions, and the blocks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Window {
    /// All instructions.
    pub counts: Counts,
    /// The blocks, where the plugin was asked for them.
    pub blocks: Vec<Block>,
}

/// Every passage from mark `from` to mark `to`, in the order of the plugin's output.
pub fn windows(output: &str, from: u32, to: u32) -> Vec<Window> {
    let (mut all, mut begun, mut open) = (Vec::<Window>::new(), None, false);
    for line in output.lines() {
        if let Some((number, counts)) = mark(line) {
            open = false;
            if let Some(earlier) = begun.take_if(|_| number == to) {
                all.push(Window { counts: counts.since(&earlier), blocks: Vec::new() });
                open = true;
            } else if number == from {
                begun = Some(counts);
            }
        } else if let (true, Some(window), Some(block)) = (open, all.last_mut(), block(line, "hot ")) {
            window.blocks.push(block);
        }
    }
    all
}

/// The counts at every mark, in the order the marks were executed, from the plugin's output.
pub fn marks(output: &str) -> Vec<(u32, Counts)> {
    output.lines().filter_map(mark).collect()
}

/// A translation block of the hypervisor or of a kernel that ran between two marks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    /// The address of the first instruction.
    pub address: u64,
    /// How often it ran.
    pub runs: u64,
    /// The length in instructions.
    pub instructions: u64,
    /// The number of the machine page that the block begins in, where the plugin was asked for pages.
    pub page: Option<u64>,
}

/// The blocks in the plugin's output.
pub fn blocks(output: &str) -> Vec<Block> {
    output.lines().filter_map(|line| block(line, "hot ")).collect()
}

/// `ADDRESS RUNS INSTRUCTIONS [PAGE]` behind `word`.
fn block(line: &str, word: &str) -> Option<Block> {
    let mut words = line.strip_prefix(word)?.split_whitespace();
    let address = u64::from_str_radix(words.next()?, 16).ok()?;
    let mut number = || words.next()?.parse().ok();
    Some(Block { address, runs: number()?, instructions: number()?, page: number() })
}

/// `mark N cpu C firmware F hyp H kernel K user U cr3 L wrmsr W`.
fn mark(line: &str) -> Option<(u32, Counts)> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let pairs = words.chunks_exact(2).map(|pair| Some((pair[0], pair[1].parse::<u64>().ok()?)));
    let fields: BTreeMap<&str, u64> = pairs.collect::<Option<_>>()?;
    let field = |name: &str| fields.get(name).copied();
    let counts = Counts {
        firmware: field("firmware")?,
        hypervisor: field("hyp")?,
        kernel: field("kernel")?,
        user: field("user")?,
        cr3_loads: field("cr3")?,
        msr_writes: field("wrmsr")?,
    };
    Some((u32::try_from(field("mark")?).ok()?, counts))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_read_in_order() {
        let output = "mark 3 cpu 0 firmware 1 hyp 2 kernel 3 user 4 cr3 0 wrmsr 0\nhot ffff82d080200000 1 2\nmark 65535 cpu 1 firmware 1 hyp 20 kernel 30 user 18446744073709551615 cr3 0 wrmsr 0\n";
        let marks = marks(output);
        assert_eq!(marks.len(), 2);
        assert_eq!(
            marks[0],
            (3, Counts { firmware: 1, hypervisor: 2, kernel: 3, user: 4, ..Counts::default() })
        );
        assert_eq!(marks[0].1.total(), 9);
        assert_eq!(marks[1].1.user, u64::MAX);
        assert_eq!(marks[1].1.since(&marks[0].1).hypervisor, 18);
        assert_eq!(marks[0].1.since(&marks[1].1), Counts::default());
    }

    #[test]
    fn counts_add_up_and_divide() {
        let counts = Counts { firmware: 0, hypervisor: 10, kernel: 7, user: 1, ..Counts::default() };
        assert_eq!(counts.plus(&counts).total(), 36);
        assert_eq!(
            counts.each(2),
            Counts { firmware: 0, hypervisor: 5, kernel: 4, user: 1, ..Counts::default() }
        );
    }

    #[test]
    fn blocks_are_read_from_between_the_marks() {
        let blocks = blocks("hot ffff82d080200000 3 5\nmark 1\nhot x 1 1\nhot 1 2\n");
        assert_eq!(blocks, [Block { address: 0xffff_82d0_8020_0000, runs: 3, instructions: 5, page: None }]);
    }

    #[test]
    fn windows_have_their_own_blocks() {
        let mark = |number, hypervisor| {
            format!("mark {number} cpu 0 firmware 0 hyp {hypervisor} kernel 0 user 0 cr3 0 wrmsr 0\n")
        };
        let output = [
            &mark(300, 10),
            &mark(7, 11),
            &mark(301, 15),
            "hot 10 2 3 77\n",
            &mark(301, 17),
            "hot 20 9 9 9\n",
            &mark(300, 20),
            &mark(301, 21),
            "hot 30 1 1\n",
            &mark(65535, 40),
        ];
        let windows = windows(&output.concat(), 300, 301);
        let block = |address, runs, instructions, page| Block { address, runs, instructions, page };
        assert_eq!(windows.len(), 2);
        assert_eq!((windows[0].counts.hypervisor, windows[1].counts.hypervisor), (5, 1));
        assert_eq!(windows[0].blocks, [block(16, 2, 3, Some(77))]);
        assert_eq!(windows[1].blocks, [block(48, 1, 1, None)]);
    }

    #[test]
    fn stretches_belong_to_the_mark_before_them() {
        let output = "mark 300 cpu 0 firmware 1 hyp 2 kernel 3 user 4 cr3 0 wrmsr 0\nstretch 0 0 0\nmark 301 cpu 0 firmware 1 hyp 2 kernel 3 user 4 cr3 0 wrmsr 0\n\
                      stretch 70 ffffffff80000000 30\nin ffff82d080200000 3 5\n";
        let all = stretches(output);
        assert_eq!(all.iter().map(|one| (one.mark, one.length)).collect::<Vec<_>>(), [(300, 0), (301, 70)]);
        assert_eq!((all[1].entered_from, all[1].waited), (0xffff_ffff_8000_0000, 30));
        assert_eq!(
            all[1].blocks,
            [Block { address: 0xffff_82d0_8020_0000, runs: 3, instructions: 5, page: None }]
        );
    }

    #[test]
    fn broken_lines_are_no_marks() {
        assert!(marks("mark 3 cpu 0 firmware x hyp 2 kernel 3 user 4\nmark 3\nmark\n\n").is_empty());
    }
}
