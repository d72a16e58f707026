//! Which CPUs are threads of one core: those whose APIC ids differ in the lowest bits alone, as many as CPUID says.
//!
//! Source: Intel SDM volume 3, "Programming considerations for hardware multi-threading capable processors"; AMD APM volume 3,
//! "Multiple processor capabilities" and leaf 8000_001E.
#![forbid(unsafe_code)]

use crate::platform::{CpuId, CpuSet, CpuidResult};

/// Leaf 1, edx: the package has several APIC ids.
const HTT: u32 = 1 << 28;
/// Leaf 8000_0001, ecx of AMD's: the package's ids are of cores without threads, as long as leaf 8000_001E does not tell otherwise.
const CMP_LEGACY: u32 = 1 << 1;
/// Leaf 8000_0001, ecx: there is leaf 8000_001E.
const TOPOEXT: u32 = 1 << 22;
/// Leaf 0xB: the level is that of a core's threads.
const THREADS: u32 = 1;

/// How many bits tell `count` ids apart.
fn bits_for(count: u32) -> u32 {
    u32::BITS - count.saturating_sub(1).leading_zeros()
}

/// How many of an APIC id's lowest bits tell the threads of a core apart; `cpuid` answers for a leaf and a subleaf.
pub fn thread_bits(cpuid: impl Fn(u32, u32) -> CpuidResult) -> u32 {
    let last = cpuid(0, 0).eax;
    let last_extended = cpuid(0x8000_0000, 0).eax;
    let extended = if last_extended > 0x8000_0000 { cpuid(0x8000_0001, 0).ecx } else { 0 };
    if last >= 0xb {
        let level = cpuid(0xb, 0);
        if level.ebx & 0xffff != 0 && level.ecx >> 8 & 0xff == THREADS {
            return level.eax & 0x1f;
        }
    }
    if extended & TOPOEXT != 0 && last_extended >= 0x8000_001e {
        return bits_for((cpuid(0x8000_001e, 0).ebx >> 8 & 0xff) + 1);
    }
    let leaf_1 = cpuid(1, 0);
    if leaf_1.edx & HTT == 0 || extended & CMP_LEGACY != 0 {
        return 0;
    }
    let cores = if last >= 4 { (cpuid(4, 0).eax >> 26) + 1 } else { 1 };
    bits_for(leaf_1.ebx >> 16 & 0xff).saturating_sub(bits_for(cores))
}

