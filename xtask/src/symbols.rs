//! Names and lines for the addresses of a panic or a serial log.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;

use object::Object;

use crate::images;

/// The hypervisor's own part of the address space (its L4 slot).
const HYPERVISOR: std::ops::Range<u64> = 0xffff_8280_0000_0000..0xffff_8300_0000_0000;
/// Where PV kernels are linked: dom0 and guests share it, so only a build id tells them apart.
const KERNEL: std::ops::Range<u64> = 0xffff_ffff_8000_0000..0xffff_ffff_c000_0000;

/// One image that addresses may belong to.
struct Known {
    name: &'static str,
    path: PathBuf,
    build_id: String,
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
                Some(Known { name: image.name, path, build_id })
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
        let mut current: Option<&Known> = None;
        let mut found: Vec<(usize, u64, &Known)> = Vec::new();
        for (number, line) in lines.iter().enumerate() {
            if let Some(id) = build_id(line) {
                current = self.images.iter().find(|image| image.build_id == id);
            }
            for address in addresses(line) {
                let image = if HYPERVISOR.contains(&address) {
                    self.images.iter().find(|image| image.name == "microhv")
                } else if KERNEL.contains(&address) {
                    current.filter(|image| image.name != "microhv")
                } else {
                    None
                };
                if let Some(image) = image.filter(|_| number >= first) {
                    found.push((number, address, image));
                }
            }
        }
        let mut names = BTreeMap::new();
        for image in &self.images {
            let mut wanted: Vec<u64> =
                found.iter().filter(|entry| entry.2.name == image.name).map(|entry| entry.1).collect();
            wanted.sort_unstable();
            wanted.dedup();
            for (address, text) in image.lines_of(&wanted) {
                names.insert((image.name, address), text);
            }
        }
        let explained = |(number, address, image): (usize, u64, &Known)| {
            let text = names.get(&(image.name, address))?;
            Some((number, format!("{address:#x} {}: {text}", image.name)))
        };
        found.into_iter().filter_map(explained).collect()
    }
}

impl Known {
    /// What stands at each address: function, file and line, inlined ones too.
    fn lines_of(&self, addresses: &[u64]) -> Vec<(u64, String)> {
        if addresses.is_empty() {
            return Vec::new();
        }
        let mut command = Command::new("addr2line");
        command.args(["--functions", "--demangle", "--inlines", "--pretty-print", "--addresses", "--exe"]);
        command.arg(&self.path);
        // A return address belongs to the call before it; for a faulting one the byte before is as good.
        command.args(addresses.iter().map(|address| format!("{:#x}", address - 1)));
        let Ok(output) = command.output() else { return Vec::new() };
        let text = String::from_utf8_lossy(&output.stdout);
        let mut known: Vec<(u64, String)> = Vec::new();
        for line in text.lines() {
            match (line.strip_prefix("0x").and_then(|rest| rest.split_once(": ")), known.last_mut()) {
                (Some((address, what)), _) => {
                    let Ok(address) = u64::from_str_radix(address, 16) else { continue };
                    known.push((address + 1, what.to_string()));
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

    #[test]
    fn a_kernel_address_without_its_build_id_is_nobodys() {
        let symbols = Symbols { images: Vec::new() };
        assert!(symbols.annotate(&["rip 0xffffffff80001000"], 0).is_empty());
    }

    #[test]
    fn the_last_panic_is_looked_for_near_the_end() {
        assert_eq!(panic_start(&["a", "PANIC on cpu 0", "rip"]), 1);
        assert_eq!(panic_start(&[]), 0);
        assert_eq!(panic_start(&["a", "b"]), 0);
    }
}
