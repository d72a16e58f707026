//! CPUs by what their registers say.

use std::collections::BTreeMap;

use super::*;
use crate::emul::cpuid::HYPERVISOR_BASE;

/// Leaves as eax, ebx, ecx, edx; those that are not there are 0. Those of sub-leaf 2 of leaf 7 have [`SEVEN_TWO`].
type Leaves<'a> = &'a [(u32, [u32; 4])];

const SEVEN_TWO: u32 = 0x2000_0007;
const INTEL: [u32; 3] = [0x756e_6547, 0x6c65_746e, 0x4965_6e69];
const AMD: [u32; 3] = [0x6874_7541, 0x444d_4163, 0x6974_6e65];
const KVM: [u8; 12] = *b"KVMKVMKVM\0\0\0";
const TCG: [u8; 12] = *b"TCGTCGTCGTCG";
/// Faults of every CPU that speculates, here.
const ALWAYS: [&str; 6] = [
    "Spectre v1",
    "values from guests",
    "Spectre v2",
    "Spectre v2 between guests",
    "SSB",
    "threads of a core",
];

/// A CPU with these leaves and MSRs; to read another MSR would fault.
fn read(leaves: Leaves<'_>, msrs: &[(u32, u64)]) -> Facts {
    let leaves: BTreeMap<u32, [u32; 4]> = leaves.iter().copied().collect();
    let cpuid = |leaf: u32, subleaf: u32| {
        let key = if (leaf, subleaf) == (7, 2) { SEVEN_TWO } else { leaf };
        let [eax, ebx, ecx, edx] = leaves.get(&key).copied().unwrap_or_default();
        CpuidResult { eax, ebx, ecx, edx }
    };
    Facts::read(cpuid, |msr| {
        let found = msrs.iter().find(|(number, _)| *number == msr);
        found.expect("an MSR that the CPU does not have is not read").1
    })
}

fn leaf_0(last: u32, [ebx, ecx, edx]: [u32; 3]) -> (u32, [u32; 4]) {
    (0, [last, ebx, ecx, edx])
}

fn below(name: [u8; 12]) -> (u32, [u32; 4]) {
    let word = |at: usize| u32::from_le_bytes([name[at], name[at + 1], name[at + 2], name[at + 3]]);
    (HYPERVISOR_BASE, [0x4000_0001, word(0), word(4), word(8)])
}

fn intel(version: u32, seven: [u32; 4], capabilities: Option<u64>) -> Facts {
    let leaves = [leaf_0(0x16, INTEL), (1, [version, 0, 0x7ffe_fbff, 0]), (7, seven)];
    let all = [(MSR_ARCH_CAPABILITIES, capabilities.unwrap_or(0)), (MSR_MCU_OPT_CTRL, 0)];
    read(&leaves, if capabilities.is_some() { &all } else { &[] })
}

fn amd(version: u32, extended_8: u32, extended_21: [u32; 4]) -> Facts {
    let last = (0x8000_0000, [0x8000_0028, AMD[0], AMD[1], AMD[2]]);
    let seven = (7, [0, 0x219c_97a9, 0, 0]);
    let extended = [(0x8000_0008, [0x3030, extended_8, 0, 0]), (0x8000_0021, extended_21)];
    read(&[leaf_0(0x10, AMD), (1, [version, 0, 0x7ed8_320b, 0]), seven, last, extended[0], extended[1]], &[])
}

/// QEMU's model `qemu64`: the same under the emulator and on silicon but for the name of what is below.
fn qemu64(name: [u8; 12]) -> Facts {
    let one = (1, [0x0060_0fb1, 0x800, 0x8000_2001, 0x078b_fbfd]);
    let last = (0x8000_0000, [0x8000_000a, AMD[0], AMD[1], AMD[2]]);
    read(&[leaf_0(0xd, AMD), one, below(name), last, (0x8000_0008, [0x3028, 0, 0, 0])], &[])
}

fn rows_by(facts: &Facts, choices: &Choices) -> Vec<Row> {
    table(facts, choices, &Measures::of(facts, choices), 2, false)
}

