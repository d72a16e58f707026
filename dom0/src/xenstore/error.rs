//! The errors that xenstored may answer with.

use core::fmt;

/// An error of the xenstore protocol. A reply carries the error's name.
///
/// ABI: `xsd_errors`, `xen/include/public/io/xs_wire.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XsError {
    /// The request, a path or an argument is malformed.
    Inval,
    /// The permissions of the node, or of the nearest node above it, forbid this.
    Acces,
    /// The thing is there already.
    Exist,
    /// Part of the list, never answered here.
    IsDir,
    /// There is no such node, watch, transaction or domain.
    NoEnt,
    /// The domain's memory quota is used up.
    NoMem,
    /// A quota on nodes, their size, permissions or transactions is used up.
    NoSpc,
    /// The connection has failed.
    Io,
    /// Part of the list, never answered here.
    NotEmpty,
    /// There is no such operation.
    NoSys,
    /// Part of the list, never answered here.
    RoFs,
    /// A transaction was started within a transaction, or a check during a check.
    Busy,
    /// The transaction conflicts with changes of others: the client starts again.
    Again,
    /// Part of the list, never answered here.
    IsConn,
    /// The answer does not fit a message, or too many watches.
    TooBig,
    /// Only dom0 may do this, even to a node that the domain owns.
    Perm,
}

impl XsError {
    /// The name that an `XS_ERROR` reply carries, without its NUL.
    pub fn name(self) -> &'static str {
        match self {
            XsError::Inval => "EINVAL",
            XsError::Acces => "EACCES",
            XsError::Exist => "EEXIST",
            XsError::IsDir => "EISDIR",
            XsError::NoEnt => "ENOENT",
            XsError::NoMem => "ENOMEM",
            XsError::NoSpc => "ENOSPC",
            XsError::Io => "EIO",
            XsError::NotEmpty => "ENOTEMPTY",
            XsError::NoSys => "ENOSYS",
            XsError::RoFs => "EROFS",
            XsError::Busy => "EBUSY",
            XsError::Again => "EAGAIN",
            XsError::IsConn => "EISCONN",
            XsError::TooBig => "E2BIG",
            XsError::Perm => "EPERM",
        }
    }
}

impl fmt::Display for XsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl core::error::Error for XsError {}
