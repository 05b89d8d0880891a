//! The clock: ends a member that only computes once its session is over, with the agent dead or stopped, and one whose program
//! nobody saw start and the rules are against. It runs in an interrupt: it looks labels up and makes none.

use aya_ebpf::{macros::perf_event, programs::PerfEventContext};
use tipstaff_common::rule::{REASON_ENDED, REASON_EXPIRED};

use crate::{
    kernel,
    session::{self, Phase},
    unseen,
    verdict::{Decision, settle},
};

/// HOOK: perf event `PERF_COUNT_SW_CPU_CLOCK`, since 4.9; on every CPU while a session lives, whatever runs there.
#[perf_event]
pub fn clock(context: PerfEventContext) -> u32 {
    kernel::set_coarse_clock();
    // within execve(2) the program can be a new one of which the tracepoint has not told yet
    tick(kernel::was_in_user_mode(&context));
    0
}

#[inline(always)]
fn tick(in_user_mode: bool) {
    let Some(session) = session::of_label_of_current() else { return };
    let decision = match session.phase {
        Phase::Live => {
            if in_user_mode {
                unseen::end_current(&session);
            }
            return;
        }
        Phase::Expired => Decision::deny(REASON_EXPIRED),
        Phase::Ended => Decision::deny(REASON_ENDED),
    };
    if settle(decision, &session).refuses() && !kernel::kill_current() {
        session.count_failed_signal();
    }
}