fn rows(facts: &Facts) -> Vec<Row> {
    rows_by(facts, &Choices::default())
}

/// The faults that the CPU has, besides [`ALWAYS`].
fn affected(facts: &Facts) -> Vec<&'static str> {
    let rows = rows(facts);
    let has = |fault: &&str| rows.iter().any(|row| row.fault == *fault && row.state != State::NotNeeded);
    assert_eq!(ALWAYS.iter().find(|fault| !has(fault)), None);
    let rows = rows.iter().filter(|row| row.state != State::NotNeeded && !ALWAYS.contains(&row.fault));
    rows.map(|row| row.fault).collect()
}

fn state_by(facts: &Facts, choices: &Choices, fault: &str) -> State {
    rows_by(facts, choices).into_iter().find(|row| row.fault == fault).expect("a fault").state
}

fn state(facts: &Facts, fault: &str) -> State {
    state_by(facts, &Choices::default(), fault)
}

/// The choices of a value of `spec-ctrl=`.
fn chosen(list: &str) -> Choices {
    let mut choices = Choices::default();
    list.split(',').for_each(|item| assert_eq!(choices.spec_ctrl(item), Ok(()), "{item}"));
    choices
}

#[test]
fn the_emulator_needs_nothing() {
    let rows = rows(&qemu64(TCG));
    let [row] = &rows[..] else { panic!("one row") };
    assert_eq!(row.to_string(), "all: not needed: QEMU's emulator executes one instruction after the other");
}

#[test]
fn the_emulators_name_counts_only_below_a_hypervisor() {
    let facts = read(&[leaf_0(0xd, INTEL), (1, [0; 4]), below(TCG)], &[]);
    assert!(affected(&facts).contains(&"Meltdown"));
}

#[test]
fn the_same_model_on_silicon_has_every_fault() {
    let facts = qemu64(KVM);
    let without: Vec<&str> =
        rows(&facts).into_iter().filter(|row| row.state == State::NotNeeded).map(|row| row.fault).collect();
    assert_eq!(without, ["lazy FPU"], "the maker is what another hypervisor says");
}

#[test]
fn a_westmere_has_the_old_faults() {
    // Microcode of 2018: IBRS, IBPB, STIBP, L1D_FLUSH, SSBD; no SMEP.
    let facts = intel(0x0002_06c2, [0, 0, 0, 0x9c00_0000], None);
    assert_eq!(affected(&facts), ["Meltdown", "L1TF", "MDS", "MMIO stale data", "return stack"]);
}

#[test]
fn a_skylake_predicts_returns_as_branches() {
    let facts = intel(0x0005_0654, [0, 0xd39f_fffb, 8, 0x9c00_0400], None);
    let expected = ["Meltdown", "L1TF", "MDS", "TAA", "MMIO stale data", "GDS", "Retbleed"];
    assert_eq!(affected(&facts), expected);
    assert_eq!(state(&facts, "GDS"), State::Missing, "microcode without GDS_CTRL");
    // The MSR has IBRS with later microcode, and no eIBRS.
    assert_eq!(state(&facts, "Retbleed"), State::On);
    let measures = Measures::of(&facts, &Choices::default());
    assert_eq!((measures.ibrs_entry, measures.control), (true, Some(0)));
    assert!(!Measures::of(&facts, &chosen("no-ibrs")).ibrs_entry);
    let old = intel(0x0005_0654, [0, 0xd39f_fffb, 8, 0x400], None);
    assert_eq!(
        (state(&old, "Retbleed"), Measures::of(&old, &chosen("ibrs")).ibrs_entry),
        (State::Missing, false)
    );
}

#[test]
fn a_client_skylake_has_srbds() {
    let of = |edx, opt| {
        let leaves = [leaf_0(0x16, INTEL), (1, [0x0005_06e3, 0, 0, 0]), (7, [0, 0x029c_67af, 0, edx])];
        read(&leaves, &[(MSR_MCU_OPT_CTRL, opt)])
    };
    assert_eq!(state(&of(0, 0), "SRBDS"), State::Missing);
    assert_eq!(state(&of(SRBDS_CTRL, 0), "SRBDS"), State::On);
    assert_eq!(state(&of(SRBDS_CTRL, 1), "SRBDS"), State::Missing, "firmware turned that off");
}

