//! Arguments that change while they are read.

use std::{
    ffi::{CString, c_char},
    hint::spin_loop,
    ptr,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
};

use anyhow::{Result, bail, ensure};
use nix::{
    sys::wait::{WaitStatus, waitpid},
    unistd::Pid,
};

/// Turns of a loop for which a word stands.
const DWELL: u32 = 64;

/// `flip-argv TIMES PROGRAM ONE OTHER REST…`: starts the program so often, as `vspawn` does, out of the memory of this
/// process, in which another thread writes ONE and OTHER over the first argument all the while. How many ended by
/// themselves, were killed, and could not be started.
pub(super) fn flip(words: &[&str]) -> Result<u8> {
    let [times, program, one, other, rest @ ..] = words else { bail!("flip-argv needs 4 words") };
    let (times, words) = (times.parse::<u32>()?, [packed(one)?, packed(other)?]);
    let (argument, done) = (AtomicU64::new(words[0]), AtomicBool::new(false));
    let strings = [&[*program], rest].concat().into_iter().map(CString::new).collect::<Result<Vec<_>, _>>()?;
    let mut argv: Vec<*mut c_char> = strings.iter().map(|word| word.as_ptr().cast_mut()).collect();
    argv.insert(1, argument.as_ptr().cast());
    argv.push(ptr::null_mut());
    let mut counts = [0; 3];
    thread::scope(|scope| {
        scope.spawn(|| {
            for word in words.iter().cycle() {
                argument.store(*word, Ordering::Relaxed);
                // each for a while: an emulator stops a processor only where its code branches, which was always after OTHER
                (0..DWELL).for_each(|_| spin_loop());
                if done.load(Ordering::Relaxed) {
                    break;
                }
            }
        });
        let ended = (0..times).try_for_each(|_| -> Result<()> {
            counts[started(&argv)?] += 1;
            Ok(())
        });
        done.store(true, Ordering::Relaxed);
        ended
    })?;
    println!("{} ended {} killed {} not started", counts[0], counts[1], counts[2]);
    Ok(0)
}

/// A word of less than eight bytes, so that one store writes all of it.
fn packed(word: &str) -> Result<u64> {
    let mut bytes = [0; 8];
    ensure!(word.len() < bytes.len(), "{word} is too long");
    bytes[..word.len()].copy_from_slice(word.as_bytes());
    Ok(u64::from_ne_bytes(bytes))
}

/// Starts a program and waits for it: 0, it ended by itself; 1, it was killed; 2, it was not started.
fn started(argv: &[*mut c_char]) -> Result<usize> {
    let (mut pid, environment) = (0, [ptr::null_mut()]);
    // SAFETY: both lists end with a null pointer, and they and their strings outlive the call, which reads none of the
    // strings itself; the kernel copes with one that changes, and that one always ends with a zero byte.
    let errno = unsafe {
        libc::posix_spawn(&raw mut pid, argv[0], ptr::null(), ptr::null(), argv.as_ptr(), environment.as_ptr())
    };
    if errno != 0 {
        return Ok(2);
    }
    match waitpid(Pid::from_raw(pid), None)? {
        WaitStatus::Exited(..) => Ok(0),
        WaitStatus::Signaled(..) => Ok(1),
        other => bail!("the child is {other:?}"),
    }
}
