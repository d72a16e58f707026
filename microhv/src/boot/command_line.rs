//! The hypervisor's own command line.
#![forbid(unsafe_code)]

/// What the command line asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// `dom0_mem=SIZE`: bytes of dom0's memory. Default 24 MiB.
    pub dom0_memory_bytes: u64,
    /// `debug-exit=PORT`: port of QEMU's isa-debug-exit device, if there is one.
    pub debug_exit: Option<u16>,
    /// `loglvl=error|warning|info|debug|all`.
    pub log_level: log::LevelFilter,
    /// `mitigations=auto|off`: whether side-channel counter-measures are wanted.
    pub mitigations: bool,
    /// `noreboot`: halt instead of restarting the machine.
    pub no_reboot: bool,
    /// `dom0_max_vcpus=N`. Default 1.
    pub dom0_max_vcpus: u32,
}

impl Options {
    /// Reads the words of `line`, and hands those that mean nothing here to `unknown`. A value that cannot be read leaves
    /// the default.
    pub fn parse<'a>(line: &'a str, mut unknown: impl FnMut(&'a str)) -> Self {
        let mut options = Self {
            dom0_memory_bytes: 24 << 20,
            debug_exit: None,
            log_level: log::LevelFilter::Info,
            mitigations: true,
            no_reboot: false,
            dom0_max_vcpus: 1,
        };
        for word in line.split_ascii_whitespace() {
            let (key, value) = word.split_once('=').unwrap_or((word, ""));
            match key {
                "dom0_mem" => options.dom0_memory_bytes = size(value).unwrap_or(options.dom0_memory_bytes),
                "dom0_max_vcpus" => {
                    options.dom0_max_vcpus = value.parse().unwrap_or(options.dom0_max_vcpus).clamp(1, 32);
                }
                "debug-exit" => options.debug_exit = number(value).and_then(|port| u16::try_from(port).ok()),
                "loglvl" => options.log_level = level(value).unwrap_or(options.log_level),
                "mitigations" => options.mitigations = value != "off",
                "noreboot" => options.no_reboot = true,
                "com1" | "console" => {}
                _ => unknown(word),
            }
        }
        options
    }
}

fn level(value: &str) -> Option<log::LevelFilter> {
    Some(match value {
        "none" => log::LevelFilter::Off,
        "error" => log::LevelFilter::Error,
        "warning" => log::LevelFilter::Warn,
        "info" | "guest" => log::LevelFilter::Info,
        "debug" => log::LevelFilter::Debug,
        "all" => log::LevelFilter::Trace,
        _ => return None,
    })
}

fn number(value: &str) -> Option<u64> {
    match value.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok(),
        None => value.parse().ok(),
    }
}

/// A size as Xen writes it: a number with B, K, M, G or nothing (KiB). Of a list (`24M,max:32M`) the first is taken.
fn size(value: &str) -> Option<u64> {
    let value = value.split(',').find(|part| !part.is_empty())?;
    let digits = value.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match value.get(digits.len()..)? {
        "B" | "b" => 0,
        "" | "K" | "k" => 10,
        "M" | "m" => 20,
        "G" | "g" => 30,
        _ => return None,
    };
    let value = digits.parse::<u64>().ok()?;
    value.checked_mul(1 << shift).filter(|&bytes| bytes != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(line: &str) -> Options {
        Options::parse(line, |word| panic!("{word} is known"))
    }

    #[test]
    fn reads_what_the_runner_passes() {
        let options = known("com1 debug-exit=0xf4 dom0_mem=24M loglvl=debug");
        assert_eq!(options.debug_exit, Some(0xf4));
        assert_eq!(options.dom0_memory_bytes, 24 << 20);
        assert_eq!(options.log_level, log::LevelFilter::Debug);
    }

    #[test]
    fn nonsense_leaves_the_defaults() {
        let line =
            "dom0_mem=99999999999999999999G debug-exit=0x10000 loglvl=loud dom0_max_vcpus=-1 mitigations";
        assert_eq!(known(line), known(""));
        assert_eq!(known("dom0_mem=0"), known(""));
        assert_eq!(known("dom0_mem=17179869184G"), known(""));
    }

    #[test]
    fn sizes() {
        assert_eq!(size("4096"), Some(4 << 20));
        assert_eq!(size("64M,max:128M"), Some(64 << 20));
        assert_eq!(size("1g"), Some(1 << 30));
        assert_eq!(size("3X"), None);
        assert_eq!(size(""), None);
    }

    #[test]
    fn unknown_words_are_named() {
        let mut words = std::vec::Vec::new();
        Options::parse("com1 frobnicate dom0_mem=1M x=y", |word| words.push(word));
        assert_eq!(words, ["frobnicate", "x=y"]);
    }
}
