//! The seccomp filter that refuses the system calls of classes of privileges: a pure function of the classes.
//!
//! The numbers are those of this machine's own calls. A call by another architecture's numbers (32-bit programs) is
//! refused whatever it is, and so are those of x32, which have a bit of their own in this one's.

use libc::{
    BPF_ABS, BPF_JEQ, BPF_JMP, BPF_JSET, BPF_K, BPF_LD, BPF_RET, BPF_W, SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO,
    sock_filter,
};
use tipstaff_common::privilege;

/// `AUDIT_ARCH_X86_64` (`include/uapi/linux/audit.h`)
#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: u32 = 0xc000_003e;
/// `AUDIT_ARCH_AARCH64`
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: u32 = 0xc000_00b7;
/// `__X32_SYSCALL_BIT`; the numbers of no other architecture get there.
const X32: u32 = 0x4000_0000;

/// Offsets in `struct seccomp_data`; the low half of the first argument comes first on machines that are little-endian.
const NUMBER: u32 = 0;
const ARCHITECTURE_AT: u32 = 4;
const FIRST_ARGUMENT: u32 = 16;
const SECOND_ARGUMENT: u32 = 24;

/// Newer than the C library's list: the same number on every architecture.
const OPEN_TREE_ATTR: libc::c_long = 467;

/// The calls of each class that are refused whatever their arguments.
const CALLS: [(u32, &[libc::c_long]); 11] = [
    (
        privilege::PRIVILEGE_PTRACE,
        &[libc::SYS_ptrace, libc::SYS_process_vm_readv, libc::SYS_process_vm_writev, libc::SYS_pidfd_getfd],
    ),
    (privilege::PRIVILEGE_BPF, &[libc::SYS_bpf]),
    (privilege::PRIVILEGE_MODULES, &[libc::SYS_init_module, libc::SYS_finit_module, libc::SYS_delete_module]),
    (privilege::PRIVILEGE_KEXEC, &[libc::SYS_kexec_load, libc::SYS_kexec_file_load]),
    (
        privilege::PRIVILEGE_MOUNT,
        &[
            libc::SYS_mount,
            libc::SYS_umount2,
            libc::SYS_pivot_root,
            libc::SYS_move_mount,
            libc::SYS_open_tree,
            libc::SYS_fsopen,
            libc::SYS_fsmount,
            libc::SYS_fsconfig,
            libc::SYS_fspick,
            libc::SYS_mount_setattr,
            OPEN_TREE_ATTR,
        ],
    ),
    (privilege::PRIVILEGE_CHROOT, &[libc::SYS_chroot]),
    (privilege::PRIVILEGE_NAMESPACES, &[libc::SYS_setns]),
    (privilege::PRIVILEGE_KEYRING, &[libc::SYS_add_key, libc::SYS_request_key, libc::SYS_keyctl]),
    (privilege::PRIVILEGE_PERF_EVENT, &[libc::SYS_perf_event_open]),
    (privilege::PRIVILEGE_USERFAULTFD, &[libc::SYS_userfaultfd]),
    (privilege::PRIVILEGE_IO_URING, &[libc::SYS_io_uring_setup, libc::SYS_io_uring_enter, libc::SYS_io_uring_register]),
];
/// Refused where their first argument asks for a user namespace.
const MAKE_NAMESPACES: [libc::c_long; 2] = [libc::SYS_unshare, libc::SYS_clone];
/// Commands of ioctl(2) that type at a terminal in the place of who sits there: `TIOCSTI`, `TIOCLINUX`
/// (`include/uapi/asm-generic/ioctls.h`). The kernel takes the low half of the argument.
const TYPE: [u32; 2] = [0x5412, 0x541c];

/// The filter that refuses the calls of these classes (`privilege::PRIVILEGE_*`) with `EPERM`; `None` where they have none.
pub(super) fn filter(refuse: u32) -> Option<Vec<sock_filter>> {
    let calls: Vec<u32> = CALLS
        .iter()
        .filter(|(class, _)| refuse & class != 0)
        .flat_map(|(_, calls)| calls.iter().copied().map(number))
        .collect();
    let types = refuse & privilege::PRIVILEGE_DELEGATION != 0;
    if calls.is_empty() && !types {
        return None;
    }
    let mut program = vec![
        load(ARCHITECTURE_AT),
        jump(BPF_JEQ, ARCHITECTURE, 1, 0),
        answer(refusal(libc::EPERM)),
        load(NUMBER),
        jump(BPF_JSET, X32, 0, 1),
        answer(refusal(libc::EPERM)),
    ];
    for call in calls {
        program.extend([jump(BPF_JEQ, call, 0, 1), answer(refusal(libc::EPERM))]);
    }
    if refuse & privilege::PRIVILEGE_NAMESPACES != 0 {
        // its flags are in memory, which no filter reads; callers fall back to clone(2)
        program.extend([jump(BPF_JEQ, number(libc::SYS_clone3), 0, 1), answer(refusal(libc::ENOSYS))]);
        for call in MAKE_NAMESPACES {
            program.extend([
                jump(BPF_JEQ, number(call), 0, 4),
                load(FIRST_ARGUMENT),
                jump(BPF_JSET, libc::CLONE_NEWUSER.cast_unsigned(), 0, 1),
                answer(refusal(libc::EPERM)),
                answer(SECCOMP_RET_ALLOW),
            ]);
        }
    }
    if types {
        program.extend([
            jump(BPF_JEQ, number(libc::SYS_ioctl), 0, 5),
            load(SECOND_ARGUMENT),
            jump(BPF_JEQ, TYPE[0], 1, 0),
            jump(BPF_JEQ, TYPE[1], 0, 1),
            answer(refusal(libc::EPERM)),
            answer(SECCOMP_RET_ALLOW),
        ]);
    }
    program.push(answer(SECCOMP_RET_ALLOW));
    Some(program)
}

