//! What the command line says of counter-measures, in Xen's words.

use crate::boot::command_line::{NO_BOOLEAN, boolean};

/// What is wanted. `None`, and the default of all: what this CPU needs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Choices {
    /// `spec-ctrl=no`: nothing that can be left out, but what is asked for by name.
    pub is_off: bool,
    /// `xpti`: guests run on page tables of the hypervisor's own, whatever the CPU needs.
    pub xpti: Option<bool>,
    /// `pv-l1tf`: page-table entries that are not present name no memory.
    pub l1tf: Option<bool>,
    /// `spec-ctrl=clear-regs`: a guest's registers do not stay in the CPU while the hypervisor runs. Xen, which always clears
    /// them, has no word for that.
    pub clear_registers: Option<bool>,
    /// `spec-ctrl=verw`: buffers are cleared ahead of guests.
    pub verw: Option<bool>,
    /// `spec-ctrl=ibpb`: predictions of indirect branches are forgotten between domains.
    pub ibpb: Option<bool>,
    /// `spec-ctrl=ibpb-entry`: the same on each entry from a guest.
    pub ibpb_entry: Option<bool>,
    /// `spec-ctrl=rsb`: the stack of return addresses is overwritten on each entry.
    pub rsb: Option<bool>,
    /// `spec-ctrl=its`: no return finds that stack empty. Xen, which places its returns where the CPU predicts them well, has no
    /// word for that.
    pub its: Option<bool>,
    /// `spec-ctrl=bhb-entry`: the history of branches is overwritten on each entry.
    pub bhb_entry: Option<bool>,
    /// `spec-ctrl=ibrs`: predictions are kept apart by privilege: once and for all (eIBRS), or told on each entry.
    pub ibrs: Option<bool>,
    /// `spec-ctrl=bhi-dis-s`: the history of branches in ring 3 does not count in ring 0.
    pub bhi_dis_s: Option<bool>,
    /// `spec-ctrl=ssbd`: loads do not overtake stores.
    pub ssbd: Option<bool>,
    /// `spec-ctrl=psfd`: stores are not predicted to be loaded.
    pub psfd: Option<bool>,
    /// `spec-ctrl=div-scrub`: the divider holds a result of the hypervisor's own when a guest goes on.
    pub div_scrub: Option<bool>,
    /// `spec-ctrl=branch-harden`: behind checks of frames that guests name, nothing is executed ahead.
    pub branch_harden: Option<bool>,
    /// `smep`: ring 0 executes no page of a guest.
    pub smep: Option<bool>,
    /// `smap`: ring 0 uses a page of a guest only where the hypervisor means to.
    pub smap: Option<bool>,
}

const UNKNOWN: &str = "no such counter-measure";
const ABSENT: &str = "microhv has no such counter-measure";
const XEN_OFF: &str = "only xen=no has a meaning";
const NOT_APART: &str = "dom0 and other domains cannot differ";

impl Choices {
    /// `spec-ctrl=LIST`: `item` is one of the list.
    ///
    /// # Errors
    /// Why the item is ignored.
    pub fn spec_ctrl(&mut self, item: &str) -> Result<(), &'static str> {
        /// What Xen knows, and microhv has not.
        const OF_XEN: [&str; 12] = [
            "bhb-seq",
            "bti-thunk",
            "eager-fpu",
            "gds-mit",
            "hvm",
            "l1d-flush",
            "lock-harden",
            "msr-sc",
            "pv",
            "srb-lock",
            "stibp",
            "unpriv-mmio",
        ];
        let (name, wanted) = match item.split_once('=') {
            Some((name, value)) => (name, boolean(value).filter(|_| !value.is_empty())),
            None => item.strip_prefix("no-").map_or((item, Some(true)), |name| (name, Some(false))),
        };
        let choice = match name {
            "clear-regs" => &mut self.clear_registers,
            "verw" | "md-clear" => &mut self.verw,
            "ibpb" => &mut self.ibpb,
            "ibpb-entry" => &mut self.ibpb_entry,
            "rsb" => &mut self.rsb,
            "its" => &mut self.its,
            "bhb-entry" => &mut self.bhb_entry,
            "ibrs" => &mut self.ibrs,
            "bhi-dis-s" => &mut self.bhi_dis_s,
            "ssbd" => &mut self.ssbd,
            "psfd" => &mut self.psfd,
            "div-scrub" => &mut self.div_scrub,
            "branch-harden" => &mut self.branch_harden,
            "xen" if wanted == Some(false) => {
                self.is_off = true;
                return Ok(());
            }
            "xen" => return Err(XEN_OFF),
            _ if !item.is_empty() && boolean(item) == Some(false) => {
                self.is_off = true;
                self.xpti = self.xpti.or(Some(false));
                self.l1tf = self.l1tf.or(Some(false));
                return Ok(());
            }
            _ => return Err(if OF_XEN.contains(&name) { ABSENT } else { UNKNOWN }),
        };
        *choice = Some(wanted.ok_or(NO_BOOLEAN)?);
        Ok(())
    }

    /// `xpti=VALUE`.
    ///
    /// # Errors
    /// Why the value is ignored.
    pub fn xpti(&mut self, value: &str) -> Result<(), &'static str> {
        self.xpti = match value {
            "default" => None,
            _ => Some(truth(value)?),
        };
        Ok(())
    }

    /// `pv-l1tf=VALUE`.
    ///
    /// # Errors
    /// Why the value is ignored.
    pub fn pv_l1tf(&mut self, value: &str) -> Result<(), &'static str> {
        self.l1tf = Some(truth(value)?);
        Ok(())
    }

    /// `smep=VALUE`, `smap=VALUE`. With `hvm`, Xen has it for guests of another kind than those here alone.
    ///
    /// # Errors
    /// Why the value is ignored.
    pub fn supervisor(&mut self, name: &str, value: &str) -> Result<(), &'static str> {
        let choice = if name == "smep" { &mut self.smep } else { &mut self.smap };
        let wanted = if value == "hvm" { Some(false) } else { boolean(value) };
        *choice = Some(wanted.ok_or(NO_BOOLEAN)?);
        Ok(())
    }
}

/// A truth value, for all domains.
fn truth(value: &str) -> Result<bool, &'static str> {
    let of_some = ["dom0", "domu"].contains(&value.split('=').next().unwrap_or_default());
    boolean(value).ok_or(if of_some { NOT_APART } else { NO_BOOLEAN })
}
