//! What the hypervisor looks at, in its order: whose a frame is, what the frame holds, and barriers against what a CPU guesses of
//! the one before the other.

use alloc::vec::Vec;
use core::cell::RefCell;

use ring_abi::types::Mfn;

/// A look, or a barrier between looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// At the frame table's entry of a frame that a guest may have named.
    Entry(Mfn),
    /// At what a frame holds.
    Contents(Mfn),
    /// [`crate::nospec::barrier`].
    Barrier,
}

std::thread_local! {
    static LOOKS: RefCell<Option<Vec<Look>>> = const { RefCell::new(None) };
}

pub(crate) fn note(look: Look) {
    LOOKS.with_borrow_mut(|looks| {
        if let Some(looks) = looks {
            looks.push(look);
        }
    });
}

/// What `act` makes the hypervisor look at.
#[cfg(test)]
pub(crate) fn during(act: impl FnOnce()) -> Vec<Look> {
    LOOKS.set(Some(Vec::new()));
    act();
    LOOKS.take().unwrap_or_default()
}

/// Whether what a frame holds is looked at, and for the first time behind a barrier that comes behind a look at whose the frame is.
#[cfg(test)]
pub(crate) fn is_guarded(looks: &[Look], mfn: Mfn) -> bool {
    let place = |look| looks.iter().position(|seen| *seen == look);
    let (Some(entry), Some(contents)) = (place(Look::Entry(mfn)), place(Look::Contents(mfn))) else {
        return false;
    };
    entry < contents && looks[entry..contents].contains(&Look::Barrier)
}
