//! Names and lines for the addresses of a panic or a serial log.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufWriter, Write};
use std::ops::Range;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use object::{Object, ObjectSection, SectionKind};

use crate::images;

/// The only image that has its addresses to itself.
const HYPERVISOR: &str = "microhv";

/// One image that addresses may belong to.
struct Known {
    name: &'static str,
    path: PathBuf,
    build_id: String,
    /// The addresses of its code. All PV kernels are linked at the same address, so only a build id tells
    /// whose an address is.
    code: Range<u64>,
}

/// One address in a log.
#[derive(Clone, Copy)]
struct Mention<'a> {
    line: usize,
    address: u64,
    /// The address is that of an executed instruction, not a return address.
    exact: bool,
    image: &'a Known,
}

/// The images' symbols.
pub struct Symbols {
    images: Vec<Known>,
}

impl Symbols {
    /// Of every image that is built.
    pub fn of_images() -> Self {
        let images = images::ALL
            .iter()
            .filter_map(|image| {
                let path = image.linked();
                let bytes = std::fs::read(&path).ok()?;
                let file = object::File::parse(&*bytes).ok()?;
                let id = file.build_id().ok()??;
                let build_id = id.iter().map(|byte| format!("{byte:02x}")).collect();
                let code = file.sections().filter(|section| section.kind() == SectionKind::Text);
                let ends = code.map(|section| (section.address(), section.address() + section.size()));
                let (start, end) = ends.reduce(|all, one| (all.0.min(one.0), all.1.max(one.1)))?;
                Some(Known { name: image.name, path, build_id, code: start..end })
            })
            .collect();
        Self { images }
    }

    /// Prints to standard error the symbols for the addresses in the last lines of `output`.
    pub fn explain(&self, output: &str) {
        let lines: Vec<&str> = output.lines().collect();
        // Build ids anywhere in the log decide to which image an address belongs; symbols are printed only
        // for the panic at the end.
        let skipped = panic_start(&lines);
        let explained = self.annotate(&lines, skipped);
        if !explained.is_empty() {
            eprintln!("symbols:");
        }
        for (_, text) in explained {
            eprintln!("  {text}");
        }
    }

    /// Symbols of no image.
    #[cfg(test)]
    pub(crate) fn none() -> Self {
        Self { images: Vec::new() }
    }

    /// Line number and explanation of every address from line `first` on, and of build ids that no image has.
    pub fn annotate(&self, lines: &[&str], first: usize) -> Vec<(usize, String)> {
        let mut names = BTreeMap::new();
        let reports = reports(lines);
        let mentions = self.mentions(lines, &reports);
        let wanted: Vec<Mention<'_>> = mentions.into_iter().filter(|mention| mention.line >= first).collect();
        for image in &self.images {
            let of_image = wanted.iter().filter(|mention| mention.image.name == image.name);
            // A return address belongs to the call before it.
            let places: BTreeSet<u64> = of_image.map(|mention| mention.place()).collect();
            for (place, text) in image.lines_of(&places) {
                names.insert((image.name, place), text);
            }
        }
        let explained = |mention: Mention<'_>| {
            let text = names.get(&(mention.image.name, mention.place()))?;
            Some((mention.line, format!("{:#x} {}: {text}", mention.address, mention.image.name)))
        };
        let strange = reports.iter().filter_map(|report| {
            let (line, id) = report.build_id.filter(|(line, id)| *line >= first && self.of(id).is_none())?;
            Some((line, format!("no image here has the build id {id}")))
        });
        let mut all: Vec<(usize, String)> = strange.chain(wanted.into_iter().filter_map(explained)).collect();
        all.sort_by_key(|(line, _)| *line);
        all
    }

    /// The image of a build id.
    fn of(&self, id: &str) -> Option<&Known> {
        self.images.iter().find(|image| image.build_id == id)
    }

    /// Every address that lies in an image's code, with the image.
    ///
    /// PV kernels share addresses: such an address is an image's only if the report has that image's build id. The
    /// hypervisor shares its addresses with no other image. In a report of a build that is not here, no address is
    /// known.
    fn mentions(&self, lines: &[&str], reports: &[Report<'_>]) -> Vec<Mention<'_>> {
        let mut mentions = Vec::new();
        for report in reports {
            let image = report.build_id.map(|(_, id)| self.of(id));
            if matches!(image, Some(None)) {
                continue;
            }
            let hypervisor = self.images.iter().find(|image| image.name == HYPERVISOR);
            for &line in &report.lines {
                let exact = lines[line].to_ascii_lowercase().contains("rip");
                for address in addresses(lines[line]) {
                    let owners = [image.flatten(), hypervisor].into_iter().flatten();
                    let owner = owners.into_iter().find(|image| image.code.contains(&address));
                    mentions.extend(owner.map(|image| Mention { line, address, exact, image }));
                }
            }
        }
        mentions.sort_by_key(|mention| mention.line);
        mentions
    }
}

/// Lines of one kernel, up to the next report of the same: a panic, or what comes before the first.
#[derive(Default)]
struct Report<'a> {
    lines: Vec<usize>,
    /// Whether the report begins with a panic.
    is_panic: bool,
    /// The build id in it, and its line. A kernel prints its id before the addresses or behind them.
    build_id: Option<(usize, &'a str)>,
}

/// The reports in a log. Lines of several domains are mixed; a line's prefix says which domain wrote the
/// line.
fn reports<'a>(lines: &[&'a str]) -> Vec<Report<'a>> {
    let mut open: BTreeMap<&str, Report<'a>> = BTreeMap::new();
    let mut reports = Vec::new();
    for (line, text) in lines.iter().enumerate() {
        let report = open.entry(writer(text)).or_default();
        let id = build_id(text);
        let is_panic = text.contains("PANIC");
        // A second id, or an id outside a panic, begins another report.
        if is_panic || id.is_some() && (report.build_id.is_some() || !report.is_panic) {
            reports.push(std::mem::take(report));
            report.is_panic = is_panic;
        }
        report.lines.push(line);
        report.build_id = report.build_id.or(id.map(|id| (line, id)));
    }
    reports.extend(open.into_values());
    reports
}

