//! Dirty tracking of a domain's memory, by the name that the ABI has for it.

use ring_abi::domctl::*;
use ring_abi::types::GuestVa;

use super::Operation;
use crate::hypercall::{Answer, HypercallError};
use crate::mem::dirty::rounds::{Bitmap, Op};
use crate::platform::Platform;

impl<P: Platform> Operation<'_, '_, P> {
    /// `shadow_op`: of Xen's operations those of log-dirty mode. There is no shadow memory.
    ///
    /// # Errors
    /// `Invalid`: the domain is the caller's own, another operation or mode, or tracking is not as the operation wants it.
    /// `Busy`, `Fault`, `Again`: as `Hypervisor::track` says.
    pub(super) fn shadow_op(&self, mut op: XenDomctlShadowOp) -> Answer<XenDomctlShadowOp> {
        self.not_own()?;
        let what = match op.op {
            XEN_DOMCTL_SHADOW_OP_ENABLE_LOGDIRTY => Op::Enable,
            XEN_DOMCTL_SHADOW_OP_ENABLE if op.mode == XEN_DOMCTL_SHADOW_ENABLE_LOG_DIRTY => Op::Enable,
            XEN_DOMCTL_SHADOW_OP_CLEAN => Op::Clean,
            XEN_DOMCTL_SHADOW_OP_PEEK => Op::Peek,
            XEN_DOMCTL_SHADOW_OP_OFF => Op::Off,
            _ => return Err(HypercallError::Invalid),
        };
        let bitmap = Bitmap { at: GuestVa::new(op.dirty_bitmap), pages: op.pages };
        let bitmap = (op.dirty_bitmap != 0).then_some(bitmap);
        let found = self.cur.hv.track(self.cur, self.domain, what, bitmap)?;
        op.stats = XenDomctlShadowOpStats { fault_count: found.faults, dirty_count: found.dirty };
        Ok(op)
    }
}
