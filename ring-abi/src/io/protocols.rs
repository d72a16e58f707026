//! Values of the `protocol` node of block devices.
//!
//! ABI: `xen/include/public/io/protocols.h`.

/// 32-bit x86 layout.
pub const XEN_IO_PROTO_ABI_X86_32: &str = "x86_32-abi";
/// 64-bit x86 layout, the only one spoken here.
pub const XEN_IO_PROTO_ABI_X86_64: &str = "x86_64-abi";
/// Our own layout.
pub const XEN_IO_PROTO_ABI_NATIVE: &str = XEN_IO_PROTO_ABI_X86_64;