#[test]
fn a_cascade_lake_says_rdcl_no() {
    // RDCL_NO, IBRS_ALL, SKIP_L1DFL, MDS_NO, TSX_CTRL.
    let seven = [0, 0xd19f_f7fb, 0x808, 0xbc00_0400];
    let facts = intel(0x0005_0657, seven, Some(0xab));
    assert_eq!(affected(&facts), ["TAA", "MMIO stale data", "GDS", "BHI", "Retbleed", "ITS"]);
    // The same CPU whose MSR says nothing, as a hypervisor below would have it.
    let silent = affected(&intel(0x0005_0657, seven, Some(0)));
    assert_eq!(silent, ["Meltdown", "L1TF", "MDS", "MMIO stale data", "GDS", "Retbleed"]);
}

#[test]
fn an_ice_lake_has_few() {
    // As a Cascade Lake, with TAA_NO; GDS_CTRL. Sub-leaf 2 without BHI_CTRL.
    let capabilities = 0xab | 1 << 8 | GDS_CTRL;
    let facts = intel(0x0006_06a6, [2, 0xf3bf_fbff, 0x4041_7f5e, 0xbc04_0412], Some(capabilities));
    assert_eq!(affected(&facts), ["MMIO stale data", "GDS", "BHI", "Retbleed", "ITS"]);
    assert_eq!(state(&facts, "GDS"), State::On, "microcode does what is needed");
    // The stack of return addresses is filled on entry, and kept.
    let kept = |list| Measures::of(&facts, &chosen(list));
    assert_eq!((state(&facts, "ITS"), state_by(&facts, &chosen("no-its"), "ITS")), (State::On, State::Off));
    for (list, is_kept, is_overwritten) in [
        ("no-ssbd", true, true),
        ("no-rsb", true, true),
        ("no-its", false, false),
        ("no-its,rsb", false, true),
    ] {
        let measures = kept(list);
        assert_eq!((measures.keep_return_stack, measures.overwrite_return_stack), (is_kept, is_overwritten));
    }
}

#[test]
fn amds_cpus_have_faults_of_their_own() {
    const ZEN1: u32 = 1 | 1 << 2 | 1 << 12;
    const ZEN2: u32 = ZEN1 | 1 << 14 | 1 << 15 | 1 << 24;
    let none = [0; 4];
    assert_eq!(affected(&amd(0x0080_0f12, ZEN1, none)), ["branch type confusion", "SRSO", "DIV leak"]);
    assert_eq!(affected(&amd(0x0083_0f10, ZEN2, none)), ["branch type confusion", "SRSO", "Zenbleed"]);
    assert_eq!(affected(&amd(0x00a0_0f11, 0x111e_f657, none)), ["TSA", "SRSO", "PSF"]);
    // BTC_NO; microcode of 2025: TSA_SQ_NO.
    assert_eq!(affected(&amd(0x00a1_0f11, 0x791e_f757, [0, 0, 2, 0])), ["TSA", "SRSO", "PSF"]);
    // Zen5: SRSO_NO, SRSO_US_NO.
    assert_eq!(affected(&amd(0x00b0_0f21, 0x791e_f757, [3 << 29, 0, 0, 0])), ["PSF"]);
    let [zen1, zen2] = [amd(0x0080_0f12, ZEN1, none), amd(0x0083_0f10, ZEN2, none)];
    let of = |facts: &Facts| Measures::of(facts, &chosen("no-ssbd"));
    assert_eq!((of(&zen1).scrub_divider, of(&zen1).set_in_de_cfg), (true, 1 << 1));
    assert_eq!((of(&zen2).scrub_divider, of(&zen2).set_in_de_cfg), (false, 1 << 1 | 1 << 9));
    assert_eq!([state(&zen1, "DIV leak"), state(&zen2, "Zenbleed")], [State::On; 2]);
    assert_eq!(state_by(&zen1, &chosen("no-div-scrub"), "DIV leak"), State::Off);
    // Before Zen: error pointers stay.
    let piledriver = amd(0x0060_0f20, 1 << 12, none);
    assert_eq!(affected(&piledriver), ["branch type confusion", "FXSAVE leak"]);
    assert_eq!(state(&piledriver, "FXSAVE leak"), State::On);
    assert_eq!(state_by(&piledriver, &chosen("xen=no"), "FXSAVE leak"), State::Off);
}

