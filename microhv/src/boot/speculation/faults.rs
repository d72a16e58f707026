//! The faults, each with the bits and models that deny it.
//!
//! Bits: Intel SDM volume 4, `IA32_ARCH_CAPABILITIES`; AMD APM volume 3, appendix E. Models: Intel's "Affected Processors",
//! as Xen's `spec_ctrl.c` has them.

use alloc::vec;
use alloc::vec::Vec;
use core::fmt;

use super::Maker::{Amd, Intel};
use super::measures::{BHI_DIS_S, DE_CFG_VECTORS, IBRS, PSFD, SSBD};
use super::{Choices, Facts, GDS_CTRL, Maker, Measures, SRBDS_CTRL};

/// What is done against a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// The CPU does not have the fault.
    NotNeeded,
    /// What is needed is done.
    On,
    /// What would be needed is not wanted, by the command line or its defaults.
    Off,
    /// What would be needed is not done.
    Missing,
}

/// A fault, and what is done against it.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// The fault's name.
    pub fault: &'static str,
    /// Whether the counter-measure is on.
    pub state: State,
    /// The counter-measure.
    pub measure: &'static str,
    /// Why the counter-measure is needed, or not.
    pub why: &'static str,
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { fault, measure, why, .. } = self;
        match self.state {
            State::NotNeeded => write!(f, "{fault}: not needed: {why}"),
            State::On => write!(f, "{fault}: on ({measure}): {why}"),
            State::Off => write!(f, "{fault}: off ({measure}): {why}"),
            State::Missing => write!(f, "{fault}: MISSING ({measure}): {why}"),
        }
    }
}

/// Bits of `MSR_ARCH_CAPABILITIES`.
const RDCL_NO: u64 = 1 << 0;
const RSBA: u64 = 1 << 2;
const SSB_NO: u64 = 1 << 4;
const MDS_NO: u64 = 1 << 5;
const TSX_CTRL: u64 = 1 << 7;
const TAA_NO: u64 = 1 << 8;
/// SBDR_SSDP_NO, FBSDP_NO, PSDP_NO.
const MMIO_NO: u64 = 7 << 13;
const FB_CLEAR: u64 = 1 << 17;
const RRSBA: u64 = 1 << 19;
const BHI_NO: u64 = 1 << 20;
const GDS_NO: u64 = 1 << 26;
const RFDS_NO: u64 = 1 << 27;
const RFDS_CLEAR: u64 = 1 << 28;
const ITS_NO: u64 = 1 << 62;

/// Models of Intel's family 6 whose returns are predicted by the return stack alone (Broadwell: with microcode of 2018).
const PLAIN_RETURNS: &[u32] = &[
    0x17, 0x1a, 0x1c, 0x1d, 0x1e, 0x1f, 0x25, 0x26, 0x27, 0x2a, 0x2c, 0x2d, 0x2e, 0x2f, 0x35, 0x36, 0x37,
    0x3a, 0x3c, 0x3d, 0x3e, 0x3f, 0x45, 0x46, 0x47, 0x4a, 0x4c, 0x4d, 0x4f, 0x56, 0x57, 0x5a, 0x5c, 0x5f,
    0x85,
];
/// Goldmont to Gracemont, alone or beside other cores.
const RFDS: &[u32] = &[0x5c, 0x5f, 0x7a, 0x86, 0x96, 0x97, 0x9a, 0x9c, 0xb7, 0xba, 0xbe, 0xbf];
/// Skylake to Rocket Lake.
const GDS: &[u32] = &[0x4e, 0x55, 0x5e, 0x6a, 0x6c, 0x7e, 0x8c, 0x8d, 0x8e, 0x9e, 0xa5, 0xa6, 0xa7];
const ITS: &[u32] = &[0x55, 0x6a, 0x6c, 0x7e, 0x8c, 0x8d, 0x8e, 0x9e, 0xa5, 0xa6, 0xa7];
/// Ivy Bridge to Comet Lake, not for servers.
const SRBDS: &[u32] = &[0x3a, 0x3c, 0x3d, 0x45, 0x46, 0x47, 0x4e, 0x5e, 0x8e, 0x9e, 0xa5, 0xa6];
/// Silvermont and Airmont, whose return stack holds the lower half of an address.
const NARROW_RETURNS: &[u32] = &[0x37, 0x4a, 0x4c, 0x4d, 0x5a, 0x5d, 0x65, 0x6e, 0x75];

