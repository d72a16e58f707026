//! The xenstore protocol and the page that carries it.

use core::mem::offset_of;

use crate::errno::Errno;
use crate::layout::{constants, wire};
use crate::ring::bytes::{ByteRing, Channel};
use crate::ring::{RingError, RingPage};

constants! { "io/xs_wire.h";
    XS_CONTROL: u32 = 0 => "XS_CONTROL";
    XS_DIRECTORY: u32 = 1 => "XS_DIRECTORY";
    XS_READ: u32 = 2 => "XS_READ";
    XS_GET_PERMS: u32 = 3 => "XS_GET_PERMS";
    XS_WATCH: u32 = 4 => "XS_WATCH";
    XS_UNWATCH: u32 = 5 => "XS_UNWATCH";
    XS_TRANSACTION_START: u32 = 6 => "XS_TRANSACTION_START";
    XS_TRANSACTION_END: u32 = 7 => "XS_TRANSACTION_END";
    XS_INTRODUCE: u32 = 8 => "XS_INTRODUCE";
    XS_RELEASE: u32 = 9 => "XS_RELEASE";
    XS_GET_DOMAIN_PATH: u32 = 10 => "XS_GET_DOMAIN_PATH";
    XS_WRITE: u32 = 11 => "XS_WRITE";
    XS_MKDIR: u32 = 12 => "XS_MKDIR";
    XS_RM: u32 = 13 => "XS_RM";
    XS_SET_PERMS: u32 = 14 => "XS_SET_PERMS";
    XS_WATCH_EVENT: u32 = 15 => "XS_WATCH_EVENT";
    XS_ERROR: u32 = 16 => "XS_ERROR";
    XS_IS_DOMAIN_INTRODUCED: u32 = 17 => "XS_IS_DOMAIN_INTRODUCED";
    XS_RESUME: u32 = 18 => "XS_RESUME";
    XS_SET_TARGET: u32 = 19 => "XS_SET_TARGET";
    XS_RESET_WATCHES: u32 = 21 => "XS_RESET_WATCHES";
    XS_DIRECTORY_PART: u32 = 22 => "XS_DIRECTORY_PART";
    XS_TYPE_COUNT: u32 = 23 => "XS_TYPE_COUNT";
    XS_INVALID: u32 = 0xffff => "XS_INVALID";
    XS_WATCH_PATH: u32 = 0 => "XS_WATCH_PATH";
    XS_WATCH_TOKEN: u32 = 1 => "XS_WATCH_TOKEN";
    XENSTORE_RING_SIZE: usize = 1024 => "XENSTORE_RING_SIZE";
    XENSTORE_PAYLOAD_MAX: usize = 4096 => "XENSTORE_PAYLOAD_MAX";
    XENSTORE_ABS_PATH_MAX: usize = 3072 => "XENSTORE_ABS_PATH_MAX";
    XENSTORE_REL_PATH_MAX: usize = 2048 => "XENSTORE_REL_PATH_MAX";
    XENSTORE_SERVER_FEATURE_RECONNECTION: u32 = 1 => "XENSTORE_SERVER_FEATURE_RECONNECTION";
    XENSTORE_SERVER_FEATURE_ERROR: u32 = 2 => "XENSTORE_SERVER_FEATURE_ERROR";
    XENSTORE_CONNECTED: u32 = 0 => "XENSTORE_CONNECTED";
    XENSTORE_RECONNECT: u32 = 1 => "XENSTORE_RECONNECT";
    XENSTORE_ERROR_NONE: u32 = 0 => "XENSTORE_ERROR_NONE";
    XENSTORE_ERROR_COMM: u32 = 1 => "XENSTORE_ERROR_COMM";
    XENSTORE_ERROR_RINGIDX: u32 = 2 => "XENSTORE_ERROR_RINGIDX";
    XENSTORE_ERROR_PROTO: u32 = 3 => "XENSTORE_ERROR_PROTO";
}

