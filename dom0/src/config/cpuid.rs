//! `cpuid=`: what a guest sees of the CPU, less than there is.
//!
//! Format: `xl.cfg(5)` of Xen 4.17, both forms: `"host,avx2=0,..."` with names of features, and a list of leaves,
//! `["1:ecx=xxx0...,edx=0x..."]`. In both, 0 hides a bit, 1 demands the bit, and `x`, `k` and `s` leave the bit as it is. Names are `libxl`'s.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use ring_abi::guest_context::XenCpuidLeaf;

/// Registers of a leaf, in the order of [`XenCpuidLeaf`].
const REGISTERS: [&str; 4] = ["eax", "ebx", "ecx", "edx"];
const EAX: usize = 0;
const EBX: usize = 1;
const ECX: usize = 2;
const EDX: usize = 3;
/// First of the extended leaves.
const EXTENDED: u32 = 0x8000_0000;
/// Bits of leaf 1's edx that AMD's CPUs show in leaf 0x80000001 too.
const COPIED_BY_AMD: u32 = 0x0183_f3ff;
/// Changes that one configuration may make.
const CHANGES_MAX: usize = 256;

/// The features of a register.
struct Features {
    leaf: u32,
    subleaf: u32,
    register: usize,
    names: &'static [(&'static str, u32)],
}

const fn features(
    (leaf, subleaf, register): (u32, u32, usize),
    names: &'static [(&'static str, u32)],
) -> Features {
    Features { leaf, subleaf, register, names }
}

#[rustfmt::skip]
const FEATURES: [Features; 9] = [
    features((1, 0, ECX), &[
        ("sse3", 0), ("pclmulqdq", 1), ("dtes64", 2), ("monitor", 3), ("dscpl", 4), ("vmx", 5), ("smx", 6), ("est", 7),
        ("tm2", 8), ("ssse3", 9), ("cntxid", 10), ("fma", 12), ("cmpxchg16", 13), ("xtpr", 14), ("pdcm", 15), ("pcid", 17),
        ("dca", 18), ("sse4_1", 19), ("sse4.1", 19), ("sse4_2", 20), ("sse4.2", 20), ("x2apic", 21), ("movbe", 22),
        ("popcnt", 23), ("tsc-deadline", 24), ("aes", 25), ("xsave", 26), ("avx", 28), ("f16c", 29), ("rdrand", 30),
    ]),
    features((1, 0, EDX), &[
        ("fpu", 0), ("vme", 1), ("de", 2), ("pse", 3), ("tsc", 4), ("msr", 5), ("pae", 6), ("mce", 7), ("cmpxchg8", 8),
        ("apic", 9), ("sysenter", 11), ("mtrr", 12), ("pge", 13), ("mca", 14), ("cmov", 15), ("pat", 16), ("pse36", 17),
        ("psn", 18), ("clfsh", 19), ("ds", 21), ("acpi", 22), ("mmx", 23), ("fxsr", 24), ("sse", 25), ("sse2", 26),
        ("ss", 27), ("htt", 28), ("tm", 29), ("pbe", 31),
    ]),
    features((7, 0, EBX), &[
        ("fsgsbase", 0), ("tsc_adjust", 1), ("bmi1", 3), ("hle", 4), ("avx2", 5), ("smep", 7), ("bmi2", 8), ("erms", 9),
        ("invpcid", 10), ("rtm", 11), ("cmt", 12), ("mpx", 14), ("avx512f", 16), ("avx512dq", 17), ("rdseed", 18),
        ("adx", 19), ("smap", 20), ("avx512-ifma", 21), ("clflushopt", 23), ("clwb", 24), ("proc-trace", 25),
        ("avx512pf", 26), ("avx512er", 27), ("avx512cd", 28), ("sha", 29), ("avx512bw", 30), ("avx512vl", 31),
    ]),
    features((7, 0, ECX), &[
        ("avx512-vbmi", 1), ("umip", 2), ("pku", 3), ("avx512-vbmi2", 6), ("gfni", 8), ("vaes", 9), ("vpclmulqdq", 10),
        ("avx512-vnni", 11), ("avx512-bitalg", 12), ("avx512-vpopcntdq", 14), ("rdpid", 22), ("cldemote", 25),
        ("movdiri", 27), ("movdir64b", 28),
    ]),
    features((7, 0, EDX), &[
        ("avx512-4vnniw", 2), ("avx512-4fmaps", 3), ("fsrm", 4), ("avx512-vp2intersect", 8), ("md-clear", 10),
        ("serialize", 14), ("ibrsb", 26), ("stibp", 27), ("l1d-flush", 28), ("arch-caps", 29), ("core-caps", 30), ("ssbd", 31),
    ]),
    features((0xd, 1, EAX), &[("xsaveopt", 0), ("xsavec", 1), ("xgetbv1", 2), ("xsaves", 3)]),
    features((EXTENDED + 1, 0, ECX), &[
        ("lahfsahf", 0), ("cmplegacy", 1), ("svm", 2), ("extapic", 3), ("altmovcr8", 4), ("abm", 5), ("sse4a", 6),
        ("misalignsse", 7), ("3dnowprefetch", 8), ("osvw", 9), ("ibs", 10), ("xop", 11), ("skinit", 12), ("wdt", 13),
        ("lwp", 15), ("fma4", 16), ("nodeid", 19), ("tbm", 21), ("topoext", 22), ("perfctr_core", 23), ("perfctr_nb", 24),
    ]),
    features((EXTENDED + 1, 0, EDX), &[
        ("syscall", 11), ("nx", 20), ("mmxext", 22), ("ffxsr", 25), ("page1gb", 26), ("rdtscp", 27), ("lm", 29),
        ("3dnowext", 30), ("3dnow", 31),
    ]),
    features((EXTENDED + 7, 0, EDX), &[("invtsc", 8)]),
];