/// Whether there is a fault, of whose CPUs, and why: the first of `denied` that is so, or else `affected`.
#[derive(Clone, Copy)]
struct Need(Result<&'static str, &'static str>);

impl Need {
    fn of(facts: &Facts, maker: Maker, denied: &[(bool, &'static str)], affected: &'static str) -> Self {
        if maker != Maker::Unknown && facts.maker() != Maker::Unknown && facts.maker() != maker {
            return Self(Err("not a fault of this maker's CPUs"));
        }
        Self(denied.iter().find(|(is_so, _)| *is_so).map_or(Ok(affected), |(_, why)| Err(*why)))
    }
}

/// Faults by which a guest samples what buffers of the CPU hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Buffers {
    Mds,
    Taa,
    Mmio,
    Rfds,
    Tsa,
}

impl Buffers {
    pub(super) const ALL: [Self; 5] = [Self::Mds, Self::Taa, Self::Mmio, Self::Rfds, Self::Tsa];

    const fn name(self) -> &'static str {
        match self {
            Self::Mds => "MDS",
            Self::Taa => "TAA",
            Self::Mmio => "MMIO stale data",
            Self::Rfds => "RFDS",
            Self::Tsa => "TSA",
        }
    }

    fn need(self, facts: &Facts) -> Need {
        let says = |bit| facts.says(bit);
        match self {
            Self::Mds => Need::of(
                facts,
                Intel,
                &[(says(MDS_NO), "the CPU says MDS_NO")],
                "the CPU does not say MDS_NO",
            ),
            Self::Taa => {
                // Only the CPU itself says that there are no transactions; a hypervisor below may hide them.
                let has_tsx = facts.is_virtual() || facts.seven.ebx & 1 << 11 != 0 || says(TSX_CTRL);
                let denied =
                    [(says(TAA_NO), "the CPU says TAA_NO"), (!has_tsx, "the CPU has no transactions")];
                Need::of(facts, Intel, &denied, "the CPU does not say TAA_NO")
            }
            Self::Mmio => {
                let denied = [(says(MMIO_NO), "the CPU says SBDR_SSDP_NO, FBSDP_NO and PSDP_NO")];
                Need::of(facts, Intel, &denied, "the CPU does not say SBDR_SSDP_NO, FBSDP_NO and PSDP_NO")
            }
            Self::Rfds => {
                let other = !says(RFDS_CLEAR) && facts.is_model(RFDS, false);
                let denied = [(says(RFDS_NO), "the CPU says RFDS_NO"), (other, "not a fault of this model")];
                Need::of(facts, Intel, &denied, "the CPU does not say RFDS_NO")
            }
            Self::Tsa => {
                let none = facts.extended_21.ecx & 6 == 6;
                let denied = [
                    (none, "the CPU says TSA_SQ_NO and TSA_L1_NO"),
                    (facts.is_no_family(&[0x19]), "not a fault of this family"),
                ];
                Need::of(facts, Amd, &denied, "the CPU does not say TSA_SQ_NO and TSA_L1_NO")
            }
        }
    }

    /// Whether the CPU may have the fault.
    pub(super) fn is_there(self, facts: &Facts) -> bool {
        self.need(facts).0.is_ok()
    }

    /// Whether microcode has VERW clear the buffers that leak.
    pub(super) fn has_verw(self, facts: &Facts) -> bool {
        let md_clear = facts.seven.edx & 1 << 10 != 0;
        let is_mds_no = facts.says(MDS_NO);
        match self {
            Self::Mds => md_clear,
            // CPUs that say MDS_NO have MD_CLEAR too, and buffers that VERW clears only with later microcode.
            Self::Taa => md_clear && (!is_mds_no || facts.says(TSX_CTRL)),
            Self::Mmio => facts.says(FB_CLEAR) || md_clear && !is_mds_no,
            Self::Rfds => facts.says(RFDS_CLEAR),
            Self::Tsa => facts.extended_21.eax & 1 << 5 != 0,
        }
    }
}

/// Meltdown and L1TF, which the same bit denies.
fn rdcl(facts: &Facts) -> Need {
    let denied = [(facts.says(RDCL_NO), "the CPU says RDCL_NO")];
    Need::of(facts, Intel, &denied, "the CPU does not say RDCL_NO")
}

/// Whether a guest reads ahead what its page tables map without the right to it.
pub(super) fn has_meltdown(facts: &Facts) -> bool {
    rdcl(facts).0.is_ok()
}