/// The prefix of a domain's lines, `(d1 name) `; nothing for dom0 and the hypervisor.
fn writer(line: &str) -> &str {
    let number = line.strip_prefix("(d").is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
    line.find(')').filter(|_| number).map_or("", |end| &line[..end])
}

impl Mention<'_> {
    /// The address to look up.
    fn place(&self) -> u64 {
        if self.exact { self.address } else { self.address - 1 }
    }
}

impl Known {
    /// The function, file and line at each address, inlined functions too.
    fn lines_of(&self, addresses: &BTreeSet<u64>) -> Vec<(u64, String)> {
        if addresses.is_empty() {
            return Vec::new();
        }
        let mut command = Command::new("addr2line");
        command.args(["--functions", "--demangle", "--inlines", "--pretty-print", "--addresses", "--exe"]);
        command.arg(&self.path);
        let Ok(output) = answers(&mut command, addresses) else { return Vec::new() };
        let text = String::from_utf8_lossy(&output);
        let mut known: Vec<(u64, String)> = Vec::new();
        for line in text.lines() {
            match (line.strip_prefix("0x").and_then(|rest| rest.split_once(": ")), known.last_mut()) {
                (Some((address, what)), _) => {
                    let Ok(address) = u64::from_str_radix(address, 16) else { continue };
                    known.push((address, what.to_string()));
                }
                (None, Some(last)) => {
                    last.1.push_str("\n      ");
                    last.1.push_str(line.trim());
                }
                (None, None) => {}
            }
        }
        // These are data, or addresses of another build: addr2line knows nothing of them.
        known.retain(|(_, what)| !what.starts_with("??"));
        known
    }
}

/// What a command prints that reads addresses, one a line: a log may have more of them than arguments have room.
fn answers(command: &mut Command, addresses: &BTreeSet<u64>) -> std::io::Result<Vec<u8>> {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let input = child.stdin.take();
    let output = std::thread::scope(|scope| {
        // addr2line answers meanwhile: a process whose output is full reads no more.
        scope.spawn(move || {
            let mut input = BufWriter::new(input?);
            // One that ends early has said what it had to say.
            addresses.iter().try_for_each(|address| writeln!(input, "{address:#x}")).ok()
        });
        child.wait_with_output()
    })?;
    Ok(output.stdout)
}

/// Where the last panic begins: at its first line that says so, else near the end.
fn panic_start(lines: &[&str]) -> usize {
    let says = |line: &&str| line.to_ascii_lowercase().contains("panic");
    let near_end = lines.len().saturating_sub(200);
    lines.iter().skip(near_end).position(says).map_or(near_end, |at| near_end + at)
}

/// The forty hexadecimal digits behind the words `build id`.
fn build_id(line: &str) -> Option<&str> {
    let at = line.to_ascii_lowercase().find("build id")? + "build id".len();
    let rest = line.get(at..)?.trim_start_matches([':', ' ', '=']);
    let id = rest.get(..40)?;
    id.bytes().all(|byte| byte.is_ascii_hexdigit()).then_some(id)
}

/// Every number of sixteen hexadecimal digits, with or without `0x` before it.
fn addresses(line: &str) -> impl Iterator<Item = u64> + '_ {
    line.split(|character: char| !character.is_ascii_alphanumeric())
        .map(|word| word.strip_prefix("0x").unwrap_or(word))
        .filter(|word| word.len() == 16)
        .filter_map(|word| u64::from_str_radix(word, 16).ok())
}

#[cfg(test)]
mod tests {
    use object::ObjectSymbol;

    use super::*;

    #[test]
    fn addresses_are_whole_words_of_sixteen_digits() {
        let found: Vec<u64> =
            addresses("rip=0xffff82d080200010 [<ffffffff80000000>] 0x12 deadbeefdeadbeefd").collect();
        assert_eq!(found, [0xffff_82d0_8020_0010, 0xffff_ffff_8000_0000]);
    }

