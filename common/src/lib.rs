//! The contract between Tipstaff's kernel programs and its agent: labels, map keys and values, records, limits.
//!
//! Integers only: `#[repr(C)]`, fixed widths, explicit padding, and a size that a `const` asserts, because one side
//! is compiled for BPF and the other for the host. No `bool`, `enum` or `Option` crosses this boundary; what reads
//! these bytes checks every code it finds.
#![no_std]
#![forbid(unsafe_op_in_unsafe_fn)]

pub mod event;
pub mod fingerprint;
pub mod label;
pub mod limits;
pub mod offsets;
pub mod place;
pub mod privilege;
pub mod rule;
pub mod session;
pub mod socket;

/// The version of everything in this crate: pins of another layout are never adopted.
pub const LAYOUT: u32 = 17;

/// Implements aya's `Pod` for wire types of this crate, on the agent's side only.
#[cfg(feature = "user")]
macro_rules! pod {
    ($($t:ty),+ $(,)?) => { $(
        // SAFETY: `#[repr(C)]`, integers and arrays of integers only, no padding (each type's size is asserted
        // against the sum of its fields), so every bit pattern is a value.
        unsafe impl aya::Pod for $t {}
    )+ };
}
#[cfg(not(feature = "user"))]
macro_rules! pod {
    ($($t:ty),+ $(,)?) => {};
}
pub(crate) use pod;
