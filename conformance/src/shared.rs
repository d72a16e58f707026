//! Memory of a case that another domain uses.

use pvrt::grant::Granted as Lent;
use pvrt::mem::Pages;
use ring_abi::shared::{SharedBytes, SharedMemory};
use ring_abi::types::DomId;

use crate::{Problem, Verdict};

/// Pages with a grant for each. Dropped, they are freed once the other domain no longer uses them.
pub struct Granted(Lent);

impl Granted {
    /// `count` zeroed pages that `dom` may read and, unless `readonly`, write.
    ///
    /// # Errors
    /// [`Problem::Error`]: no memory or grant entries are left.
    pub fn new(dom: DomId, count: usize, readonly: bool) -> Verdict<Self> {
        let pages = Pages::zeroed(count).map_err(|_| Problem::Error("out of memory".into()))?;
        Lent::whole(pages, dom, readonly)
            .map(Self)
            .map_err(|errno| Problem::Error(alloc::format!("granting a page: {errno}")))
    }

    /// The bytes of all pages.
    pub fn bytes(&self) -> SharedBytes<'_> {
        self.0.shared()
    }

    /// Number of pages.
    pub fn count(&self) -> usize {
        self.0.refs().len()
    }

    /// The grant reference of page `page`.
    pub fn gref(&self, page: usize) -> u32 {
        self.0.gref(page).raw()
    }

    /// Whether the other domain has any of the pages mapped.
    pub fn in_use(&self) -> bool {
        self.0.in_use()
    }
}