#[test]
fn amds_bits_count_below_another_hypervisor() {
    let leaves = |extended_8, extended_21| {
        let last = (0x8000_0000, [0x8000_0028, AMD[0], AMD[1], AMD[2]]);
        let one = (1, [0x00a1_0f11, 0, 0xfed8_320b, 0]);
        let extended = [(0x8000_0008, [0, extended_8, 0, 0]), (0x8000_0021, extended_21)];
        read(&[leaf_0(0x10, AMD), one, below(KVM), last, extended[0], extended[1]], &[])
    };
    let silent = affected(&leaves(0, [0; 4]));
    let measures = Measures::of(&leaves(0, [0; 4]), &Choices::default());
    assert!(measures.scrub_divider && measures.set_in_de_cfg == 0, "the register may not be there");
    assert_eq!(state(&leaves(0, [0; 4]), "Zenbleed"), State::Missing);
    for fault in ["branch type confusion", "SRSO", "TSA", "FXSAVE leak", "Meltdown", "Zenbleed", "DIV leak"] {
        assert!(silent.contains(&fault), "{fault}");
    }
    let says = affected(&leaves(1 << 29 | 1 << 2, [1 << 29, 0, 6, 0]));
    for fault in ["branch type confusion", "SRSO", "TSA", "FXSAVE leak"] {
        assert!(!says.contains(&fault), "{fault}");
    }
}

#[test]
fn what_is_not_done_is_said_to_be_missing() {
    let facts = intel(0x0005_0654, [0, 0xd39f_fffb, 8, 0x9c00_0400], None);
    let text = |choices: &Choices, fault| {
        let rows = rows_by(&facts, choices);
        rows.into_iter().find(|row| row.fault == fault).expect("a fault").to_string()
    };
    let default = Choices::default();
    assert_eq!(
        text(&default, "Meltdown"),
        "Meltdown: on (page tables of the hypervisor's own): the CPU does not say RDCL_NO"
    );
    assert_eq!(text(&default, "Spectre v2"), "Spectre v2: on (retpolines): the CPU speculates");
    let off = Choices { is_off: true, ..default };
    assert!(text(&off, "MDS").starts_with("MDS: off ("));
    assert!(text(&off, "Spectre v2").starts_with("Spectre v2: on ("), "the image has retpolines in any case");
    assert!(text(&default, "L1TF").starts_with("L1TF: on (entries that are not present"));
    let off = Choices { xpti: Some(false), l1tf: Some(false), ..default };
    for fault in ["Meltdown", "L1TF"] {
        assert!(text(&off, fault).starts_with(&std::format!("{fault}: off (")), "{fault}");
    }
    assert!(text(&off, "MDS").starts_with("MDS: on ("));
    assert!(text(&off, "Retbleed").starts_with("Retbleed: on (IBRS on entry)"));
}

#[test]
fn checks_end_in_barriers_where_the_cpu_speculates() {
    let of = |facts: &Facts, list| Measures::of(facts, &chosen(list));
    let skylake = intel(0x0005_0654, [0, 0xd39f_fffb, 8, 0x9c00_0400], None);
    let hardens = |list| of(&skylake, list).harden_branches;
    assert_eq!(["no-ssbd", "branch-harden=no", "xen=no"].map(hardens), [true, false, false]);
    assert!(
        of(&qemu64(TCG), "branch-harden").harden_branches && !of(&qemu64(TCG), "no-ssbd").harden_branches
    );
    let v1 = |list| state_by(&skylake, &chosen(list), "Spectre v1");
    assert_eq!(["no-ssbd", "no-branch-harden", "no"].map(v1), [State::On, State::Off, State::Off]);
    // AMD's LFENCE: always a barrier before family 0x10 and in family 0x11, and where the CPU says so.
    let set = |version, eax| of(&amd(version, 1 | 1 << 29, [eax, 0, 6, 0]), "no-ssbd").set_in_de_cfg;
    assert_eq!([set(0x0010_0f22, 0), set(0x0060_0f20, 0), set(0x00a1_0f11, 0)], [2; 3]);
    assert_eq!([set(0x000f_0f00, 0), set(0x0020_0f31, 0), set(0x00a1_0f11, 1 << 2)], [0, 0, 0]);
    assert_eq!(of(&skylake, "no-ssbd").set_in_de_cfg, 0);
}