/// Whether an entry that is not present leads a guest to what the first-level cache has of the memory there.
pub(super) fn has_l1tf(facts: &Facts) -> bool {
    rdcl(facts).0.is_ok()
}

fn bhi(facts: &Facts) -> Need {
    let has_none = facts.maker() == Intel && !facts.has_eibrs();
    let denied = [(facts.says(BHI_NO), "the CPU says BHI_NO"), (has_none, "the CPU has no eIBRS")];
    Need::of(facts, Intel, &denied, "the CPU does not say BHI_NO")
}

fn btc(facts: &Facts) -> Need {
    let denied = [
        (facts.extended_8.ebx & 1 << 29 != 0, "the CPU says BTC_NO"),
        (facts.is_no_family(&[0x15, 0x16, 0x17, 0x18]), "not a fault of this family"),
    ];
    Need::of(facts, Amd, &denied, "the CPU does not say BTC_NO")
}

fn srso(facts: &Facts) -> Need {
    let denied = [
        (facts.extended_21.eax & 1 << 29 != 0, "the CPU says SRSO_NO"),
        (facts.extended_21.eax & 1 << 30 != 0, "the CPU says SRSO_US_NO"),
        (facts.is_no_family(&[0x17, 0x18, 0x19]), "not a fault of this family"),
    ];
    Need::of(facts, Amd, &denied, "the CPU does not say SRSO_NO")
}

/// Whether a guest may have trained what IBPB on entry makes the CPU forget.
pub(super) fn needs_ibpb_entry(facts: &Facts) -> bool {
    btc(facts).0.is_ok() || srso(facts).0.is_ok() && facts.has_ibpb_brtype()
}

fn return_stack(facts: &Facts) -> Need {
    // Guests are of 64 bits, so the return addresses that a guest leaves there are all of user pages.
    let smep = facts.has_smep() && !facts.is_model(NARROW_RETURNS, true);
    Need::of(facts, Maker::Unknown, &[(smep, "SMEP is on")], "a return may go to a guest's code")
}

/// Whether a return may go where a guest's return addresses lead.
pub(super) fn has_return_stack(facts: &Facts) -> bool {
    return_stack(facts).0.is_ok()
}

/// Whether branches in ring 3 may steer predictions in ring 0 by their history.
pub(super) fn has_bhi(facts: &Facts) -> bool {
    bhi(facts).0.is_ok()
}

fn its(facts: &Facts) -> Need {
    let is_intel = facts.maker() == Intel;
    let denied = [
        (facts.says(ITS_NO), "the CPU says ITS_NO"),
        (is_intel && !facts.has_eibrs(), "the CPU has no eIBRS"),
        (is_intel && facts.has_bhi_dis_s(), "the CPU has BHI_CTRL"),
        (facts.is_model(ITS, false), "not a fault of this model"),
    ];
    Need::of(facts, Intel, &denied, "the CPU does not say ITS_NO")
}

/// Whether a return that finds the return stack empty may be steered by branches before it.
pub(super) fn has_its(facts: &Facts) -> bool {
    its(facts).0.is_ok()
}

fn retbleed(facts: &Facts) -> Need {
    // Intel's CPUs with the MSR and without these bits predict returns by the return stack alone.
    let alternative = facts.says(RSBA) || facts.says(RRSBA) || facts.has_eibrs();
    let denied = [
        (facts.capabilities != 0 && !alternative, "the CPU says neither RSBA nor RRSBA nor eIBRS"),
        (!alternative && facts.is_model(PLAIN_RETURNS, true), "not a fault of this model"),
    ];
    Need::of(facts, Intel, &denied, "returns may be predicted as indirect branches are")
}

/// Whether a guest may steer where returns are predicted to go.
pub(super) fn has_retbleed(facts: &Facts) -> bool {
    retbleed(facts).0.is_ok()
}

/// STIBP, by which Zen1 and Zen2 are told apart, as Xen does.
fn is_zen2(facts: &Facts) -> bool {
    facts.extended_8.ebx & 1 << 15 != 0
}

fn div_leak(facts: &Facts) -> Need {
    let denied = [
        (facts.is_no_family(&[0x17, 0x18]), "not a fault of this family"),
        (facts.maker() == Amd && is_zen2(facts), "a fault of Zen1"),
    ];
    Need::of(facts, Amd, &denied, "a division leaves its result in the divider")
}

/// Whether a guest may see the result of another's division.
pub(super) fn has_div_leak(facts: &Facts) -> bool {
    div_leak(facts).0.is_ok()
}

