//! Tipstaff's kernel programs: find the session, test its rules, decide, emit. Nothing else.
//!
//! One fixed set for ever; sessions and policies are data in the maps. No program decides by a path string, waits for
//! user space, or depends on a record arriving. The structure offsets are constants of the load; the tier is which of the
//! programs are attached.
#![no_std]
#![no_main]
// BPF inline assembly, for the one instruction that rustc has no function for (see `emit::add`)
#![feature(asm_experimental_arch)]

mod budget;
mod emit;
mod headers;
mod hooks;
mod kernel;
mod maps;
mod place;
mod program;
mod remembered;
mod rules;
mod session;
mod socket;
mod unseen;
mod verdict;

/// BPF programs cannot unwind; the verifier proves that this is never reached.
#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// BPF LSM and several helpers ask for a licence that is compatible with the GPL.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