#[test]
fn threads_run_one_domain_where_cores_are_whole() {
    let of = |facts: &Facts, threads, whole| {
        let choices = Choices::default();
        let rows = table(facts, &choices, &Measures::of(facts, &choices), threads, whole);
        rows.into_iter().find(|row| row.fault == "threads of a core").expect("a fault").state
    };
    let facts = intel(0x0005_0654, [0; 4], None);
    assert_eq!([of(&facts, 1, false), of(&facts, 2, false)], [State::NotNeeded, State::Off]);
    assert_eq!(of(&facts, 2, true), State::On);
    assert_eq!([of(&qemu64(KVM), 1, true), of(&qemu64(KVM), 1, false)], [State::Missing, State::Off]);
}

#[test]
fn the_emulator_does_what_is_asked_for_by_name() {
    let of = |list| Measures::of(&qemu64(TCG), &chosen(list));
    let none = Measures::default();
    assert_eq!(Measures::of(&qemu64(TCG), &Choices::default()), none);
    assert_eq!(of("verw=no"), none);
    let l1tf = Choices { l1tf: Some(true), ..Choices::default() };
    assert_eq!(Measures::of(&qemu64(TCG), &l1tf), Measures { refuse_absent_memory: true, ..none });
    assert_eq!(of("verw,clear-regs"), Measures { verw: true, clear_registers: true, ..none });
    assert_eq!(of("div-scrub"), Measures { scrub_divider: true, ..none });
    // There is no MSR for these.
    assert_eq!(of("ibpb,ssbd,psfd,ibrs,bhi-dis-s"), none);
}

#[test]
fn verw_is_used_where_it_clears_what_leaks() {
    let skylake = |edx| intel(0x0005_0654, [0, 0xd39f_fffb, 8, edx], None);
    let verw = |facts: &Facts, list: &str| Measures::of(facts, &chosen(list)).verw;
    let (old, new) = (skylake(0x9c00_0000), skylake(0x9c00_0400));
    assert_eq!([verw(&old, "xen=no"), verw(&new, "xen=no"), verw(&new, "xen=no,verw")], [false, false, true]);
    assert_eq!([verw(&old, "no-ssbd"), verw(&new, "no-ssbd"), verw(&new, "no-verw")], [false, true, false]);
    let mds = |facts: &Facts, list: &str| state_by(facts, &chosen(list), "MDS");
    assert_eq!(mds(&new, "no-ssbd"), State::On);
    assert_eq!(mds(&new, "md-clear=no"), State::Off);
    // Where VERW clears nothing, nothing is said to be done.
    assert_eq!([mds(&old, "no-ssbd"), mds(&old, "verw")], [State::Missing; 2]);
    // MD_CLEAR and MDS_NO without TSX_CTRL: VERW clears nothing for TAA.
    let cascade = |capabilities| intel(0x0005_0657, [0, 0xd19f_fffb, 0x808, 0xbc00_0400], Some(capabilities));
    assert_eq!([state(&cascade(0x2b), "TAA"), state(&cascade(0xab), "TAA")], [State::Missing, State::On]);
    // An affected CPU's VERW counts only for the fault that it has: RFDS_CLEAR says nothing of MDS.
    let gracemont = intel(0x000b_06e0, [0, 0x80, 0, 1 << 29], Some(0x2b | 7 << 13 | 1 << 28));
    assert_eq!((state(&gracemont, "RFDS"), verw(&gracemont, "no-ssbd")), (State::On, true));
    let zen3 = |eax| amd(0x00a0_0f11, 0x111e_f657, [eax, 0, 0, 0]);
    assert_eq!([state(&zen3(0), "TSA"), state(&zen3(1 << 5), "TSA")], [State::Missing, State::On]);
    assert_eq!([verw(&zen3(0), "no-ssbd"), verw(&zen3(1 << 5), "no-ssbd")], [false, true]);
}