fn zenbleed(facts: &Facts) -> Need {
    let denied = [
        (facts.is_no_family(&[0x17]), "not a fault of this family"),
        (facts.maker() == Amd && !is_zen2(facts), "a fault of Zen2"),
    ];
    Need::of(facts, Amd, &denied, "vector registers may show what others had there")
}

/// Whether a guest may see what others had in vector registers.
pub(super) fn has_zenbleed(facts: &Facts) -> bool {
    zenbleed(facts).0.is_ok()
}

fn fpu_pointers(facts: &Facts) -> Need {
    let denied = [(facts.extended_8.ebx & 1 << 2 != 0, "the CPU says RSTR_FP_ERR_PTRS")];
    Need::of(facts, Amd, &denied, "FXRSTOR leaves the last guest's pointers of floating-point errors")
}

/// Whether a guest may see pointers of another's floating-point error.
pub(super) fn keeps_fpu_pointers(facts: &Facts) -> bool {
    fpu_pointers(facts).0.is_ok()
}

/// Whether a counter-measure is done, is not wanted, or else is missing.
fn state(is_on: bool, choice: Option<bool>, missing: State) -> State {
    match choice {
        _ if is_on => State::On,
        Some(false) => State::Off,
        _ => missing,
    }
}

/// All faults of a CPU. `threads`: CPUs of a core; `whole_cores`: a core runs one domain at a time.
pub fn table(
    facts: &Facts,
    choices: &Choices,
    measures: &Measures,
    threads: u32,
    whole_cores: bool,
) -> Vec<Row> {
    let facts = &facts.as_chosen(choices);
    if facts.is_emulated() {
        let why = "QEMU's emulator executes one instruction after the other";
        return vec![Row { fault: "all", state: State::NotNeeded, measure: "", why }];
    }
    let missing = if choices.is_off { State::Off } else { State::Missing };
    let mut rows = Vec::new();
    let mut add = |fault, Need(need): Need, state, measure| {
        rows.push(match need {
            Ok(why) => Row { fault, state, measure, why },
            Err(why) => Row { fault, state: State::NotNeeded, measure: "", why },
        });
    };
    data(facts, choices, measures, &mut add, missing);
    branches(facts, choices, measures, &mut add, missing);
    rest(facts, choices, measures, &mut add, missing);
    // A hypervisor below need not show which CPUs are threads of one core.
    let is_virtual = facts.is_virtual();
    let together = match whole_cores {
        true if is_virtual => State::Missing,
        true => State::On,
        false => State::Off,
    };
    let alone = [(threads == 1 && !is_virtual, "a core is one CPU")];
    let need = Need::of(facts, Maker::Unknown, &alone, "the threads of a core share its caches and buffers");
    add("threads of a core", need, together, "sched-gran=core: one domain at a time");
    rows
}

type Add<'a> = dyn FnMut(&'static str, Need, State, &'static str) + 'a;

