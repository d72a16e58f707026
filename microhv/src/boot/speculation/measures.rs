//! What is done on this machine: by what the CPU needs and can, and by the command line.

use super::faults::{self, Buffers};
use super::{Choices, Facts, Maker};

/// Counter-measures that are chosen at boot. None costs anything where it is not chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Measures {
    /// General registers are cleared once a guest's are saved: no load that the hypervisor executes ahead can take its address
    /// from one that still holds a guest's value.
    pub clear_registers: bool,
    /// VERW is the last instruction ahead of the return to a guest: it clears buffers whose entries guests could sample.
    pub verw: bool,
    /// IBPB where a CPU goes from one domain to another.
    pub ibpb: bool,
    /// IBPB on each entry from a guest.
    pub ibpb_entry: bool,
    /// The CPU's stack of return addresses is overwritten on each entry.
    pub overwrite_return_stack: bool,
    /// No return finds that stack empty: it is filled again behind calls that go deep, and behind indirect calls.
    pub keep_return_stack: bool,
    /// The CPU's history of branches is overwritten on each entry.
    pub clear_history: bool,
    /// IBRS is set on each entry, and taken back on each return to a guest.
    pub ibrs_entry: bool,
    /// A division is the last before each return to a guest.
    pub scrub_divider: bool,
    /// Behind checks of frames that guests name, nothing is executed ahead of what the checks say.
    pub harden_branches: bool,
    /// The bits that `MSR_DE_CFG` of AMD gets.
    pub set_in_de_cfg: u64,
    /// Pointers of floating-point errors are overwritten where another vCPU's registers are loaded.
    pub overwrite_fpu_pointers: bool,
    /// Page-table entries that are not present name no memory.
    pub refuse_absent_memory: bool,
    /// Guests run on page tables that map next to nothing of the hypervisor's.
    pub own_tables: bool,
    /// Ring 0 executes no page of a guest.
    pub smep: bool,
    /// Ring 0 reads and writes a page of a guest only between STAC and CLAC.
    pub smap: bool,
    /// The value of `MSR_SPEC_CTRL`, if there is one.
    pub control: Option<u64>,
}

/// Bits of `MSR_SPEC_CTRL`.
pub(super) const IBRS: u64 = 1 << 0;
pub(super) const SSBD: u64 = 1 << 2;
pub(super) const PSFD: u64 = 1 << 7;
pub(super) const BHI_DIS_S: u64 = 1 << 10;

/// Bits of `MSR_DE_CFG`: nothing overtakes an LFENCE; registers of vectors show nobody what others had there.
pub(super) const DE_CFG_LFENCE: u64 = 1 << 1;
pub(super) const DE_CFG_VECTORS: u64 = 1 << 9;

impl Measures {
    /// What is done on the CPU of `facts`.
    pub fn of(facts: &Facts, choices: &Choices) -> Self {
        let facts = &facts.as_chosen(choices);
        let speculates = !facts.is_emulated();
        let wanted =
            |choice: Option<bool>, needed: bool| choice.unwrap_or(needed && speculates && !choices.is_off);
        let bits = [
            (IBRS, wanted(choices.ibrs, true) && facts.has_eibrs()),
            (BHI_DIS_S, wanted(choices.bhi_dis_s, faults::has_bhi(facts)) && facts.has_bhi_dis_s()),
            (SSBD, wanted(choices.ssbd, false) && facts.has_ssbd()),
            (PSFD, wanted(choices.psfd, false) && facts.has_psfd()),
        ];
        let control = bits.iter().filter(|(_, is_wanted)| *is_wanted).fold(0, |all, (bit, _)| all | bit);
        let ibpb_entry = wanted(choices.ibpb_entry, faults::needs_ibpb_entry(facts)) && facts.has_ibpb();
        let return_stack = faults::has_return_stack(facts) || ibpb_entry && !facts.has_ibpb_ret();
        let keep_return_stack = wanted(choices.its, faults::has_its(facts));
        let overwrite_return_stack = wanted(choices.rsb, return_stack) || keep_return_stack;
        let clear_history = wanted(choices.bhb_entry, faults::has_bhi(facts) && control & BHI_DIS_S == 0);
        let ibrs_entry =
            wanted(choices.ibrs, faults::has_retbleed(facts)) && facts.has_ibrs() && !facts.has_eibrs();
        let guards = ibpb_entry || overwrite_return_stack || clear_history || ibrs_entry;
        let clears = |fault: Buffers| fault.is_there(facts) && fault.has_verw(facts);
        let de_cfg = [
            (DE_CFG_LFENCE, wanted(None, facts.lets_lfence_pass())),
            (DE_CFG_VECTORS, wanted(None, faults::has_zenbleed(facts))),
        ];
        // A hypervisor below keeps the register to itself.
        let de_cfg = de_cfg.iter().filter(|(_, is_wanted)| *is_wanted && facts.maker() == Maker::Amd);
        let set_in_de_cfg = de_cfg.fold(0, |all, (bit, _)| all | bit);
        Self {
            // What guards the entry comes with that.
            clear_registers: wanted(choices.clear_registers, true) || guards,
            // By name everywhere: where VERW clears nothing, it is an instruction like others.
            verw: wanted(choices.verw, Buffers::ALL.into_iter().any(clears)),
            // On the way from one domain to another there is an entry.
            ibpb: wanted(choices.ibpb, true) && facts.has_ibpb() && !ibpb_entry,
            ibpb_entry,
            overwrite_return_stack,
            keep_return_stack,
            clear_history,
            ibrs_entry,
            scrub_divider: wanted(choices.div_scrub, faults::has_div_leak(facts)),
            harden_branches: wanted(choices.branch_harden, true),
            set_in_de_cfg,
            overwrite_fpu_pointers: wanted(None, faults::keeps_fpu_pointers(facts)),
            refuse_absent_memory: wanted(choices.l1tf, faults::has_l1tf(facts)),
            own_tables: choices.xpti.unwrap_or(faults::has_meltdown(facts) && speculates),
            smep: facts.has_smep(),
            smap: facts.has_smap(),
            control: facts.has_control().then_some(control),
        }
    }

    /// Whether anything is done on entry before registers are cleared.
    pub fn guards_entry(&self) -> bool {
        self.ibpb_entry || self.overwrite_return_stack || self.clear_history || self.ibrs_entry
    }

    /// Whether `MSR_SPEC_CTRL` has `bits`.
    pub(super) fn controls(&self, bits: u64) -> bool {
        self.control.is_some_and(|value| value & bits != 0)
    }
}