#[test]
fn msrs_are_written_only_where_they_are() {
    let ibpb = |facts: &Facts| Measures::of(facts, &Choices::default()).ibpb;
    let control = |facts: &Facts, list: &str| Measures::of(facts, &chosen(list)).control;
    let westmere = |edx| intel(0x0002_06c2, [0, 0, 0, edx], None);
    assert_eq!([ibpb(&westmere(0)), ibpb(&westmere(1 << 26))], [false, true]);
    assert_eq!(control(&westmere(0), "ssbd,psfd"), None);
    assert_eq!(control(&westmere(1 << 26), "ssbd,psfd"), Some(0), "neither SSBD nor PSFD");
    assert_eq!(control(&westmere(1 << 31), "ssbd"), Some(1 << 2));
    // eIBRS is set once and for all; IBRS would have to be set on each entry.
    assert_eq!(control(&westmere(1 << 26), "ibrs"), Some(0));
    let seven = [2, 0xf3bf_fbff, 0x4041_7f5e, 0xbc04_0412];
    let ice_lake = intel(0x0006_06a6, seven, Some(0xab));
    assert_eq!([control(&ice_lake, "no-psfd"), control(&ice_lake, "no-ibrs")], [Some(1), Some(0)]);
    assert_eq!((state(&ice_lake, "Retbleed"), state(&ice_lake, "BHI")), (State::On, State::On));
    assert_eq!(state_by(&ice_lake, &chosen("no-ibrs"), "Retbleed"), State::Off);
    assert_eq!(state_by(&ice_lake, &chosen("no-bhb-entry"), "BHI"), State::Off);
    // Sapphire Rapids: sub-leaf 2 has PSFD, IPRED_CTRL, RRSBA_CTRL, BHI_CTRL.
    let rapids = Facts { seven_two: CpuidResult { edx: 0x17, ..CpuidResult::default() }, ..ice_lake };
    let rapids = Facts { one: CpuidResult { eax: 0x0008_06f8, ..rapids.one }, ..rapids };
    assert_eq!(control(&rapids, "no-ssbd"), Some(1 | 1 << 10));
    assert_eq!(state(&rapids, "BHI"), State::On);
    assert_eq!(state_by(&rapids, &chosen("no-bhi-dis-s,no-bhb-entry"), "BHI"), State::Off);
    assert_eq!(control(&rapids, "psfd"), Some(1 | 1 << 7 | 1 << 10));
    assert_eq!([state(&rapids, "PSF"), state_by(&rapids, &chosen("ssbd"), "PSF")], [State::Off, State::On]);
    assert_eq!([state(&rapids, "SSB"), state_by(&rapids, &chosen("ssbd"), "SSB")], [State::Off, State::On]);
    let between = "Spectre v2 between guests";
    assert_eq!([state(&rapids, between), state(&westmere(0), between)], [State::On, State::Missing]);
    assert_eq!(state_by(&rapids, &chosen("no-ibpb"), between), State::Off);
    let l1tf = |facts: &Facts| Measures::of(facts, &Choices::default()).refuse_absent_memory;
    assert_eq!([l1tf(&westmere(0)), l1tf(&ice_lake)], [true, false]);
    let zen1 = amd(0x0080_0f12, 1 << 12, [0; 4]);
    assert_eq!(control(&zen1, "ssbd"), None, "Zen1 has IBPB alone");
}