/// Numbers of calls are small.
fn number(call: libc::c_long) -> u32 {
    u32::try_from(call).unwrap_or(u32::MAX)
}

const fn refusal(errno: i32) -> u32 {
    SECCOMP_RET_ERRNO | errno.cast_unsigned()
}

/// Takes a word of `struct seccomp_data`.
fn load(at: u32) -> sock_filter {
    instruction(BPF_LD | BPF_W | BPF_ABS, at, 0, 0)
}

/// Compares what was taken; skips so many instructions where it holds, and where not.
fn jump(how: u32, with: u32, holds: u8, else_skip: u8) -> sock_filter {
    instruction(BPF_JMP | how | BPF_K, with, holds, else_skip)
}

fn answer(what: u32) -> sock_filter {
    instruction(BPF_RET | BPF_K, what, 0, 0)
}

fn instruction(code: u32, k: u32, jt: u8, jf: u8) -> sock_filter {
    // the codes have eight bits
    sock_filter { code: u16::try_from(code).unwrap_or(u16::MAX), jt, jf, k }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel does with such a program.
    fn run(program: &[sock_filter], architecture: u32, number: u32, arguments: [u32; 2]) -> u32 {
        let (mut at, mut word) = (0, 0);
        loop {
            let sock_filter { code, jt, jf, k } = program[at];
            at += 1;
            let code = u32::from(code);
            if code == BPF_RET | BPF_K {
                return k;
            } else if code == BPF_LD | BPF_W | BPF_ABS {
                word = match k {
                    NUMBER => number,
                    ARCHITECTURE_AT => architecture,
                    FIRST_ARGUMENT => arguments[0],
                    SECOND_ARGUMENT => arguments[1],
                    other => panic!("offset {other}"),
                };
            } else {
                let holds = if code == BPF_JMP | BPF_JEQ | BPF_K { word == k } else { word & k != 0 };
                at += usize::from(if holds { jt } else { jf });
            }
        }
    }

    fn of(refuse: u32, call: libc::c_long, argument: i32) -> u32 {
        run(&filter(refuse).unwrap(), ARCHITECTURE, number(call), [argument.cast_unsigned(), 0])
    }

    #[test]
    fn whoever_is_to_have_a_filter_has_one() {
        let with_calls = CALLS.iter().fold(privilege::PRIVILEGE_DELEGATION, |classes, (class, _)| classes | class);
        assert_eq!(with_calls, crate::policy::Shed::of(0, 0).refuse);
    }

    #[test]
    fn each_class_refuses_its_calls_and_no_others() {
        for (class, calls) in CALLS {
            for (other, more) in CALLS {
                let expected = if class == other { refusal(libc::EPERM) } else { SECCOMP_RET_ALLOW };
                assert!(more.iter().all(|call| of(class, *call, 0) == expected), "{class:#x} {other:#x}");
            }
            assert!(!calls.is_empty() && of(class, libc::SYS_write, 1) == SECCOMP_RET_ALLOW);
        }
        assert!(filter(privilege::PRIVILEGE_SIGNAL | privilege::PRIVILEGE_SETUID).is_none());
    }

    #[test]
    fn namespaces_are_told_by_their_flags() {
        let class = privilege::PRIVILEGE_NAMESPACES;
        for call in MAKE_NAMESPACES {
            assert_eq!(of(class, call, libc::CLONE_NEWUSER | libc::SIGCHLD), refusal(libc::EPERM));
            assert_eq!(of(class, call, libc::CLONE_VM | libc::CLONE_NEWNET), SECCOMP_RET_ALLOW);
            assert_eq!(of(privilege::PRIVILEGE_BPF, call, libc::CLONE_NEWUSER), SECCOMP_RET_ALLOW);
        }
        assert_eq!(of(class, libc::SYS_clone3, 0), refusal(libc::ENOSYS));
        assert_eq!(of(privilege::PRIVILEGE_BPF, libc::SYS_clone3, 0), SECCOMP_RET_ALLOW);
    }

    #[test]
    fn keys_are_typed_by_whoever_may_delegate() {
        let ioctl = |refuse: u32, command: u32| {
            run(&filter(refuse).unwrap(), ARCHITECTURE, number(libc::SYS_ioctl), [0, command])
        };
        for command in TYPE {
            assert_eq!(ioctl(privilege::PRIVILEGE_DELEGATION, command), refusal(libc::EPERM));
            assert_eq!(ioctl(privilege::PRIVILEGE_BPF, command), SECCOMP_RET_ALLOW);
        }
        for command in [0x5401, 0x5411, 0x5413, 0x541b, 0x541d] {
            assert_eq!(ioctl(privilege::PRIVILEGE_DELEGATION, command), SECCOMP_RET_ALLOW, "{command:#x}");
        }
        assert_eq!(of(privilege::PRIVILEGE_DELEGATION, libc::SYS_write, 0x5412), SECCOMP_RET_ALLOW);
    }

    #[test]
    fn other_numbers_are_no_way_round() {
        const I386: u32 = 0x4000_0003;
        let program = filter(privilege::PRIVILEGE_BPF).unwrap();
        assert_eq!(run(&program, I386, 20, [0; 2]), refusal(libc::EPERM));
        assert_eq!(run(&program, ARCHITECTURE, X32 | number(libc::SYS_getpid), [0; 2]), refusal(libc::EPERM));
        assert_eq!(run(&program, ARCHITECTURE, number(libc::SYS_getpid), [0; 2]), SECCOMP_RET_ALLOW);
    }
}