/// Faults by which a guest reads what is not its own: memory, the first-level cache, buffers and registers.
fn data(facts: &Facts, choices: &Choices, measures: &Measures, add: &mut Add<'_>, missing: State) {
    let says = |bit: u64| facts.says(bit);
    let of = |maker, denied: &[(bool, &'static str)], affected| Need::of(facts, maker, denied, affected);
    let need = rdcl(facts);
    let own = state(measures.own_tables, choices.xpti, missing);
    add("Meltdown", need, own, "page tables of the hypervisor's own");
    let refused = state(measures.refuse_absent_memory, choices.l1tf, missing);
    add("L1TF", need, refused, "entries that are not present name no memory");
    for fault in Buffers::ALL {
        let is_on = measures.verw && fault.has_verw(facts);
        let measure =
            if fault.has_verw(facts) { "VERW ahead of guests" } else { "VERW, with newer microcode" };
        add(fault.name(), fault.need(facts), state(is_on, choices.verw, missing), measure);
    }
    // Only microcode can do the two below, and does unless firmware has turned that off.
    let by_microcode =
        |has: bool, off: u64| if has && facts.microcode & off == 0 { State::On } else { missing };
    let gds = [
        (says(GDS_NO), "the CPU says GDS_NO"),
        (!says(GDS_CTRL) && facts.is_model(GDS, false), "not a fault of this model"),
    ];
    let need = of(Intel, &gds, "the CPU does not say GDS_NO");
    add("GDS", need, by_microcode(says(GDS_CTRL), 1 << 4), "microcode");
    let srbds = [(facts.is_model(SRBDS, false), "not a fault of this model")];
    let need = of(Intel, &srbds, "random numbers pass through a buffer that all cores share");
    add("SRBDS", need, by_microcode(facts.seven.edx & SRBDS_CTRL != 0, 1), "microcode");
}

/// Faults by which a guest makes the hypervisor, or another guest, execute speculatively what the guest likes.
fn branches(facts: &Facts, choices: &Choices, measures: &Measures, add: &mut Add<'_>, missing: State) {
    let of = |maker, denied: &[(bool, &'static str)], affected| Need::of(facts, maker, denied, affected);
    let always = of(Maker::Unknown, &[], "the CPU speculates");
    let hardened = state(measures.harden_branches, choices.branch_harden, missing);
    add("Spectre v1", always, hardened, "indices and addresses clamped, LFENCE behind checks of frames");
    let clears = state(measures.clear_registers, choices.clear_registers, missing);
    add("values from guests", always, clears, "registers cleared on entry");
    add("Spectre v2", always, State::On, "retpolines");
    let between = state(measures.ibpb || measures.ibpb_entry, choices.ibpb, missing);
    add("Spectre v2 between guests", always, between, "IBPB at a switch of domains");
    let eibrs = facts.has_eibrs();
    let is_on = measures.controls(BHI_DIS_S) || measures.clear_history;
    let history = state(is_on, choices.bhb_entry, missing);
    let measure = if facts.has_bhi_dis_s() { "BHI_DIS_S" } else { "a loop of branches on entry" };
    add("BHI", bhi(facts), history, measure);
    let is_on = measures.controls(IBRS) || measures.ibrs_entry;
    let apart = state(is_on, choices.ibrs, missing);
    add("Retbleed", retbleed(facts), apart, if eibrs { "eIBRS" } else { "IBRS on entry" });
    let predictions = state(measures.ibpb_entry, choices.ibpb_entry, missing);
    add("branch type confusion", btc(facts), predictions, "IBPB on entry");
    let is_on = measures.ibpb_entry && facts.has_ibpb_brtype();
    add("SRSO", srso(facts), state(is_on, choices.ibpb_entry, missing), "IBPB on entry");
    let kept = state(measures.keep_return_stack, choices.its, missing);
    add("ITS", its(facts), kept, "returns never find the return stack empty");
    let overwritten = state(measures.overwrite_return_stack, choices.rsb, missing);
    add("return stack", return_stack(facts), overwritten, "overwritten on entry");
}

/// Faults of other kinds.
fn rest(facts: &Facts, choices: &Choices, measures: &Measures, add: &mut Add<'_>, missing: State) {
    let of = |maker, denied: &[(bool, &'static str)], affected| Need::of(facts, maker, denied, affected);
    let ssb_no = facts.capabilities & SSB_NO != 0 || facts.extended_8.ebx & 1 << 26 != 0;
    let need = of(Maker::Unknown, &[(ssb_no, "the CPU says SSB_NO")], "loads overtake stores");
    // Both by choice alone, as in Xen: they slow everything down, and the hypervisor runs no code of guests.
    let by_choice = |has: bool, bits, choice: Option<bool>| {
        let missing = if has { missing } else { State::Missing };
        state(measures.controls(bits), choice.or(has.then_some(false)), missing)
    };
    add("SSB", need, by_choice(facts.has_ssbd(), SSBD, choices.ssbd), "SSBD");
    let has_psfd = facts.has_psfd();
    let is_known = facts.maker() != Maker::Unknown;
    let psf = [(ssb_no, "the CPU says SSB_NO"), (is_known && !has_psfd, "the CPU has no such predictor")];
    let off = by_choice(has_psfd, PSFD | SSBD, choices.psfd);
    add("PSF", of(Maker::Unknown, &psf, "stores are predicted to be loaded"), off, "PSFD");
    let overwritten = state(measures.overwrite_fpu_pointers, None, missing);
    add("FXSAVE leak", fpu_pointers(facts), overwritten, "pointers overwritten");
    let eager = [(true, "floating-point registers are switched with the vCPU")];
    add("lazy FPU", of(Intel, &eager, ""), missing, "");
    let scrubbed = state(measures.scrub_divider, choices.div_scrub, missing);
    add("DIV leak", div_leak(facts), scrubbed, "a division ahead of guests");
    let set = state(measures.set_in_de_cfg & DE_CFG_VECTORS != 0, None, missing);
    add("Zenbleed", zenbleed(facts), set, "DE_CFG bit 9");
}
