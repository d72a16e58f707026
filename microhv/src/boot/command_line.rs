//! The hypervisor's own command line.
#![forbid(unsafe_code)]

use core::fmt;

use super::speculation::Choices;
use crate::platform::MAX_CPUS;

/// What the command line asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// `dom0_mem=SIZE`: bytes of dom0's memory. Default 24 MiB.
    pub dom0_memory_bytes: u64,
    /// `debug-exit=PORT`: port of QEMU's isa-debug-exit device, if there is one.
    pub debug_exit: Option<u16>,
    /// `loglvl=error|warning|info|debug|all`.
    pub log_level: log::LevelFilter,
    /// `spec-ctrl=LIST`, `xpti=BOOLEAN`, `pv-l1tf=BOOLEAN`: counter-measures against side channels; `smep=BOOLEAN`,
    /// `smap=BOOLEAN`: what keeps the hypervisor off guests' pages.
    pub speculation: Choices,
    /// `noreboot`: halt instead of restarting the machine.
    pub no_reboot: bool,
    /// `dom0_max_vcpus=N`. Default 1.
    pub dom0_max_vcpus: u32,
    /// `maxcpus=N`: CPUs that are used at most. Default: all.
    pub max_cpus: u32,
    /// `sched-gran=cpu|core`: whether the CPUs of a core run vCPUs of one domain at a time.
    pub gran_core: bool,
    /// `console=vga,com1`: whether text goes to the screen, if there is one. Default: to the serial line too.
    pub screen: bool,
    /// The same word: whether text goes to the serial line.
    pub serial: bool,
    /// `x2apic=BOOLEAN`: whether local APICs are driven by MSRs where that is possible. Default: by the CPU.
    pub x2apic: Option<bool>,
}

impl Options {
    /// Reads the words of `line`, and hands those that mean nothing here to `ignored`, with the reason; of a list, each
    /// item behind the option's name. A value that cannot be read leaves the default.
    pub fn parse(line: &str, mut ignored: impl FnMut(fmt::Arguments<'_>, &'static str)) -> Self {
        let mut options = Self {
            dom0_memory_bytes: 24 << 20,
            debug_exit: None,
            log_level: log::LevelFilter::Info,
            speculation: Choices::default(),
            no_reboot: false,
            dom0_max_vcpus: 1,
            max_cpus: MAX_CPUS as u32,
            gran_core: false,
            screen: true,
            serial: true,
            x2apic: None,
        };
        for word in line.split_ascii_whitespace() {
            let (key, value) = word.split_once('=').unwrap_or((word, ""));
            let is_read = match key {
                "dom0_mem" => set(&mut options.dom0_memory_bytes, size(value)),
                "dom0_max_vcpus" => {
                    let vcpus = value.parse().ok().filter(|vcpus| (1..=32).contains(vcpus));
                    set(&mut options.dom0_max_vcpus, vcpus)
                }
                "maxcpus" => {
                    let cpus = value.parse().ok().filter(|cpus| (1..=MAX_CPUS as u32).contains(cpus));
                    set(&mut options.max_cpus, cpus)
                }
                "debug-exit" => {
                    let port = number(value).and_then(|port| u16::try_from(port).ok());
                    set(&mut options.debug_exit, port.map(Some))
                }
                "loglvl" => set(&mut options.log_level, level(value)),
                "spec-ctrl" => {
                    for item in value.split(',') {
                        if let Err(why) = options.speculation.spec_ctrl(item) {
                            ignored(format_args!("{key}={item}"), why);
                        }
                    }
                    true
                }
                "xpti" | "pv-l1tf" | "smep" | "smap" => {
                    let choices = &mut options.speculation;
                    let read = match key {
                        "xpti" => choices.xpti(value),
                        "pv-l1tf" => choices.pv_l1tf(value),
                        _ => choices.supervisor(key, value),
                    };
                    read.unwrap_or_else(|why| ignored(format_args!("{word}"), why));
                    true
                }
                "sched-gran" => {
                    let wanted = ["cpu", "core"].contains(&value).then_some(value == "core");
                    set(&mut options.gran_core, wanted)
                }
                "x2apic" => set(&mut options.x2apic, boolean(value).map(Some)),
                "no-x2apic" => set(&mut options.x2apic, value.is_empty().then_some(Some(false))),
                "noreboot" => set(&mut options.no_reboot, value.is_empty().then_some(true)),
                "console" => consoles(value).map(|ways| (options.screen, options.serial) = ways).is_some(),
                "com1" => true,
                _ => {
                    ignored(format_args!("{word}"), "no such option");
                    continue;
                }
            };
            if !is_read {
                ignored(format_args!("{word}"), expected(key));
            }
        }
        options
    }
}