#[test]
fn entries_are_guarded_by_what_the_cpu_needs() {
    let of = |facts: &Facts, list: &str| {
        let measures = Measures::of(facts, &chosen(list));
        assert_eq!(measures.guards_entry(), of_entry(&measures) != [false; 3]);
        assert!(measures.clear_registers || !measures.guards_entry());
        of_entry(&measures)
    };
    /// IBPB, the return stack, the history of branches.
    fn of_entry(measures: &Measures) -> [bool; 3] {
        [measures.ibpb_entry, measures.overwrite_return_stack, measures.clear_history]
    }
    let none = [false; 3];
    // IBRS is told on each entry where the CPU does not keep predictions apart once told.
    let skylake = intel(0x0005_0654, [0, 0xd39f_fffb, 8, 0x9c00_0400], None);
    assert!(Measures::of(&skylake, &chosen("no-ssbd")).guards_entry());
    // Without SMEP returns may go to a guest's code.
    let westmere = intel(0x0002_06c2, [0, 0, 0, 1 << 26], None);
    assert_eq!([of(&westmere, "no-ssbd"), of(&westmere, "no-rsb")], [[false, true, false], none]);
    assert_eq!((state(&westmere, "return stack"), of(&westmere, "xen=no")), (State::On, none));
    assert_eq!(of(&skylake, "no-ibrs"), none);
    let without_smep = Choices { smep: Some(false), ..chosen("no-ssbd") };
    assert!(Measures::of(&skylake, &without_smep).overwrite_return_stack);
    assert_eq!(state_by(&skylake, &without_smep, "return stack"), State::On);
    let kept_off = |choices: &Choices| [Measures::of(&skylake, choices)].map(|of| (of.smep, of.smap))[0];
    assert_eq!([kept_off(&Choices::default()), kept_off(&without_smep)], [(true, true), (false, true)]);
    assert_eq!(kept_off(&Choices { smap: Some(false), ..Choices::default() }), (true, false));
    // eIBRS without BHI_DIS_S, and with it.
    let ice_lake = intel(0x0006_06a6, [2, 0xf3bf_fbff, 0x4041_7f5e, 0xbc04_0412], Some(0xab));
    let rapids = Facts { seven_two: CpuidResult { edx: 0x17, ..CpuidResult::default() }, ..ice_lake };
    assert_eq!(
        [of(&ice_lake, "no-ssbd"), of(&ice_lake, "no-bhb-entry")],
        [[false, true, true], [false, true, false]]
    );
    assert_eq!(of(&ice_lake, "no-its"), [false, false, true]);
    assert_eq!([of(&rapids, "no-ssbd"), of(&rapids, "no-bhi-dis-s")], [none, [false, false, true]]);
    // Zen2: IBPB keeps the return stack, which is then overwritten; and none is needed at a switch.
    let zen2 = amd(0x0083_0f10, 1 << 12 | 1 << 15, [0; 4]);
    assert_eq!([of(&zen2, "no-ssbd"), of(&zen2, "no-ibpb-entry")], [[true, true, false], none]);
    assert!(!Measures::of(&zen2, &chosen("no-ssbd")).ibpb);
    assert!(Measures::of(&zen2, &chosen("no-ibpb-entry")).ibpb);
    for fault in ["branch type confusion", "SRSO", "Spectre v2 between guests"] {
        assert_eq!(state(&zen2, fault), State::On, "{fault}");
    }
    assert_eq!(state_by(&zen2, &chosen("no-ibpb-entry"), "SRSO"), State::Off);
    assert_eq!(state(&amd(0x0083_0f10, 1 << 15, [0; 4]), "SRSO"), State::Missing, "microcode without IBPB");
    // Zen4: only with IBPB_BRTYPE does IBPB help, and with IBPB_RET it is enough.
    let zen4 = |eax| amd(0x00a1_0f11, 1 << 12 | 1 << 15 | 1 << 29 | 1 << 30, [eax, 0, 6, 0]);
    assert_eq!([of(&zen4(0), "no-ssbd"), of(&zen4(1 << 28), "no-ssbd")], [none, [true, false, false]]);
    assert_eq!([state(&zen4(0), "SRSO"), state(&zen4(1 << 28), "SRSO")], [State::Missing, State::On]);
    assert_eq!(of(&qemu64(TCG), "no-ssbd"), none);
    assert_eq!(of(&qemu64(TCG), "rsb,bhb-entry,ibpb-entry"), [false, true, true]);
    assert_eq!(of(&qemu64(TCG), "its"), [false, true, false]);
}