/// Settings of the first form that are no features, and that no guest's CPU differs in.
const FIXED: [&str; 8] =
    ["family", "model", "stepping", "localapicid", "proccount", "brandid", "clflush", "nc"];

/// What is hidden and what is demanded of one register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Change {
    leaf: u32,
    subleaf: u32,
    register: usize,
    hidden: u32,
    demanded: u32,
}

/// The last basic leaf that is shown, if fewer are to be than there are, and all changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CpuidPolicy {
    last_leaf: Option<u32>,
    changes: Vec<Change>,
}

impl CpuidPolicy {
    /// Whether guests see all that they may.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    fn change(&mut self, change: Change) -> Result<(), String> {
        if self.changes.len() >= CHANGES_MAX {
            return Err(format!("more than {CHANGES_MAX} changes"));
        }
        self.changes.push(change);
        Ok(())
    }

    /// Adds changes of the form `host,NAME=VALUE,...`.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub fn add_names(&mut self, text: &str) -> Result<(), String> {
        let mut words = text.split(',').map(str::trim);
        if words.next() != Some("host") {
            return Err("expected `host,` and then features like `avx2=0`, or a list of leaves".into());
        }
        for word in words {
            let (name, value) =
                word.split_once('=').ok_or_else(|| format!("`{word}`: expected `NAME=VALUE`"))?;
            if name == "maxleaf" {
                self.last_leaf =
                    Some(number(value).ok_or_else(|| format!("maxleaf: `{value}` is no number"))?);
                continue;
            }
            if FIXED.contains(&name) {
                return Err(format!("{name}: guests see the machine's own, which cannot be changed"));
            }
            let of = |features: &'static Features| {
                let (_, bit) = features.names.iter().find(|(known, _)| *known == name)?;
                Some((features, 1 << bit))
            };
            let (features, bit) =
                FEATURES.iter().find_map(of).ok_or_else(|| format!("there is no feature `{name}`"))?;
            let (hidden, demanded) = match value {
                "0" => (bit, 0),
                "1" => (0, bit),
                "x" | "k" | "s" => (0, 0),
                _ => return Err(format!("{name}: `{value}`: expected 0, 1, x, k or s")),
            };
            let Features { leaf, subleaf, register, .. } = *features;
            self.change(Change { leaf, subleaf, register, hidden, demanded })?;
        }
        Ok(())
    }

    /// Adds changes of the form `LEAF[,SUBLEAF]:REGISTER=BITS,...`, where `BITS` are 32 of `01xks`, the highest first, or a number.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub fn add_leaf(&mut self, text: &str) -> Result<(), String> {
        let (place, rest) = text.split_once(':').ok_or("expected `LEAF:REGISTER=BITS`")?;
        let (leaf, subleaf) = place.split_once(',').unwrap_or((place, "0"));
        let wanted =
            |text: &str| number(text.trim()).ok_or_else(|| format!("`{text}` is no number of a leaf"));
        let (leaf, subleaf) = (wanted(leaf)?, wanted(subleaf)?);
        for word in rest.split(',').map(str::trim) {
            let (name, bits) =
                word.split_once('=').ok_or_else(|| format!("`{word}`: expected `REGISTER=BITS`"))?;
            let register = REGISTERS.iter().position(|register| *register == name);
            let register = register.ok_or_else(|| format!("`{name}`: expected eax, ebx, ecx or edx"))?;
            let (hidden, demanded) = masks(bits).ok_or_else(|| {
                format!("{name}: `{bits}`: expected 32 of 0, 1, x, k and s, or a number like 0xff")
            })?;
            self.change(Change { leaf, subleaf, register, hidden, demanded })?;
        }
        Ok(())
    }

    /// Makes what a guest would see what it is to see.
    ///
    /// # Errors
    /// A bit is demanded that is not there, or a leaf.
    pub fn apply(&self, leaves: &mut [XenCpuidLeaf]) -> Result<(), String> {
        if let (Some(last), Some(first)) = (self.last_leaf, leaves.iter_mut().find(|of| of.leaf == 0)) {
            if last > first.a {
                return Err(format!("maxleaf: {last} is more than the {} that guests see here", first.a));
            }
            first.a = last;
        }
        for change in &self.changes {
            apply(change, leaves)?;
            if (change.leaf, change.register) == (1, EDX) {
                let hidden = change.hidden & COPIED_BY_AMD;
                apply(&Change { leaf: EXTENDED + 1, hidden, demanded: 0, ..*change }, leaves)?;
            }
        }
        Ok(())
    }
}

