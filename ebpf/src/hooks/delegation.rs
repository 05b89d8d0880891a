//! Sockets of daemons that start programs for whoever asks: the class of privileges `delegation`. A socket is known by the
//! name that it was bound to (tier full), or that it is asked for by (tier no-lsm).

use aya_ebpf::{btf_maps::lpm_trie::Key, helpers::bpf_probe_read_kernel_buf};
use tipstaff_common::{limits::UNIX_NAME, privilege::PRIVILEGE_DELEGATION};

use super::privilege::refuse_in;
use crate::{maps::DELEGATES, rules, session::Session};

/// All of a name.
const BITS: u32 = UNIX_NAME as u32 * 8;
/// How the names begin that are a user's own, `/run/user/N/`, and the bytes in which the number ends.
const USERS: [u8; 10] = *b"/run/user/";
const USER_ENDS: core::ops::Range<usize> = 11..22;
/// Added to the number of a place.
const LISTED: u32 = 64;

/// Whether a member is refused a socket because of its name, of `length` bytes at `place`.
#[inline(always)]
pub fn refuse_delegate(session: &Session, (place, length): (u64, u32)) -> bool {
    if let Ok(policy) = rules::policy(session)
        && policy.privileges & PRIVILEGE_DELEGATION != 0
    {
        return false;
    }
    let mut found = delegate(place, u64::from(length), 0);
    if found != 0 && found < LISTED {
        // the folder of a user: from the slash before what is in it, which the number's last digit stands before
        let above = u64::from(found - 1);
        found = delegate(place + above, u64::from(length).saturating_sub(above), 1);
    }
    found >= LISTED && refuse_in(session, PRIVILEGE_DELEGATION, (0, found - LISTED))
}

/// `LISTED` and the number of the place that has this name; 0: none. With `users` 0, a number below `LISTED`: it is below
/// `/run/user/N`, and after so many bytes comes what is below. With `users` 1 the first byte stands for that.
///
/// VERIFIER: as `session::session_of_current`; the length is a whole register, because 6.1 takes none for bounded of which
/// half was compared.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn delegate(place: u64, length: u64, users: u32) -> u32 {
    let mut key = Key::new(BITS, [0; UNIX_NAME]);
    // what cannot be read has no name: the rules on unix sockets cannot read it either
    let Some(part) = key.data.get_mut(..length.min(UNIX_NAME as u64) as usize) else { return 0 };
    // SAFETY: the helper checks the address and copies; it never faults.
    if unsafe { bpf_probe_read_kernel_buf(place as *const u8, part) }.is_err() {
        return 0;
    }
    if users != 0 {
        key.data[0] = b'~';
    } else if key.data[..USERS.len()] == USERS {
        for end in USER_ENDS {
            if key.data[end] == b'/' {
                return end as u32;
            }
        }
    }
    DELEGATES.get(&key).map_or(0, |number| LISTED + *number)
}
