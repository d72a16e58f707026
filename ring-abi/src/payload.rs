//! Typed access to the unions of the control hypercalls.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// A value that may be stored in an operation's union: plain bytes, without padding.
pub trait Payload: FromBytes + IntoBytes + Immutable + KnownLayout {}

impl<T: FromBytes + IntoBytes + Immutable + KnownLayout> Payload for T {}

/// Copies the front of `union` out as a `T`.
pub(crate) fn get<T: Payload, const WORDS: usize>(union: &[u64; WORDS]) -> T {
    const { assert!(size_of::<T>() <= WORDS * 8, "larger than the union") };
    let mut value = T::new_zeroed();
    let bytes = value.as_mut_bytes();
    let len = bytes.len();
    bytes.copy_from_slice(&union.as_bytes()[..len]);
    value
}

/// Copies `value` to the front of `union`; the bytes behind `value` stay.
pub(crate) fn set<T: Payload, const WORDS: usize>(union: &mut [u64; WORDS], value: &T) {
    const { assert!(size_of::<T>() <= WORDS * 8, "larger than the union") };
    let bytes = value.as_bytes();
    union.as_mut_bytes()[..bytes.len()].copy_from_slice(bytes);
}

/// Gives an operation with a union `u` its typed accessors.
macro_rules! impl_payload {
    ($name:ident) => {
        impl $name {
            /// The union read as `T`. Any bytes are a value of `T`; whether `T` fits `cmd` is the caller's matter.
            #[must_use]
            pub fn payload<T: $crate::payload::Payload>(&self) -> T {
                $crate::payload::get(&self.u)
            }

            /// Writes `T` to the front of the union.
            pub fn set_payload<T: $crate::payload::Payload>(&mut self, payload: &T) {
                $crate::payload::set(&mut self.u, payload);
            }
        }
    };
}

pub(crate) use impl_payload;

/// The front of `whole`, read as a smaller structure that shares the slot of `whole`.
pub(crate) fn front<T: Payload, W: Payload>(whole: &W) -> T {
    const { assert!(size_of::<T>() <= size_of::<W>(), "larger than the slot") };
    let mut value = T::new_zeroed();
    let bytes = value.as_mut_bytes();
    let len = bytes.len();
    bytes.copy_from_slice(&whole.as_bytes()[..len]);
    value
}

/// A slot that starts with `part` and has zeros after `part`.
pub(crate) fn widen<T: Payload, W: Payload>(part: &T) -> W {
    const { assert!(size_of::<T>() <= size_of::<W>(), "larger than the slot") };
    let mut whole = W::new_zeroed();
    let bytes = part.as_bytes();
    whole.as_mut_bytes()[..bytes.len()].copy_from_slice(bytes);
    whole
}
