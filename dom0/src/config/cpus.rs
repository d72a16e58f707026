//! Sets of physical CPUs, as `cpus=` has them.

use alloc::collections::BTreeSet;
use alloc::format;
use alloc::string::{String, ToString};

/// CPUs are numbered below this.
pub const CPU_MAX: u32 = 256;

/// Physical CPUs that a vCPU may run on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CpuSet {
    /// Any.
    All,
    /// These; never none.
    Some(BTreeSet<u32>),
}

impl CpuSet {
    /// Reads `all`, or numbers and ranges with commas between, `^` before what is to be left out:
    /// `0-3,5,^1`. After `all`, what is left out counts down from every CPU there can be.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub fn parse(text: &str) -> Result<CpuSet, String> {
        let text = text.trim();
        if text == "all" {
            return Ok(CpuSet::All);
        }
        let mut set = BTreeSet::new();
        for part in text.split(',').map(str::trim) {
            let (without, range) = match part.strip_prefix('^') {
                Some(range) => (true, range),
                None => (false, part),
            };
            let (first, last) = match range {
                "all" => (0, CPU_MAX - 1),
                _ => match range.split_once('-') {
                    Some((first, last)) => (cpu(first)?, cpu(last)?),
                    None => (cpu(range)?, cpu(range)?),
                },
            };
            if first > last {
                return Err(format!("`{range}`: a range goes upwards"));
            }
            for cpu in first..=last {
                if without {
                    set.remove(&cpu);
                } else {
                    set.insert(cpu);
                }
            }
        }
        if set.is_empty() { Err("no CPU is left".to_string()) } else { Ok(CpuSet::Some(set)) }
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
    fn sets() {
        let set = |text: &str| match CpuSet::parse(text) {
            Ok(CpuSet::Some(set)) => set.into_iter().collect::<Vec<_>>(),
            other => panic!("{text}: {other:?}"),
        };
        assert_eq!(CpuSet::parse("all"), Ok(CpuSet::All));
        assert_eq!(set("0"), [0]);
        assert_eq!(set("0-3, 5,^1"), [0, 2, 3, 5]);
        assert_eq!(set("^2,2-3"), [2, 3]);
        assert_eq!(set("all,^0-254"), [255]);
        for bad in ["", "x", "256", "0-256", "3-1", "^1", "0,^0", "1-", "-1", "+1", "0,,1"] {
            assert!(CpuSet::parse(bad).is_err(), "{bad}");
        }
    }
}
