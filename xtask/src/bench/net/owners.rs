//! Whose instructions they are: the guests', dom0's or the hypervisor's.

use std::ops::RangeInclusive;

use anyhow::{Context, Result};

use super::table::Executed;
use crate::plugin::{self, Block};
use crate::{image_check, images};

/// What tells dom0's code from the guests'.
pub(super) enum Owners {
    /// microhv's own dom0: its addresses are no Linux kernel's.
    Addresses {
        /// Where dom0's kernel may be: below the addresses at which Linux begins.
        dom0: RangeInclusive<u64>,
        /// dom0's function that sends an event.
        notify: Option<u64>,
    },
    /// Two kernels at the same addresses: the guests' machine pages.
    Pages(Vec<RangeInclusive<u64>>),
}

/// Where our kernels are linked to, and the last address below Linux's.
const DOM0: RangeInclusive<u64> = 0xffff_ffff_8000_0000..=0xffff_ffff_80ff_ffff;

impl Owners {
    /// By the addresses of microhv and its dom0, as they are built.
    ///
    /// # Errors
    /// An image cannot be read.
    pub(super) fn of_images() -> Result<Self> {
        let notify = function("dom0", "pvrt::event::Port::notify")?;
        Ok(Self::Addresses { dom0: DOM0, notify })
    }

    /// By lines `net-pages FIRST LAST` on the control domain's console.
    pub(super) fn of_pages(console: &str) -> Self {
        let range = |line: &str| {
            let mut words = line.trim().strip_prefix("net-pages ")?.split_whitespace();
            Some(words.next()?.parse().ok()?..=words.next()?.parse().ok()?)
        };
        Self::Pages(console.lines().filter_map(range).collect())
    }

    fn is_dom0(&self, block: &Block) -> bool {
        match self {
            Self::Addresses { dom0, .. } => dom0.contains(&block.address),
            Self::Pages(guests) => {
                !guests.iter().any(|range| block.page.is_some_and(|page| range.contains(&page)))
            }
        }
    }

    /// Splits what ran in a window. `notify` is the address at which Linux sends an event.
    pub(super) fn split(&self, window: &plugin::Window, notify: Option<u64>) -> Executed {
        let kernels = window.blocks.iter().filter(|block| !is_hypervisor(block));
        let dom0: u64 =
            kernels.filter(|block| self.is_dom0(block)).map(|block| block.runs * block.instructions).sum();
        let runs = |address: Option<u64>| {
            let at = window.blocks.iter().filter(|block| Some(block.address) == address);
            address.map(|_| at.map(|block| block.runs).sum::<u64>())
        };
        let own = match self {
            Self::Addresses { notify, .. } => runs(*notify),
            Self::Pages(_) => Some(0),
        };
        let counts = &window.counts;
        Executed {
            guests: (counts.kernel + counts.user).saturating_sub(dom0),
            hypervisor: counts.hypervisor,
            dom0,
            notifications: runs(notify).zip(own).map(|(linux, own)| linux + own),
            // Neither hypervisor has a function that each copy calls: microhv's is part of the loop over a batch.
            copies: None,
        }
    }
}

/// Whether a block is in the hypervisor's part of the address space.
fn is_hypervisor(block: &Block) -> bool {
    (0xffff_8000_0000_0000..0xffff_8800_0000_0000).contains(&block.address)
}

/// The start of the function of an image whose name ends with `end`.
fn function(image: &str, end: &str) -> Result<Option<u64>> {
    let path = images::find(image)?.linked();
    let bytes = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let names = image_check::names(&object::File::parse(&*bytes)?);
    Ok(names.into_iter().find(|(_, name)| name.ends_with(end)).map(|(start, _)| start))
}

/// The address in a line `net-symbol ADDRESS` behind any prefix: where Linux sends an event.
pub(super) fn symbol(console: &str) -> Option<u64> {
    let mut lines = console.lines().filter_map(|line| line.split_once("net-symbol "));
    u64::from_str_radix(lines.next()?.1.trim(), 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plugin::Counts;

    const NOTIFY: u64 = 0xffff_ffff_8150_0000;

    fn block(address: u64, runs: u64, instructions: u64, page: u64) -> Block {
        Block { address, runs, instructions, page: Some(page) }
    }

    fn window(blocks: Vec<Block>) -> plugin::Window {
        plugin::Window {
            counts: Counts { firmware: 0, hypervisor: 50, kernel: 100, user: 20, ..Counts::default() },
            blocks,
        }
    }

    #[test]
    fn two_kernels_at_one_address_are_told_by_their_pages() {
        let console = "noise\r\nnet-pages 100 199\r\nnet-pages 300 300\r\nnet-pages x 1\r\n(d1) net-symbol ffffffff81500000\r\n";
        let owners = Owners::of_pages(console);
        assert_eq!(symbol(console), Some(NOTIFY));
        let blocks = vec![
            block(NOTIFY, 3, 4, 150),
            block(NOTIFY, 2, 4, 250),
            block(0x1000, 1, 9, 251),
            block(NOTIFY + 64, 1, 40, 300),
            block(0xffff_82d0_8020_0000, 9, 9, 400),
        ];
        let executed = owners.split(&window(blocks), symbol(console));
        assert_eq!((executed.guests, executed.hypervisor, executed.dom0), (120 - 17, 50, 17));
        assert_eq!((executed.notifications, executed.copies), (Some(5), None));
    }

    #[test]
    fn our_dom0_is_told_by_its_addresses() {
        let (send, inside) = (0xffff_ffff_8000_1000, 0xffff_82d0_8020_0000);
        let owners = Owners::Addresses { dom0: DOM0, notify: Some(send) };
        let blocks = vec![
            block(send, 5, 3, 1),
            block(inside, 7, 2, 2),
            block(NOTIFY, 2, 8, 1),
            block(0x1000, 1, 5, 1),
        ];
        let executed = owners.split(&window(blocks.clone()), Some(NOTIFY));
        assert_eq!((executed.guests, executed.dom0), (120 - 15, 15));
        assert_eq!((executed.notifications, executed.copies), (Some(7), None));
        assert_eq!(owners.split(&window(blocks), None).notifications, None, "Linux's part is not known");
    }
}
