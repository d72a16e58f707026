//! Control of domains, by the toolstack: interface version 0x15.

mod dirty;
mod info;
mod life;
mod policy;
mod settings;
mod vcpus;
mod xstate;

use alloc::sync::Arc;

use ring_abi::domctl::*;
use ring_abi::payload::Payload;
use ring_abi::types::{DomId, GuestVa};

pub(super) use info::{domain_info, write_bitmap};
pub(super) use policy::write_leaves;
pub(super) use vcpus::read_context;

use super::{Answer, Args, Current, HypercallError, HypercallResult, Outcome};
use crate::domain::Domain;
use crate::platform::Platform;
use crate::return_stack;

/// `domctl(op)`. Only a privileged domain may.
///
/// # Errors
/// `NotPermitted`; `Fault`; `Access`: another interface version; `NoSuchDomain`; as each operation says; `NoSys`: no
/// such operation. `Again`: a `destroydomain` that [`XenDomctl::wants_return`] was interrupted.
pub fn domctl<P: Platform>(cur: &mut Current<'_, P>, args: &Args) -> HypercallResult {
    let _filled = return_stack::fill_at_end();
    HypercallError::NotPermitted.when(!cur.domain.privileged)?;
    let arg = GuestVa::new(args[0]);
    let mut op: XenDomctl = cur.copy_in(arg)?;
    HypercallError::Access.when(op.interface_version != XEN_DOMCTL_INTERFACE_VERSION)?;
    let result = if op.cmd == XEN_DOMCTL_CREATEDOMAIN {
        life::create(cur, &mut op).map(|()| true)
    } else {
        let domain = cur.hv.domains.get(DomId::new(op.domain)).ok_or(HypercallError::NoSuchDomain)?;
        Operation { cur, domain: &domain }.execute(&mut op)
    };
    let result = match result {
        Ok(false) => Ok(Outcome::OK),
        Ok(true) => cur.copy_out(arg, &op).map(|()| Outcome::OK).map_err(HypercallError::from),
        // The caller asked to be returned to, so that it can do other work, and repeats the call.
        Err(HypercallError::Again) if op.cmd == XEN_DOMCTL_DESTROYDOMAIN && op.wants_return() => {
            Ok(Outcome::Done(HypercallError::Again.errno() as u64))
        }
        // The structure says which leaf is at fault.
        Err(error) if op.cmd == XEN_DOMCTL_SET_CPU_POLICY => {
            cur.copy_out(arg, &op)?;
            Err(error)
        }
        Err(error) => Err(error),
    };
    cur.hv.reap_dead();
    result
}

/// An operation that gives an error or nothing. Both kinds say whether the caller's structure is to be written back.
fn told<T: Payload>(op: &XenDomctl, work: impl FnOnce(T) -> Answer) -> Answer<bool> {
    work(op.payload()).map(|()| false)
}

/// An operation that gives an answer, in the place of its arguments.
fn asked<T: Payload, A: Payload>(op: &mut XenDomctl, work: impl FnOnce(T) -> Answer<A>) -> Answer<bool> {
    op.set_payload(&work(op.payload())?);
    Ok(true)
}

/// What the handlers of operations are called on.
struct Operation<'a, 'b, P: Platform> {
    cur: &'a Current<'b, P>,
    /// The domain that the operation is about.
    domain: &'a Arc<Domain>,
}

impl<P: Platform> Operation<'_, '_, P> {
    /// # Errors
    /// `Invalid`: the domain is the caller's own.
    fn not_own(&self) -> Answer {
        HypercallError::Invalid.when(Arc::ptr_eq(self.cur.domain, self.domain))
    }