fn apply(change: &Change, leaves: &mut [XenCpuidLeaf]) -> Result<(), String> {
    let is_it = |of: &&mut XenCpuidLeaf| {
        of.leaf == change.leaf && (of.subleaf == change.subleaf || of.subleaf == u32::MAX)
    };
    let mut nothing = XenCpuidLeaf::default();
    let of = leaves.iter_mut().find(is_it).unwrap_or(&mut nothing);
    let bits = [&mut of.a, &mut of.b, &mut of.c, &mut of.d].into_iter().nth(change.register);
    let Some(bits) = bits else { return Ok(()) };
    let lacks = change.demanded & !*bits;
    if lacks != 0 {
        let bit = lacks.trailing_zeros();
        let (leaf, register) = (change.leaf, REGISTERS[change.register]);
        let at =
            |of: &&Features| (of.leaf, of.subleaf, of.register) == (leaf, change.subleaf, change.register);
        let names = FEATURES.iter().find(at).map_or(&[][..], |of| of.names);
        let name = names.iter().find(|(_, known)| *known == bit).map_or("a bit", |(name, _)| name);
        return Err(format!(
            "{name} (leaf {leaf:#x}, {register}, bit {bit}): this CPU has none that a guest may see"
        ));
    }
    *bits &= !change.hidden;
    Ok(())
}

/// What is hidden and what is demanded.
fn masks(bits: &str) -> Option<(u32, u32)> {
    if bits.len() != 32 {
        let all = number(bits)?;
        return Some((!all, all));
    }
    bits.bytes().try_fold((0, 0), |(hidden, demanded), bit| {
        let (hidden, demanded) = (hidden << 1, demanded << 1);
        match bit {
            b'0' => Some((hidden | 1, demanded)),
            b'1' => Some((hidden, demanded | 1)),
            b'x' | b'k' | b's' => Some((hidden, demanded)),
            _ => None,
        }
    })
}