/// What the option `key` takes.
fn expected(key: &str) -> &'static str {
    match key {
        "dom0_mem" => "expected a size, such as 24M",
        "dom0_max_vcpus" => "expected a number from 1 to 32",
        "maxcpus" => "expected a number from 1 to 64",
        "debug-exit" => "expected a port, such as 0xf4",
        "loglvl" => "expected none, error, warning, info, debug or all",
        "sched-gran" => "expected cpu or core",
        "console" => "expected a list of vga and com1, or none",
        "x2apic" => NO_BOOLEAN,
        _ => "expected no value",
    }
}
const _: () = assert!(MAX_CPUS == 64, "what the option maxcpus takes");

/// Sets what could be read; `false`: nothing could.
fn set<T>(option: &mut T, read: Option<T>) -> bool {
    read.map(|value| *option = value).is_some()
}

/// The consoles of a list, as Xen writes it: whether the screen is one, and whether the serial line is.
fn consoles(value: &str) -> Option<(bool, bool)> {
    let mut parts = value.split(',');
    let has = |wanted| value.split(',').any(|part| part == wanted);
    parts.all(|part| ["vga", "com1", "none"].contains(&part)).then(|| (has("vga"), has("com1")))
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

/// Why a value is ignored that [`boolean`] cannot read.
pub(super) const NO_BOOLEAN: &str = "expected a truth value, such as yes or no";

/// A truth value as Xen writes it; no value means true.
pub(super) fn boolean(value: &str) -> Option<bool> {
    match value {
        "" | "1" | "yes" | "on" | "true" | "enable" => Some(true),
        "0" | "no" | "off" | "false" | "disable" => Some(false),
        _ => None,
    }
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
    use alloc::string::{String, ToString};
    use alloc::vec::Vec;

    use super::*;

    /// The options of a line, and what is ignored of it.
    fn told(line: &str) -> (Options, Vec<(String, &'static str)>) {
        let mut told = Vec::new();
        let options = Options::parse(line, |word, why| told.push((word.to_string(), why)));
        (options, told)
    }

    fn known(line: &str) -> Options {
        Options::parse(line, |word, why| panic!("{word}: {why}"))
    }

    #[test]
    fn reads_what_the_runner_passes() {
        let options = known("com1 debug-exit=0xf4 dom0_mem=24M loglvl=debug");
        assert_eq!(options.debug_exit, Some(0xf4));
        assert_eq!(options.dom0_memory_bytes, 24 << 20);
        assert_eq!(options.log_level, log::LevelFilter::Debug);
        assert_eq!((options.max_cpus, known("maxcpus=1").max_cpus), (64, 1));
        let gran_core = |line| known(line).gran_core;
        assert_eq!(
            [gran_core(""), gran_core("sched-gran=cpu"), gran_core("sched-gran=core")],
            [false, false, true]
        );
    }

    #[test]
    fn nonsense_leaves_the_defaults_and_is_named() {
        for (words, why) in [
            ("dom0_mem=banana dom0_mem= dom0_mem dom0_mem=0", "expected a size, such as 24M"),
            (
                "dom0_mem=99999999999999999999G dom0_mem=17179869184G dom0_mem=max:512M",
                "expected a size, such as 24M",
            ),
            ("debug-exit=0x10000", "expected a port, such as 0xf4"),
            ("loglvl=loud", "expected none, error, warning, info, debug or all"),
            ("dom0_max_vcpus=-1 dom0_max_vcpus=0 dom0_max_vcpus=33", "expected a number from 1 to 32"),
            ("maxcpus=0 maxcpus=65 maxcpus", "expected a number from 1 to 64"),
            ("spec-ctrl=", "no such counter-measure"),
            ("xpti=maybe pv-l1tf=2 smep=pv smap=maybe x2apic=maybe x2apic=2", NO_BOOLEAN),
            ("noreboot=no no-x2apic=1", "expected no value"),
            ("sched-gran sched-gran=socket sched-gran=thread", "expected cpu or core"),
            ("console console= console=com3 console=vga,hvc0", "expected a list of vga and com1, or none"),
        ] {
            for word in words.split(' ') {
                let (options, told) = told(word);
                assert_eq!((options, told), (known(""), [(word.to_string(), why)].to_vec()));
            }
        }
    }

    #[test]
    fn counter_measures_are_spelt_as_for_xen() {
        let off = Choices { is_off: true, xpti: Some(false), l1tf: Some(false), ..Choices::default() };
        for word in ["spec-ctrl=no", "spec-ctrl=off", "spec-ctrl=0", "spec-ctrl=false", "spec-ctrl=disable"] {
            assert_eq!(known(word).speculation, off, "{word}");
        }
        for word in ["spec-ctrl=xen=no", "spec-ctrl=no-xen"] {
            assert_eq!(known(word).speculation, Choices { is_off: true, ..Choices::default() }, "{word}");
        }
        let choices = known("xpti=no pv-l1tf=off").speculation;
        assert_eq!(choices, Choices { is_off: false, ..off });
        assert_eq!(known("xpti=no xpti=default").speculation, Choices::default());
        for line in ["xpti", "xpti=yes", "xpti spec-ctrl=no", "spec-ctrl=no xpti=1"] {
            assert_eq!(known(line).speculation.xpti, Some(true), "{line}");
        }
        let list =
            known("spec-ctrl=no,verw,no-ibpb,ssbd=1,psfd=off,ibrs=no,no-bhi-dis-s,clear-regs").speculation;
        let some =
            [list.verw, list.ssbd, list.clear_registers, list.ibpb, list.psfd, list.ibrs, list.bhi_dis_s];
        assert_eq!(some, [true, true, true, false, false, false, false].map(Some));
        assert_eq!((list.is_off, list.l1tf), (true, Some(false)));
        assert_eq!(known("pv-l1tf spec-ctrl=no").speculation.l1tf, Some(true));
        let list = known("spec-ctrl=rsb=on,no-ibpb-entry,bhb-entry").speculation;
        assert_eq!([list.rsb, list.ibpb_entry, list.bhb_entry], [true, false, true].map(Some));
        assert_eq!(known("spec-ctrl=md-clear").speculation.verw, Some(true));
        for (line, why) in [
            ("spec-ctrl=yes", "no such counter-measure"),
            ("spec-ctrl=frob=1", "no such counter-measure"),
            ("spec-ctrl=no-frob", "no such counter-measure"),
            ("spec-ctrl=no-stibp", "microhv has no such counter-measure"),
            ("spec-ctrl=verw=", NO_BOOLEAN),
            ("spec-ctrl=verw=pv", NO_BOOLEAN),
            ("spec-ctrl=xen", "only xen=no has a meaning"),
            ("spec-ctrl=xen=maybe", "only xen=no has a meaning"),
            ("spec-ctrl=ibpb=2", NO_BOOLEAN),
            ("spec-ctrl=bti-thunk=jmp", "microhv has no such counter-measure"),
            ("xpti=dom0=no", "dom0 and other domains cannot differ"),
            ("pv-l1tf=domu", "dom0 and other domains cannot differ"),
            ("mitigations=off", "no such option"),
        ] {
            assert_eq!(told(line), (known(""), [(line.to_string(), why)].to_vec()), "{line}");
        }
        let (options, told) = told("spec-ctrl=verv,ibpb,frob");
        let why = "no such counter-measure";
        assert_eq!(told, [("spec-ctrl=verv".to_string(), why), ("spec-ctrl=frob".to_string(), why)]);
        assert_eq!(options, known("spec-ctrl=ibpb"));
    }

    #[test]
    fn guests_pages_are_kept_off_by_words_of_xens() {
        let chosen = |line| (known(line).speculation.smep, known(line).speculation.smap);
        assert_eq!(chosen(""), (None, None));
        assert_eq!(chosen("smep=no smap"), (Some(false), Some(true)));
        assert_eq!(chosen("smep=yes smap=hvm"), (Some(true), Some(false)));
        assert_eq!(chosen("spec-ctrl=no"), (None, None), "no matter of speculation");
    }

    #[test]
    fn consoles_are_chosen_by_a_list() {
        let chosen = |line| (known(line).screen, known(line).serial);
        assert_eq!(chosen("com1"), (true, true));
        assert_eq!(chosen("console=vga,com1"), (true, true));
        assert_eq!(chosen("console=com1"), (false, true));
        assert_eq!(chosen("console=vga"), (true, false));
        assert_eq!(chosen("console=none"), (false, false));
    }

    #[test]
    fn truth_values_are_spelt_as_for_xen() {
        assert_eq!(known("").x2apic, None);
        for word in ["x2apic", "x2apic=1", "x2apic=yes", "x2apic=on", "x2apic=true", "x2apic=enable"] {
            assert_eq!(known(word).x2apic, Some(true), "{word}");
        }
        for word in ["no-x2apic", "x2apic=0", "x2apic=no", "x2apic=off", "x2apic=false", "x2apic=disable"] {
            assert_eq!(known(word).x2apic, Some(false), "{word}");
        }
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
        let named = told("com1 frobnicate dom0_mem=1M x=y").1;
        let why = "no such option";
        assert_eq!(named, [("frobnicate".to_string(), why), ("x=y".to_string(), why)]);
    }
}
