//! Why a hypercall failed, and the one place that turns it into `-errno`.

use ring_abi::errno as e;

use crate::domain::{DebugRegisterError, DomainError};
use crate::evtchn::EvtchnError;
use crate::gnttab::GrowError;
use crate::lifecycle::LifecycleError;
use crate::mem::MemError;
use crate::pirq::PirqError;
use crate::platform::GuestFault;

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
    /// `EAGAIN`: try again.
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

/// Conversions from errors whose variants have the names of ours.
macro_rules! from_same_names {
    ($($error:ident: $($variant:ident),+;)+) => {
        $(impl From<$error> for HypercallError {
            #[cold] // apart, so that no operation carries a table of its errors
            #[inline(never)]
            fn from(error: $error) -> Self {
                match error {
                    $($error::$variant => Self::$variant,)+
                }
            }
        })+
    };
}

from_same_names! {
    DebugRegisterError: NotPermitted, NoDevice;
    DomainError: NoSuchDomain, NotPermitted;
    EvtchnError: Invalid, NoEntry, Exists, NoSpace, NoMemory, Fault;
    GrowError: Invalid, NoMemory, NoSuchDomain, Again;
}

impl From<PirqError> for HypercallError {
    fn from(error: PirqError) -> Self {
        match error {
            PirqError::NoSuchPirq | PirqError::NoSuchEntry => Self::Invalid,
            PirqError::NotPermitted => Self::NotPermitted,
            PirqError::Bound => Self::Exists,
            PirqError::NoCapability => Self::NoDevice,
            PirqError::Mapped => Self::Busy,
            PirqError::NoneFree => Self::NoSpace,
            PirqError::Port(error) => error.into(),
        }
    }
}

impl From<MemError> for HypercallError {
    /// For callers that cannot continue later: an interrupted operation is to be tried again.
    #[cold]
    #[inline(never)]
    fn from(error: MemError) -> Self {
        match error {
            MemError::Restart | MemError::Mismatch => Self::Again,
            MemError::Invalid => Self::Invalid,
            MemError::NotPermitted => Self::NotPermitted,
            MemError::Busy => Self::Busy,
            MemError::NoMemory => Self::NoMemory,
            MemError::NoSuchDomain => Self::NoSuchDomain,
        }
    }
}

/// Why a step of a hypercall that may be continued did not happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TableError {
    /// Something else is waiting for the CPU: nothing is lost, repeat the step.
    Restart,
    /// The step is refused.
    Refused(HypercallError),
}

impl From<MemError> for TableError {
    fn from(error: MemError) -> Self {
        if error == MemError::Restart { Self::Restart } else { Self::Refused(error.into()) }
    }
}

impl From<HypercallError> for TableError {
    fn from(error: HypercallError) -> Self {
        Self::Refused(error)
    }
}

impl From<GuestFault> for TableError {
    fn from(fault: GuestFault) -> Self {
        Self::Refused(fault.into())
    }
}

impl From<TableError> for HypercallError {
    /// An interrupted operation of a caller without a continuation gives `Again`: the guest calls again.
    fn from(error: TableError) -> Self {
        match error {
            TableError::Restart => Self::Again,
            TableError::Refused(error) => error,
        }
    }
}

impl From<LifecycleError> for HypercallError {
    fn from(error: LifecycleError) -> Self {
        match error {
            LifecycleError::Again | LifecycleError::Tables(MemError::Restart) => Self::Again,
            LifecycleError::Exists => Self::Exists,
            LifecycleError::NoMemory => Self::NoMemory,
            LifecycleError::Gdt(error) => error.into(),
            LifecycleError::Invalid | LifecycleError::DebugRegister(_) | LifecycleError::Tables(_) => {
                Self::Invalid
            }
        }
    }
}
