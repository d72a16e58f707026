//! Dirty tracking that ends with whoever asked for it.

use pvrt::hypercall::{Result, domctl};
use ring_abi::domctl::{
    XEN_DOMCTL_SHADOW_OP_CLEAN, XEN_DOMCTL_SHADOW_OP_ENABLE_LOGDIRTY, XEN_DOMCTL_SHADOW_OP_OFF,
    XenDomctlShadowOpStats,
};
use ring_abi::errno::Errno;
use ring_abi::types::DomId;

/// A domain that is tracked. Dropped, as by `^C`, it is tracked no more.
pub struct Tracked(Option<DomId>);

impl Tracked {
    /// From now on the domain is tracked.
    ///
    /// # Errors
    /// The hypervisor's. `EINVAL`: the domain is tracked already.
    pub fn begin(dom: DomId) -> Result<Self> {
        domctl::shadow_op(dom, XEN_DOMCTL_SHADOW_OP_ENABLE_LOGDIRTY, None).map(|_| Self(Some(dom)))
    }

    /// Which frames were written since the last call: a bit for each of the guest's frame numbers.
    ///
    /// # Errors
    /// The hypervisor's.
    pub fn clean(&self, bitmap: &mut [u64]) -> Result<XenDomctlShadowOpStats> {
        let dom = self.0.ok_or(Errno::ESRCH)?;
        domctl::shadow_op(dom, XEN_DOMCTL_SHADOW_OP_CLEAN, Some(bitmap))
    }

    /// The domain is tracked no more.
    ///
    /// # Errors
    /// The hypervisor's.
    pub fn end(mut self) -> Result<()> {
        let ended = self.0.take().map(|dom| domctl::shadow_op(dom, XEN_DOMCTL_SHADOW_OP_OFF, None));
        ended.map_or(Ok(()), |ended| ended.map(drop))
    }
}

impl Drop for Tracked {
    fn drop(&mut self) {
        let Some(dom) = self.0.take() else { return };
        // A domain that is gone is tracked no more.
        if let Err(errno) = domctl::shadow_op(dom, XEN_DOMCTL_SHADOW_OP_OFF, None)
            && errno != Errno::ESRCH
        {
            log::error!("d{dom}: ending dirty tracking: {errno}");
        }
    }
}

#[cfg(test)]
mod tests {
    use pvrt::executor::{block_on_test, time};
    use pvrt::host::Machine;

    use super::*;

    #[test]
    fn a_task_that_is_interrupted_leaves_nobody_tracked() {
        let machine = Machine::install();
        block_on_test(async {
            machine.has(9);
            let dom = DomId::new(9);
            let tracked = Tracked::begin(dom).unwrap();
            assert!(machine.is_tracked(9));
            tracked.end().unwrap();
            assert!(!machine.is_tracked(9));
            let task = async {
                let tracked = Tracked::begin(dom).unwrap();
                loop {
                    time::sleep(1_000_000_000).await;
                    tracked.clean(&mut [0]).unwrap();
                }
            };
            assert!(time::timeout(3_000_000_000, task).await.is_err());
            assert!(!machine.is_tracked(9));
        });
    }
}