    fn execute(&self, op: &mut XenDomctl) -> Answer<bool> {
        match op.cmd {
            XEN_DOMCTL_DESTROYDOMAIN => told(op, |()| self.destroy()),
            XEN_DOMCTL_PAUSEDOMAIN => told(op, |()| self.pause()),
            XEN_DOMCTL_UNPAUSEDOMAIN => told(op, |()| self.unpause()),
            XEN_DOMCTL_RESUMEDOMAIN => told(op, |()| self.resume()),

            XEN_DOMCTL_GETDOMAININFO => asked(op, |()| Ok(domain_info(self.cur.hv, self.domain))),
            XEN_DOMCTL_GETPAGEFRAMEINFO3 => told(op, |wanted| self.page_frame_info(&wanted)),

            XEN_DOMCTL_MAX_MEM => told(op, |max| self.max_mem(max)),
            XEN_DOMCTL_MAX_VCPUS => told(op, |max| self.max_vcpus(max)),
            XEN_DOMCTL_SETDOMAINHANDLE => told(op, |handle| self.handle(handle)),
            XEN_DOMCTL_SETNODEAFFINITY => told(op, |nodes| self.set_node_affinity(&nodes)),
            XEN_DOMCTL_GETNODEAFFINITY => told(op, |nodes| self.get_node_affinity(&nodes)),
            XEN_DOMCTL_SCHEDULER_OP => asked(op, |share| self.scheduler(share)),
            XEN_DOMCTL_IRQ_PERMISSION => told(op, |irq| self.irq_permission(irq)),
            XEN_DOMCTL_IOMEM_PERMISSION => told(op, |frames| self.iomem_permission(frames)),
            XEN_DOMCTL_IOPORT_PERMISSION => told(op, |ports| self.ioport_permission(ports)),
            XEN_DOMCTL_HYPERCALL_INIT => told(op, |page| self.hypercall_init(page)),
            XEN_DOMCTL_SETTIMEOFFSET => told(op, |offset| self.time_offset(offset)),
            XEN_DOMCTL_SET_ADDRESS_SIZE => told(op, settings::set_address_size),
            XEN_DOMCTL_GET_ADDRESS_SIZE => asked(op, |()| Ok(settings::ADDRESS_SIZE)),
            XEN_DOMCTL_GET_CPU_POLICY => asked(op, |policy| self.get_cpu_policy(policy)),
            XEN_DOMCTL_SET_CPU_POLICY => {
                let mut policy = op.payload();
                let result = self.set_cpu_policy(&mut policy);
                op.set_payload(&policy);
                result.map(|()| true)
            }
            XEN_DOMCTL_SHADOW_OP => asked(op, |wanted| self.shadow_op(wanted)),
            XEN_DOMCTL_SETTSCINFO => told(op, |tsc| self.set_tsc(tsc)),
            XEN_DOMCTL_GETTSCINFO => asked(op, |()| Ok(self.get_tsc())),

            XEN_DOMCTL_SETVCPUCONTEXT => told(op, |wanted| self.set_context(&wanted)),
            XEN_DOMCTL_GETVCPUCONTEXT => told(op, |wanted| self.get_context(&wanted)),
            XEN_DOMCTL_GETVCPUINFO => asked(op, |wanted| self.info(wanted)),
            XEN_DOMCTL_SETVCPUAFFINITY => told(op, |wanted| self.set_affinity(&wanted)),
            XEN_DOMCTL_GETVCPUAFFINITY => told(op, |wanted| self.get_affinity(&wanted)),
            XEN_DOMCTL_SENDTRIGGER => told(op, |wanted| self.trigger(wanted)),
            XEN_DOMCTL_SET_EXT_VCPUCONTEXT => asked(op, |context| self.set_ext_context(context)),
            XEN_DOMCTL_GET_EXT_VCPUCONTEXT => asked(op, |context| self.get_ext_context(context)),
            XEN_DOMCTL_SETVCPUEXTSTATE => told(op, |wanted| self.set_xstate(&wanted)),
            XEN_DOMCTL_GETVCPUEXTSTATE => asked(op, |wanted| self.get_xstate(wanted)),
            XEN_DOMCTL_SET_VCPU_MSRS => told(op, |wanted| self.set_msrs(&wanted)),
            XEN_DOMCTL_GET_VCPU_MSRS => asked(op, |wanted| self.get_msrs(wanted)),

            XEN_DOMCTL_GETHVMCONTEXT | XEN_DOMCTL_SETHVMCONTEXT | XEN_DOMCTL_GETHVMCONTEXT_PARTIAL => {
                Err(HypercallError::Invalid)
            }
            _ => Err(HypercallError::NoSys),
        }
    }
}
