//! Sets of physical CPUs, as `cpus=` has them.

use alloc::format;
use alloc::string::{String, ToString};

/// CPUs are numbered below this.
pub const CPU_MAX: u32 = 256;

const WORDS: usize = CPU_MAX as usize / 64;

/// A set of CPUs, a bit for each. The size is fixed, since a list may have many sets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuMask([u64; WORDS]);

impl CpuMask {
    /// `first` to `last`, both below [`CPU_MAX`].
    fn range(first: u32, last: u32) -> Self {
        // Bits below `end`, of the word that begins with CPU `base`.
        let below = |base: u32, end: u32| match end.saturating_sub(base) {
            0 => 0,
            64.. => u64::MAX,
            bits => (1 << bits) - 1,
        };
        Self(core::array::from_fn(|word| {
            let base = word as u32 * 64;
            below(base, last + 1) & !below(base, first)
        }))
    }

    fn insert(&mut self, other: Self) {
        self.0.iter_mut().zip(other.0).for_each(|(word, other)| *word |= other);
    }

    fn remove(&mut self, other: Self) {
        self.0.iter_mut().zip(other.0).for_each(|(word, other)| *word &= !other);
    }

    /// Whether one of the first 64 CPUs is in this set and in `cpus`.
    fn meets(self, cpus: u64) -> bool {
        self.0[0] & cpus != 0
    }

    /// The set in the hypervisor's format: a bit for each CPU, the lowest first.
    pub fn bytes(self) -> [u8; CPU_MAX as usize / 8] {
        let mut bytes = [0; CPU_MAX as usize / 8];
        for (bytes, word) in bytes.chunks_exact_mut(8).zip(self.0) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }
}

/// Physical CPUs that a vCPU may run on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CpuSet {
    /// Any.
    All,
    /// These; never none.
    Some(CpuMask),
}

impl CpuSet {
    /// These CPUs, if one of them is in `pool`, a bit for each CPU; else any.
    pub fn within(self, pool: u64) -> CpuSet {
        match self {
            CpuSet::Some(set) if !set.meets(pool) => CpuSet::All,
            set => set,
        }
    }

    /// Reads `all`, or numbers and ranges with commas between. `^` before a number or range leaves it out:
    /// `0-3,5,^1`; `node:0` is all CPUs of a node, of which there is one. After `all`, CPUs are left out of all
    /// that there can be.
    ///
    /// # Errors
    /// What is wrong with the text, in words.
    pub fn parse(text: &str) -> Result<CpuSet, String> {
        let text = text.trim();
        if text == "all" {
            return Ok(CpuSet::All);
        }
        let mut set = CpuMask::default();
        for part in text.split(',').map(str::trim) {
            let (without, range) = match part.strip_prefix('^') {
                Some(range) => (true, range),
                None => (false, part),
            };
            let node = range.strip_prefix("node:").or_else(|| range.strip_prefix("nodes:"));
            let (first, last) = match node.unwrap_or(range) {
                "all" => (0, CPU_MAX - 1),
                "0" | "0-0" if node.is_some() => (0, CPU_MAX - 1),
                _ if node.is_some() => return Err(format!("`{range}`: there is one node, 0")),
                _ => match range.split_once('-') {
                    Some((first, last)) => (cpu(first)?, cpu(last)?),
                    None => (cpu(range)?, cpu(range)?),
                },
            };
            if first > last {
                return Err(format!("`{range}`: a range goes upwards"));
            }
            let range = CpuMask::range(first, last);
            if without { set.remove(range) } else { set.insert(range) }
        }
        if set == CpuMask::default() { Err("no CPU is left".to_string()) } else { Ok(CpuSet::Some(set)) }
    }

    /// Does what [`CpuSet::parse`] does, for a text that nothing else in the message names.
    ///
    /// # Errors
    /// The text, and what is wrong with it, in words.
    pub fn parse_named(text: &str) -> Result<CpuSet, String> {
        let name = format!("`{text}`");
        CpuSet::parse(text).map_err(|why| if why.starts_with(&name) { why } else { format!("{name}: {why}") })
    }
}

fn cpu(text: &str) -> Result<u32, String> {
    let text = text.trim();
    let digits = text.bytes().all(|b| b.is_ascii_digit());
    let number = text.parse().ok().filter(|number| digits && *number < CPU_MAX);
    number.ok_or_else(|| format!("`{text}`: expected a CPU below {CPU_MAX}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_without_a_cpu_of_the_pool_is_any() {
        let set = |text| CpuSet::parse(text).expect("a set");
        assert_eq!(set("2-3").within(0b1000), set("2-3"));
        assert_eq!(set("2-3").within(0b0011), CpuSet::All);
        assert_eq!(set("64").within(u64::MAX), CpuSet::All);
        assert_eq!(CpuSet::All.within(0), CpuSet::All);
    }

    #[test]
    fn sets() {
        let set = |text: &str| match CpuSet::parse(text) {
            Ok(CpuSet::Some(set)) => {
                let bytes = set.bytes();
                (0..CPU_MAX).filter(|cpu| bytes[*cpu as usize / 8] >> (cpu % 8) & 1 != 0).collect::<Vec<_>>()
            }
            other => panic!("{text}: {other:?}"),
        };
        assert_eq!(CpuSet::parse("all"), Ok(CpuSet::All));
        assert_eq!(set("0"), [0]);
        assert_eq!(set("0-3, 5,^1"), [0, 2, 3, 5]);
        assert_eq!(set("^2,2-3"), [2, 3]);
        assert_eq!(set("all,^0-254"), [255]);
        assert_eq!(set("62-65,127-129,^128"), [62, 63, 64, 65, 127, 129]);
        assert_eq!(set("0-255").len(), 256);
        assert_eq!(set("node:0,^1-255"), [0]);
        assert_eq!(set("2,nodes:0-0,^node:all,7"), [7]);
        for bad in [
            "",
            "x",
            "256",
            "0-256",
            "0-4294967295",
            "0-99999999999999999999",
            "3-1",
            "^1",
            "0,^0",
            "1-",
            "-1",
            "+1",
            "0,,1",
            "node:1",
            "nodes:0-1",
            "node:",
            "node:x",
            "^node:0",
        ] {
            assert!(CpuSet::parse(bad).is_err(), "{bad}");
        }
    }
}
