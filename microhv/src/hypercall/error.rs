//! Why a hypercall failed, and the one place that turns it into `-errno`.

use ring_abi::errno as e;

use crate::domain::{DebugRegisterError, DomainError};
use crate::evtchn::EvtchnError;
use crate::gnttab::GrowError;
use crate::lifecycle::LifecycleError;
use crate::mem::MemError;
use crate::pirq::PirqError;
use crate::platform::GuestFault;
use crate::sched::pools::PoolError;

/// A refusal. Each is one errno of `xen/include/public/errno.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum HypercallError {
    /// `EPERM`: not the caller's to do.
    NotPermitted = e::EPERM as u8,
    /// `ENOENT`: there is no such thing.
    NoEntry = e::ENOENT as u8,
    /// `ESRCH`: there is no such domain.
    NoSuchDomain = e::ESRCH as u8,
    /// `ENXIO`: an address or offset that cannot be.
    NoSuchAddress = e::ENXIO as u8,
    /// `E2BIG`: too much for one call.
    TooBig = e::E2BIG as u8,
    /// Something else waits for the CPU: the guest executes the call again as it was. Told as `EAGAIN` to a caller that
    /// asked for that.
    Again = e::EAGAIN as u8,
    /// `ENOMEM`: no memory, or more than the domain may have.
    NoMemory = e::ENOMEM as u8,
    /// `EACCES`.
    Access = e::EACCES as u8,
    /// `EFAULT`: the caller cannot read or write what it points at.
    Fault = e::EFAULT as u8,
    /// `EBUSY`: in use.
    Busy = e::EBUSY as u8,
    /// `EEXIST`: exists already.
    Exists = e::EEXIST as u8,
    /// `ENODEV`.
    NoDevice = e::ENODEV as u8,
    /// `EINVAL`: the arguments make no sense.
    Invalid = e::EINVAL as u8,
    /// `ENOSPC`: no free slot.
    NoSpace = e::ENOSPC as u8,
    /// `ERANGE`: what cannot be said in so few bits.
    Range = e::ERANGE as u8,
    /// `ENOSYS`: no such operation.
    NoSys = e::ENOSYS as u8,
    /// `ENODATA`.
    NoData = e::ENODATA as u8,
    /// `ETIME`: the time is past.
    TimePast = e::ETIME as u8,
    /// `EOVERFLOW`.
    Overflow = e::EOVERFLOW as u8,
    /// `ENOBUFS`: the caller's buffer is too small.
    NoBuffers = e::ENOBUFS as u8,
    /// `EADDRNOTAVAIL`: the CPU is not there.
    NotAvailable = e::EADDRNOTAVAIL as u8,
    /// `EOPNOTSUPP`: known, and not done here.
    NotSupported = e::EOPNOTSUPP as u8,
}

/// What a step of a hypercall gives.
pub type Answer<T = ()> = Result<T, HypercallError>;

impl HypercallError {
    /// Refuses the call for this reason when `wrong`.
    #[inline(always)]
    pub(super) fn when(self, wrong: bool) -> Answer {
        if wrong { Err(self) } else { Ok(()) }
    }

    /// `-errno`, as rax gives it.
    pub const fn errno(self) -> i64 {
        -(self as i64)
    }
}

impl From<GuestFault> for HypercallError {
    fn from(_: GuestFault) -> Self {
        Self::Fault
    }
}

/// Conversions from the errors of other rooms: each variant becomes ours of the same name, or the one named.
macro_rules! from_errors {
    ($($error:ident: $($variant:ident $(($inner:ident))? $(=> $to:ident)?),+;)+) => {
        $(impl From<$error> for HypercallError {
            #[cold] // apart, so that no operation carries a table of its errors
            #[inline(never)]
            fn from(error: $error) -> Self {
                match error {
                    $($error::$variant $(($inner))? => from_errors!(@ $variant $(($inner))? $($to)?),)+
                }
            }
        })+
    };
    (@ $variant:ident) => { Self::$variant };
    (@ $variant:ident $to:ident) => { Self::$to };
    (@ $variant:ident ($inner:ident)) => { $inner.into() };
}

from_errors! {
    DebugRegisterError: NotPermitted, NoDevice;
    DomainError: NoSuchDomain, NotPermitted;
    EvtchnError: Invalid, NoEntry, Exists, NoSpace, NoMemory, Fault, Access, NoSys, NotSupported;
    GrowError: Invalid, NoMemory, NoSuchDomain, Again, Busy, Range;
    LifecycleError: Again, Exists, Invalid, NoMemory, NoSuchPool => NoSuchDomain, NoCpu => NoDevice, Gdt(error);
    MemError: Restart => Again, Mismatch => Busy, Invalid, NotPermitted, Busy, NoMemory, NoSuchDomain, Fault;
    PoolError: NoSuchPool => NoEntry, Exists, TooMany => NoMemory, Busy, NoCpu => NoDevice, NotFree => NoDevice,
        NotInPool => NotAvailable, Invalid, Again;
    PirqError: NoSuchPirq => Invalid, NoSuchEntry => Invalid, NotPermitted, Bound => Exists,
        NoCapability => NoDevice, Mapped => Busy, NoneFree => NoSpace, Port(error);
}
