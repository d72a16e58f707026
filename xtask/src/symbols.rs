//! Names and lines for the addresses of a panic or a serial log.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::PathBuf;
use std::process::Command;

use object::{Object, ObjectSection, SectionKind};

use crate::images;

/// One image that addresses may belong to.
struct Known {
    name: &'static str,
    path: PathBuf,
    build_id: String,
    /// Where its code lies. PV kernels are all linked at one address: only a build id tells whose one is.
    code: Range<u64>,
}

/// One address in a log.
#[derive(Clone, Copy)]
struct Mention<'a> {
    line: usize,
    address: u64,
    /// It is the address that was executed, not one that a call returns to.
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

    /// Prints, to standard error, what the addresses in the last lines of `output` are.
    pub fn explain(&self, output: &str) {
        let lines: Vec<&str> = output.lines().collect();
        // The whole log decides whose the addresses are; only the panic at its end is explained.
        let skipped = panic_start(&lines);
        let explained = self.annotate(&lines, skipped);
        if !explained.is_empty() {
            eprintln!("symbols:");
        }
        for (_, text) in explained {
            eprintln!("  {text}");
        }
    }

    /// Line number and explanation of every address from line `first` on.
    pub fn annotate(&self, lines: &[&str], first: usize) -> Vec<(usize, String)> {
        let mut names = BTreeMap::new();
        let mentions = self.mentions(lines);
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
        wanted.into_iter().filter_map(explained).collect()
    }

    /// Every address that lies in an image's code, with the image.
    fn mentions(&self, lines: &[&str]) -> Vec<Mention<'_>> {
        let mut current = None;
        let mut mentions = Vec::new();
        for (line, text) in lines.iter().enumerate() {
            if let Some(id) = build_id(text) {
                current = self.images.iter().find(|image| image.build_id == id);
            }
            let exact = text.to_ascii_lowercase().contains("rip");
            for address in addresses(text) {
                let mut candidates = self.images.iter().filter(|image| image.code.contains(&address));
                let owner = match current {
                    Some(image) if image.code.contains(&address) => Some(image),
                    // Nobody else is linked where the hypervisor is.
                    _ => candidates.next().filter(|_| candidates.next().is_none()),
                };
                mentions.extend(owner.map(|image| Mention { line, address, exact, image }));
            }
        }
        mentions
    }
}

impl Mention<'_> {
    /// The address to look up.
    fn place(&self) -> u64 {
        if self.exact { self.address } else { self.address - 1 }
    }
}

impl Known {
    /// What stands at each address: function, file and line, inlined ones too.
    fn lines_of(&self, addresses: &BTreeSet<u64>) -> Vec<(u64, String)> {
        if addresses.is_empty() {
            return Vec::new();
        }
        let mut command = Command::new("addr2line");
        command.args(["--functions", "--demangle", "--inlines", "--pretty-print", "--addresses", "--exe"]);
        command.arg(&self.path);
        command.args(addresses.iter().map(|address| format!("{address:#x}")));
        let Ok(output) = command.output() else { return Vec::new() };
        let text = String::from_utf8_lossy(&output.stdout);
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
        // Data, or another build's address: nothing worth a line.
        known.retain(|(_, what)| !what.starts_with("??"));
        known
    }
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
        let mentions = symbols.mentions(&lines);
        let found: Vec<_> = mentions.iter().map(|one| (one.line, one.image.name, one.place())).collect();
        assert_eq!(
            found,
            [(2, "hello", 0xffff_ffff_8000_0010), (2, "microhv", 0xffff_82d0_8020_0010)],
            "the first could be either's, the last is nobody's code"
        );
        let called = symbols.mentions(&["0xffff82d080200010"]);
        assert_eq!(called[0].place(), 0xffff_82d0_8020_000f);
    }

    #[test]
    fn the_last_panic_is_looked_for_near_the_end() {
        assert_eq!(panic_start(&["a", "PANIC on cpu 0", "rip"]), 1);
        assert_eq!(panic_start(&[]), 0);
        assert_eq!(panic_start(&["a", "b"]), 0);
    }
}