wire! { "io/xs_wire.h";
    /// Header of every message; `len` bytes follow.
    struct XsdSockmsg = "struct xsd_sockmsg", 16 {
        /// `XS_*`.
        0x0 r#type: u32,
        /// The client's own tag, echoed in the reply.
        0x4 req_id: u32,
        /// Transaction, 0 for none.
        0x8 tx_id: u32,
        /// Payload bytes, at most [`XENSTORE_PAYLOAD_MAX`].
        0xc len: u32,
    }

    /// Layout of the xenstore page. The guest writes `req` and reads `rsp`.
    struct XenstoreDomainInterface = "struct xenstore_domain_interface", 0x81c {
        0x000 req: [u8; XENSTORE_RING_SIZE],
        0x400 rsp: [u8; XENSTORE_RING_SIZE],
        0x800 req_cons: u32,
        0x804 req_prod: u32,
        0x808 rsp_cons: u32,
        0x80c rsp_prod: u32,
        /// `XENSTORE_SERVER_FEATURE_*`.
        0x810 server_features: u32,
        /// `XENSTORE_CONNECTED` or `XENSTORE_RECONNECT`.
        0x814 connection: u32,
        /// `XENSTORE_ERROR_*`.
        0x818 error: u32,
    }
}

/// Where the ring from the guest to the server is in the xenstore page.
pub const REQ: Channel = Channel {
    data: offset_of!(XenstoreDomainInterface, req),
    size: XENSTORE_RING_SIZE,
    cons: offset_of!(XenstoreDomainInterface, req_cons),
    prod: offset_of!(XenstoreDomainInterface, req_prod),
};

/// Where the ring from the server to the guest is in the xenstore page.
pub const RSP: Channel = Channel {
    data: offset_of!(XenstoreDomainInterface, rsp),
    size: XENSTORE_RING_SIZE,
    cons: offset_of!(XenstoreDomainInterface, rsp_cons),
    prod: offset_of!(XenstoreDomainInterface, rsp_prod),
};

/// Offset of `server_features`.
pub const SERVER_FEATURES_OFFSET: usize = offset_of!(XenstoreDomainInterface, server_features);
/// Offset of `connection`.
pub const CONNECTION_OFFSET: usize = offset_of!(XenstoreDomainInterface, connection);
/// Offset of `error`.
pub const ERROR_OFFSET: usize = offset_of!(XenstoreDomainInterface, error);

/// The guest's end: reads `rsp`, writes `req`.
///
/// # Errors
/// [`RingError::TooSmall`]: the page does not hold both rings.
pub fn client<M: RingPage>(page: M) -> Result<ByteRing<M>, RingError> {
    ByteRing::attach(page, RSP, REQ)
}

/// The server's end: reads `req`, writes `rsp`.
///
/// # Errors
/// [`RingError::TooSmall`]: the page does not hold both rings.
pub fn server<M: RingPage>(page: M) -> Result<ByteRing<M>, RingError> {
    ByteRing::attach(page, REQ, RSP)
}

/// Errors that an `XS_ERROR` reply can name. The reply carries the error's symbol with a NUL.
///
/// ABI: `xsd_errors`, `xen/include/public/io/xs_wire.h`.
pub const XSD_ERRORS: [Errno; 16] = [
    Errno::EINVAL,
    Errno::EACCES,
    Errno::EEXIST,
    Errno::EISDIR,
    Errno::ENOENT,
    Errno::ENOMEM,
    Errno::ENOSPC,
    Errno::EIO,
    Errno::ENOTEMPTY,
    Errno::ENOSYS,
    Errno::EROFS,
    Errno::EBUSY,
    Errno::EAGAIN,
    Errno::EISCONN,
    Errno::E2BIG,
    Errno::EPERM,
];

/// The error that `text` (without NUL) names.
#[must_use]
pub fn error_from_name(text: &[u8]) -> Option<Errno> {
    XSD_ERRORS.into_iter().find(|errno| errno.name().as_bytes() == text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_names() {
        assert_eq!(error_from_name(b"ENOENT"), Some(Errno::ENOENT));
        assert_eq!(error_from_name(b"ENOENT\0"), None);
        assert_eq!(error_from_name(b""), None);
        for errno in XSD_ERRORS {
            assert_eq!(error_from_name(errno.name().as_bytes()), Some(errno));
        }
    }
}
