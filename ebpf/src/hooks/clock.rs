//! The clock: ends a member that only computes once its session is over, with the agent dead or stopped. It runs in an
//! interrupt: it looks labels up and makes none.

use aya_ebpf::{macros::perf_event, programs::PerfEventContext};
use tipstaff_common::rule::{REASON_ENDED, REASON_EXPIRED};

use crate::{
    kernel,
    session::{self, Phase},
    verdict::{Decision, settle},
};

/// HOOK: perf event `PERF_COUNT_SW_CPU_CLOCK`, since 4.9; on every CPU while a session lives, whatever runs there.
#[perf_event]
pub fn clock(_context: PerfEventContext) -> u32 {
    kernel::set_coarse_clock();
    tick();
    0
}

#[inline(always)]
fn tick() {
    let Some(session) = session::of_label_of_current() else { return };
    let decision = match session.phase {
        Phase::Live => return,
        Phase::Expired => Decision::deny(REASON_EXPIRED),
        Phase::Ended => Decision::deny(REASON_ENDED),
    };
    if settle(decision, &session).refuses() && !kernel::kill_current() {
        session.count_failed_signal();
    }
}
