//! A machine whose clock counts instructions: a guest of an emulator that lets its clock go on by a nanosecond for each
//! instruction (`qemu -icount shift=0`). What is measured there is no time, and is the same in every run.

use std::time::Instant;

use anyhow::{Result, ensure};

use super::report::Row;

/// Turns of the loop that shows it, of two instructions each.
const TURNS: u64 = 100_000;
/// How often that is tried: a tick of the clock may come between.
const TRIES: usize = 20;
/// How far from two nanoseconds a turn may be.
const TOLERANCE: f64 = 0.01;

/// Refuses a machine whose clock does not count instructions.
pub(super) fn check() -> Result<()> {
    let each = |_| {
        let start = Instant::now();
        turn(TURNS);
        start.elapsed().as_nanos() as f64 / TURNS as f64
    };
    let least = (0..TRIES).map(each).fold(f64::INFINITY, f64::min);
    ensure!(
        (least - 2.0).abs() <= 2.0 * TOLERANCE,
        "this clock does not count instructions: a loop of two takes {least:.3} ns; --instructions is for guests of \
         `./x bench --kernel K`"
    );
    eprintln!("bench: a loop of two instructions takes {least:.3} ns of this clock: it counts instructions");
    Ok(())
}

/// A loop of two instructions.
fn turn(mut turns: u64) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: counts a register down to nothing, and changes nothing else.
    unsafe {
        std::arch::asm!("2:", "dec {0}", "jnz 2b", inout(reg) turns);
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: as above.
    unsafe {
        std::arch::asm!("2:", "subs {0}, {0}, #1", "b.ne 2b", inout(reg) turns);
    }
    std::hint::black_box(turns);
}

/// Calls what was measured by its name. Targets are times.
pub(super) fn name(rows: &mut [Row]) {
    for row in rows.iter_mut().filter(|row| row.unit == "ns") {
        (row.unit, row.target) = ("instr.", None);
    }
}
