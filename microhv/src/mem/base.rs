//! The tables that a vCPU runs on: one level 4 table for the guest's kernel, one for its user mode.

use ring_abi::types::Mfn;

use super::MemError;
use crate::Hypervisor;
use crate::domain::{Domain, Vcpu};
use crate::platform::Platform;

impl<P: Platform> Hypervisor<P> {
    /// Loads another level 4 table as the kernel base of `vcpu` of `dom`, which runs here. The whole TLB of this CPU is
    /// flushed, and the pages of the LDT are looked up anew.
    ///
    /// # Errors
    /// `Restart`: more is to be finished than there is time for. `Invalid`: the frame is no level 4 table of the
    /// domain's.
    pub fn new_base(&self, dom: &Domain, vcpu: &Vcpu, mfn: Mfn) -> Result<(), MemError> {
        let mut mm = self.lock_tables(dom);
        mm.begin()?;
        let changes = vcpu.cr3_kernel.get() != Some(mfn);
        if changes {
            mm.get_table(mfn, 4)?;
        }
        mm.drop_ldt(vcpu);
        self.platform.load_cr3_flushing(mfn);
        if changes && let Some(old) = vcpu.cr3_kernel.replace(Some(mfn)) {
            mm.put_table(old);
        }
        Ok(())
    }

    /// Sets the table of user mode for `vcpu` of `dom`, which runs here; frame 0: none.
    ///
    /// # Errors
    /// `Restart`: more is to be finished than there is time for. `Invalid`: the frame is no level 4 table of the
    /// domain's.
    pub fn new_user_base(&self, dom: &Domain, vcpu: &Vcpu, mfn: Mfn) -> Result<(), MemError> {
        let mut mm = self.lock_tables(dom);
        mm.begin()?;
        let new = (mfn.raw() != 0).then_some(mfn);
        if vcpu.cr3_user.get() == new {
            return Ok(());
        }
        if new.is_some() {
            mm.get_table(mfn, 4)?;
        }
        if let Some(old) = vcpu.cr3_user.replace(new) {
            mm.put_table(old);
        }
        Ok(())
    }

    /// Gives a vCPU that does not run its bases, for the domain builder and `setvcpucontext`. The vCPU's former bases
    /// are given back.
    ///
    /// # Errors
    /// `Restart`: the caller repeats the call. `Invalid`, or another refusal: a frame is no level 4 table of the domain's, and nothing has
    /// changed.
    pub fn install_bases(
        &self,
        dom: &Domain,
        vcpu: &Vcpu,
        kernel: Mfn,
        user: Option<Mfn>,
    ) -> Result<(), MemError> {
        let mut mm = self.lock_tables(dom);
        mm.begin_alive()?;
        mm.get_table(kernel, 4)?;
        let taken = user.map_or(Ok(()), |user| mm.get_table(user, 4));
        taken.inspect_err(|_| mm.put_table(kernel))?;
        let old = [vcpu.cr3_kernel.replace(Some(kernel)), vcpu.cr3_user.replace(user)];
        for old in old.into_iter().flatten() {
            mm.put_table(old);
        }
        Ok(())
    }
}