/// The CPUs of the core that CPU `cpu` is one of, where CPU n has the APIC id `apic_ids[n]`.
pub fn siblings(apic_ids: &[u32], thread_bits: u32, cpu: CpuId) -> CpuSet {
    let core = |id: u32| id >> thread_bits;
    let own = apic_ids.get(cpu.index()).map(|id| core(*id));
    let cpus = (0..).filter_map(CpuId::new).zip(apic_ids).filter(|(_, id)| Some(core(**id)) == own);
    cpus.map(|(cpu, _)| cpu).fold(CpuSet::only(cpu), CpuSet::with)
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTEL: u32 = 0x756e_6547;
    const AMD: u32 = 0x6874_7541;

    /// A leaf, and its registers.
    type Leaf = (u32, [u32; 4]);

    /// A CPU that answers these leaves, in subleaf 0, and no others.
    fn bits(leaves: &[Leaf]) -> u32 {
        thread_bits(|leaf, subleaf| {
            let found = leaves.iter().find(|(known, _)| *known == leaf && subleaf == 0);
            let [eax, ebx, ecx, edx] = found.map_or([0; 4], |(_, registers)| *registers);
            CpuidResult { eax, ebx, ecx, edx }
        })
    }

    #[test]
    fn layouts_of_processors() {
        // (what, leaves, bits)
        let layouts: [(&str, &[Leaf], u32); 10] = [
            (
                "Pentium 4 with threads",
                &[(0, [5, INTEL, 0, 0]), (1, [0xf41, 2 << 16, 0, HTT]), (4, [0x4121, 0, 0, 0])],
                1,
            ),
            (
                "Core 2 Duo: no threads",
                &[(0, [0xa, INTEL, 0, 0]), (1, [0x6fb, 2 << 16, 0, HTT]), (4, [1 << 26 | 0x4121, 0, 0, 0])],
                0,
            ),
            (
                "Core i7 by leaf 0xB",
                &[
                    (0, [0xb, INTEL, 0, 0]),
                    (1, [0, 16 << 16, 0, HTT]),
                    (4, [7 << 26, 0, 0, 0]),
                    (0xb, [1, 2, 0x100, 0]),
                ],
                1,
            ),
            (
                "the same with threads off",
                &[
                    (0, [0xb, INTEL, 0, 0]),
                    (1, [0, 16 << 16, 0, HTT]),
                    (4, [7 << 26, 0, 0, 0]),
                    (0xb, [1, 1, 0x100, 0]),
                ],
                1,
            ),
            (
                "Xeon Phi: four threads",
                &[(0, [0xd, INTEL, 0, 0]), (1, [0, 255 << 16, 0, HTT]), (0xb, [2, 4, 0x100, 0])],
                2,
            ),
            (
                "no topology in leaf 0xB",
                &[(0, [0xd, INTEL, 0, 0]), (1, [0, 4 << 16, 0, HTT]), (4, [1 << 26, 0, 0, 0]), (0xb, [0; 4])],
                1,
            ),
            (
                "Athlon 64 X2: two cores",
                &[
                    (0, [1, AMD, 0, 0]),
                    (1, [0, 2 << 16, 0, HTT]),
                    (0x8000_0000, [0x8000_0018, 0, 0, 0]),
                    (0x8000_0001, [0, 0, CMP_LEGACY, 0]),
                ],
                0,
            ),
            (
                "EPYC by leaf 8000_001E",
                &[
                    (0, [7, AMD, 0, 0]),
                    (1, [0, 16 << 16, 0, HTT]),
                    (0x8000_0000, [0x8000_001e, 0, 0, 0]),
                    (0x8000_0001, [0, 0, CMP_LEGACY | TOPOEXT, 0]),
                    (0x8000_001e, [0, 1 << 8, 0, 0]),
                ],
                1,
            ),
            (
                "EPYC with threads off",
                &[
                    (0, [0xd, AMD, 0, 0]),
                    (1, [0, 8 << 16, 0, HTT]),
                    (0x8000_0000, [0x8000_001e, 0, 0, 0]),
                    (0x8000_0001, [0, 0, CMP_LEGACY | TOPOEXT, 0]),
                    (0x8000_001e, [0; 4]),
                ],
                0,
            ),
            ("one CPU", &[(0, [1, AMD, 0, 0]), (1, [0, 1 << 16, 0, 0])], 0),
        ];
        for (what, leaves, expected) in layouts {
            assert_eq!(bits(leaves), expected, "{what}");
        }
    }

    #[test]
    fn cpus_of_a_core_have_ids_that_differ_in_the_lowest_bits() {
        let set =
            |apic_ids: &[u32], bits, cpu| siblings(apic_ids, bits, CpuId::new(cpu).expect("few")).bits();
        // Firmware names the first thread of each core first.
        let ids = [0, 2, 4, 6, 1, 3, 5, 7];
        assert_eq!((set(&ids, 1, 0), set(&ids, 1, 5), set(&ids, 0, 5)), (0b1_0001, 0b10_0010, 0b10_0000));
        // Three cores of four ids each, some of which no CPU has; the boot CPU is no first thread.
        let ids = [9, 0, 1, 4, 8, 0x1_0000_u32];
        assert_eq!((set(&ids, 2, 0), set(&ids, 2, 1), set(&ids, 2, 3)), (0b1_0001, 0b110, 0b1000));
        assert_eq!(set(&ids, 31, 0), 0b11_1111);
        assert_eq!(set(&ids, 2, 9), 1 << 9, "a CPU without an id is a core of its own");
    }
}