fn number(text: &str) -> Option<u32> {
    match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(text: &str) -> Result<CpuidPolicy, String> {
        let mut policy = CpuidPolicy::default();
        policy.add_names(text).map(|()| policy)
    }

    fn leaves() -> [XenCpuidLeaf; 4] {
        let of = |leaf, subleaf, a, b, c, d| XenCpuidLeaf { leaf, subleaf, a, b, c, d };
        [
            of(0, u32::MAX, 0xd, 1, 2, 3),
            of(1, u32::MAX, 0x306a9, 0, 0xffff_ffff, 0xffff_ffff),
            of(7, 0, 0, 1 << 5, 0, 0),
            of(EXTENDED + 1, u32::MAX, 0, 0, 0, 0xffff_ffff),
        ]
    }

    #[test]
    fn features_are_hidden_by_name() {
        let mut seen = leaves();
        names("host,avx2=0,sse3=0,x2apic=x,maxleaf=7").unwrap().apply(&mut seen).unwrap();
        assert_eq!((seen[0].a, seen[1].c, seen[2].b), (7, 0xffff_fffe, 0));
        assert_eq!(names("host"), Ok(CpuidPolicy::default()));
    }

    #[test]
    fn what_amd_copies_is_hidden_twice() {
        let mut seen = leaves();
        names("host,mmx=0,sse2=0").unwrap().apply(&mut seen).unwrap();
        assert_eq!((seen[1].d, seen[3].d), (!(1 << 23 | 1 << 26), !(1 << 23)));
    }

    #[test]
    fn what_is_demanded_must_be_there() {
        let mut seen = leaves();
        names("host,avx2=1").unwrap().apply(&mut seen).unwrap();
        let error = names("host,bmi1=1").unwrap().apply(&mut seen).unwrap_err();
        assert!(error.contains("bmi1 (leaf 0x7, ebx, bit 3)"), "{error}");
        let error = names("host,maxleaf=14").unwrap().apply(&mut seen).unwrap_err();
        assert!(error.contains("14 is more than the 13"), "{error}");
        assert_eq!(names("host,invtsc=0").unwrap().apply(&mut seen), Ok(()), "there is none to hide");
        assert!(names("host,invtsc=1").unwrap().apply(&mut seen).is_err());
    }

    #[test]
    fn leaves_have_bits_or_numbers() {
        let mut policy = CpuidPolicy::default();
        policy.add_leaf("1:ecx=xxxxxxxxxxxxxxxxxxxxxxxxxxxxxx0k,edx=0xf").unwrap();
        policy.add_leaf("0x7,0:ebx=00000000000000000000000000sxxxxx").unwrap();
        let mut seen = leaves();
        policy.apply(&mut seen).unwrap();
        assert_eq!((seen[1].c, seen[1].d, seen[2].b), (!2, 0xf, 1 << 5));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, part) in [
            ("avx=0", "expected `host,`"),
            ("host,avx", "expected `NAME=VALUE`"),
            ("host,avx9=0", "there is no feature `avx9`"),
            ("host,avx=2", "avx: `2`"),
            ("host,family=6", "family: guests see the machine's own"),
            ("host,maxleaf=many", "`many` is no number"),
        ] {
            let error = names(text).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
        for (text, part) in [
            ("1", "expected `LEAF:REGISTER=BITS`"),
            ("one:eax=0", "`one` is no number"),
            ("1:rax=0", "`rax`: expected eax"),
            ("1:eax", "expected `REGISTER=BITS`"),
            ("1:eax=xyz", "eax: `xyz`"),
            ("1:eax=xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx2", "expected 32 of"),
        ] {
            let error = CpuidPolicy::default().add_leaf(text).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
        let many = ["host"].into_iter().chain(core::iter::repeat_n("avx=0", CHANGES_MAX + 1));
        assert!(names(&many.collect::<Vec<_>>().join(",")).is_err());
    }

    #[test]
    fn names_are_unique() {
        let mut all: Vec<_> = FEATURES.iter().flat_map(|of| of.names).map(|(name, _)| *name).collect();
        all.extend(FIXED);
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), count);
    }
}
