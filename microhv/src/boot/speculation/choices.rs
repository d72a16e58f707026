//! What the command line says of counter-measures, in Xen's words.

use crate::boot::command_line::boolean;

/// Which counter-measures are not wanted. Default: all that this CPU needs are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Choices {
    /// `spec-ctrl=no`: nothing that can be left out.
    pub is_off: bool,
    /// `xpti=no`: no page tables of the hypervisor's own.
    pub xpti_off: bool,
    /// `pv-l1tf=no`: page-table entries that are not present may be whatever a guest writes.
    pub l1tf_off: bool,
}

const UNKNOWN: &str = "no such value";
const ABSENT: &str = "microhv has no such counter-measure";
const NOT_APART: &str = "dom0 and other domains cannot differ";

impl Choices {
    /// `spec-ctrl=LIST`: `item` is one of the list.
    ///
    /// # Errors
    /// Why the item is ignored.
    pub fn spec_ctrl(&mut self, item: &str) -> Result<(), &'static str> {
        /// What Xen knows, and microhv has not.
        const OF_XEN: [&str; 24] = [
            "bhb-entry", "bhb-seq", "bhi-dis-s", "branch-harden", "bti-thunk", "div-scrub", "eager-fpu", "gds-mit",
            "hvm", "ibpb", "ibpb-entry", "ibrs", "l1d-flush", "lock-harden", "md-clear", "msr-sc", "psfd", "pv",
            "rsb", "srb-lock", "ssbd", "stibp", "unpriv-mmio", "verw",
        ];
        let (name, _) = item.split_once('=').unwrap_or((item.strip_prefix("no-").unwrap_or(item), ""));
        match item {
            "xen=no" | "xen=off" | "xen=0" | "xen=false" | "xen=disable" | "no-xen" => {}
            _ if !item.is_empty() && boolean(item) == Some(false) => {
                (self.xpti_off, self.l1tf_off) = (true, true);
            }
            _ => return Err(if OF_XEN.contains(&name) { ABSENT } else { UNKNOWN }),
        }
        self.is_off = true;
        Ok(())
    }

    /// `xpti=VALUE`.
    ///
    /// # Errors
    /// Why the value is ignored.
    pub fn xpti(&mut self, value: &str) -> Result<(), &'static str> {
        self.xpti_off = value != "default" && is_off(value)?;
        Ok(())
    }

    /// `pv-l1tf=VALUE`.
    ///
    /// # Errors
    /// Why the value is ignored.
    pub fn pv_l1tf(&mut self, value: &str) -> Result<(), &'static str> {
        self.l1tf_off = is_off(value)?;
        Ok(())
    }
}

/// Whether a counter-measure that is absent is turned off.
fn is_off(value: &str) -> Result<bool, &'static str> {
    match boolean(value) {
        Some(false) => Ok(true),
        Some(true) => Err(ABSENT),
        None if ["dom0", "domu"].contains(&value.split('=').next().unwrap_or_default()) => Err(NOT_APART),
        None => Err(UNKNOWN),
    }
}