    #[test]
    fn build_ids_are_forty_digits() {
        let id = "0123456789abcdef0123456789abcdef01234567";
        assert_eq!(build_id(&format!("Build ID: {id} more")), Some(id));
        assert_eq!(build_id("build id: 0123"), None);
        assert_eq!(build_id("nothing"), None);
    }

    fn known(name: &'static str, digit: char, code: Range<u64>) -> Known {
        Known { name, path: "/none".into(), build_id: digit.to_string().repeat(40), code }
    }

    #[test]
    fn a_build_id_tells_kernels_at_one_address_apart() {
        let kernels = 0xffff_ffff_8000_0000..0xffff_ffff_8001_0000;
        let images = vec![
            known("microhv", 'a', 0xffff_82d0_8020_0000..0xffff_82d0_8030_0000),
            known("dom0", 'b', kernels.clone()),
            known("hello", 'c', kernels),
        ];
        let symbols = Symbols { images };
        let id = format!("build id: {}", "c".repeat(40));
        let lines =
            ["0xffffffff80000010", &id, "rip 0xffffffff80000010 0xffff82d080200010 0xffffffff80010000"];
        let found = |lines: &[&str]| -> Vec<_> {
            let mentions = symbols.mentions(lines, &reports(lines));
            mentions.iter().map(|one| (one.line, one.image.name, one.place())).collect()
        };
        assert_eq!(
            found(&lines),
            [(2, "hello", 0xffff_ffff_8000_0010), (2, "microhv", 0xffff_82d0_8020_0010)],
            "the first could be either's, the last is nobody's code"
        );
        assert_eq!(found(&["0xffff82d080200010"]), [(0, "microhv", 0xffff_82d0_8020_000f)]);
    }

    #[test]
    fn each_report_has_its_own_image() {
        let kernels = 0xffff_ffff_8000_0000..0xffff_ffff_8001_0000;
        let images = vec![
            known("microhv", 'a', 0xffff_82d0_8020_0000..0xffff_82d0_8030_0000),
            known("dom0", 'b', kernels.start..kernels.end + 0x1000),
            known("hello", 'c', kernels),
        ];
        let symbols = Symbols { images };
        let id = |digit: &str| format!("build id: {}", digit.repeat(40));
        let names = |lines: &[&str]| -> Vec<_> {
            let mentions = symbols.mentions(lines, &reports(lines));
            mentions.iter().map(|one| (one.line, one.image.name)).collect()
        };
        let (dom0, hello, other) = (id("b"), format!("(d1 h) {}", id("c")), id("e"));
        // The id stands behind the addresses, and lines of two kernels are mixed.
        let mixed = [
            "(d1 h) PANIC: a",
            "PANIC: b",
            "(d1 h)   0xffffffff80000010",
            "  0xffffffff80000020",
            &hello,
            &dom0,
        ];
        assert_eq!(names(&mixed), [(2, "hello"), (3, "dom0")]);
        // A kernel that panics after another's report is not that other.
        let later = ["PANIC: a", "0xffffffff80000010", &dom0, "PANIC: b", "0xffffffff80000010", &id("c")];
        assert_eq!(names(&later), [(1, "dom0"), (4, "hello")]);
        // Addresses of another build belong to no image, not even the hypervisor's; the output says so.
        let lines = ["PANIC", "0xffff82d080200010", "0xffffffff80000010", &other];
        assert_eq!(names(&lines), []);
        let told = symbols.annotate(&lines, 0);
        assert!(told.len() == 1 && told[0].0 == 3 && told[0].1.contains("eeee"), "{told:?}");
        // Without an id, an address that only one of our kernels has may be a stranger's.
        assert_eq!(names(&["rip e033:ffffffff80010010"]), []);
    }

    #[test]
    fn any_number_of_addresses_is_looked_up() {
        // This very program, of which one address is known, amid more than arguments hold.
        let path = std::env::current_exe().expect("a program");
        let bytes = std::fs::read(&path).expect("readable");
        let file = object::File::parse(&*bytes).expect("an ELF file");
        let main = file.symbol_by_name("main").expect("it has one").address();
        let image = Known { path, ..known("dom0", 'a', 0..u64::MAX) };
        let nowhere = 0x7000_0000_0000;
        let mut addresses: BTreeSet<u64> = (nowhere..nowhere + 200_000).collect();
        addresses.insert(main);
        let lines = image.lines_of(&addresses);
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert!(lines[0].0 == main && lines[0].1.starts_with("main"), "{lines:?}");
    }

    #[test]
    fn the_last_panic_is_looked_for_near_the_end() {
        assert_eq!(panic_start(&["a", "PANIC on cpu 0", "rip"]), 1);
        assert_eq!(panic_start(&[]), 0);
        assert_eq!(panic_start(&["a", "b"]), 0);
    }
}
