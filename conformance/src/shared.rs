//! Memory of the case's that another domain uses.

use alloc::vec::Vec;
use core::mem::take;

use pvrt::grant::{GrantRefOwned, grant_access, retire};
use pvrt::mem::Pages;
use ring_abi::shared::SharedBytes;
use ring_abi::types::DomId;

use crate::{Problem, Verdict};

/// Pages with a grant for each. Dropped, they are freed once the other domain no longer uses them.
pub struct Granted {
    pages: Option<Pages>,
    grants: Vec<GrantRefOwned>,
}

impl Granted {
    /// `count` zeroed pages that `dom` may read and, unless `readonly`, write.
    ///
    /// # Errors
    /// [`Problem::Error`]: no memory or grant entries are left.
    pub fn new(dom: DomId, count: usize, readonly: bool) -> Verdict<Self> {
        let pages = Pages::zeroed(count).map_err(|_| Problem::Error("out of memory".into()))?;
        let grants = (0..count)
            .map(|page| grant_access(dom, pages.mfn(page), readonly))
            .collect::<Result<_, _>>()
            .map_err(|errno| Problem::Error(alloc::format!("granting a page: {errno}")))?;
        Ok(Self { pages: Some(pages), grants })
    }

    /// The bytes of all pages.
    pub fn bytes(&self) -> SharedBytes<'_> {
        self.pages.as_ref().expect("there until the drop").bytes()
    }

    /// Number of pages.
    pub fn count(&self) -> usize {
        self.grants.len()
    }

    /// The grant reference of page `page`.
    pub fn gref(&self, page: usize) -> u32 {
        self.grants[page].number().raw()
    }

    /// Whether the other domain has any of the pages mapped.
    pub fn in_use(&self) -> bool {
        self.grants.iter().any(GrantRefOwned::in_use)
    }
}

impl Drop for Granted {
    fn drop(&mut self) {
        if let Some(pages) = self.pages.take() {
            retire(pages, take(&mut self.grants));
        }
    }
}
