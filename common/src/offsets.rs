//! Where the running kernel keeps the fields that the programs read. Resolved from the kernel's BTF by the agent and
//! injected into the programs' read-only data: rustc emits no CO-RE relocations.

use crate::pod;

/// Byte offsets in the kernel's structures. A field's comment is its C name.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offsets {
    /// `linux_binprm.file`
    pub binprm_file: u32,
    /// `linux_binprm.filename`
    pub binprm_filename: u32,
    /// `linux_binprm.buf`
    pub binprm_buffer: u32,
    /// `file.f_inode`
    pub file_inode: u32,
    /// `file.f_path.dentry`
    pub file_dentry: u32,
    /// `dentry.d_parent`
    pub dentry_parent: u32,
    /// `dentry.d_inode`
    pub dentry_inode: u32,
    /// `inode.i_ino`
    pub inode_number: u32,
    /// `inode.i_generation`
    pub inode_generation: u32,
    /// `inode.i_sb`
    pub inode_super: u32,
    /// `super_block.s_dev`
    pub super_device: u32,
    /// `task_struct.tgid`
    pub task_tgid: u32,
    /// `task_struct.pid`
    pub task_pid: u32,
    /// `task_struct.group_leader`
    pub task_leader: u32,
    /// `task_struct.real_parent`
    pub task_parent: u32,
    /// `task_struct.mm`
    pub task_mm: u32,
    /// `task_struct.exit_code`
    pub task_exit_code: u32,
    /// `task_struct.exit_state`
    pub task_exit_state: u32,
    /// `task_struct.self_exec_id`
    pub task_exec_id: u32,
    /// `task_struct.cgroups`
    pub task_cgroups: u32,
    /// `css_set.dfl_cgrp`
    pub css_set_default: u32,
    /// `mm_struct.arg_start`
    pub mm_arg_start: u32,
    /// `mm_struct.arg_end`
    pub mm_arg_end: u32,
    /// `cgroup.kn`
    pub cgroup_node: u32,
    /// `cgroup.level`
    pub cgroup_level: u32,
    /// `cgroup.ancestors`
    pub cgroup_ancestors: u32,
    /// `cgroup.root`
    pub cgroup_root: u32,
    /// `cgroup_root.hierarchy_id`
    pub root_hierarchy: u32,
    /// `kernfs_node.id`
    pub node_id: u32,
    /// `socket.sk`
    pub socket_sock: u32,
    /// Not bytes but bits: `sock.sk_kern_sock`, one bit
    pub sock_kernel_bit: u32,
    /// `sock.sk_flags`
    pub sock_flags: u32,
    /// `SOCK_MEMALLOC` of `enum sock_flags`, the number of a bit in `sock.sk_flags`.
    pub sock_storage_bit: u32,
    /// `sock.sk_type`
    pub sock_type: u32,
    /// `sock.sk_protocol`
    pub sock_protocol: u32,
    /// `sock.sk_cgrp_data.cgroup`
    pub sock_cgroup: u32,
    /// `sock.__sk_common.skc_family`
    pub sock_family: u32,
    /// `sock.__sk_common.skc_state`
    pub sock_state: u32,
    /// `sock.__sk_common.skc_num`
    pub sock_local_port: u32,
    /// `sock.__sk_common.skc_dport`
    pub sock_remote_port: u32,
    /// `sock.__sk_common.skc_rcv_saddr`
    pub sock_local4: u32,
    /// `sock.__sk_common.skc_daddr`
    pub sock_remote4: u32,
    /// `sock.__sk_common.skc_v6_rcv_saddr`
    pub sock_local6: u32,
    /// `sock.__sk_common.skc_v6_daddr`
    pub sock_remote6: u32,
    /// `sock.__sk_common.skc_net.net`
    pub sock_namespace: u32,
    /// `net.ns.inum`
    pub namespace_number: u32,
    /// `msghdr.msg_name`
    pub message_name: u32,
    /// `msghdr.msg_namelen`
    pub message_name_length: u32,
    /// `unix_sock.addr`
    pub unix_address: u32,
    /// `unix_sock.path.dentry`
    pub unix_dentry: u32,
    /// `unix_address.len`
    pub unix_address_length: u32,
    /// `unix_address.name`
    pub unix_address_name: u32,
    /// `dentry.d_name.name`
    pub dentry_name: u32,
    /// `dentry.d_name.len`
    pub dentry_name_length: u32,
    /// `inode.i_mode`
    pub inode_mode: u32,
    /// `inode.i_size`
    pub inode_size: u32,
    /// `inode.i_nlink`
    pub inode_links: u32,
    /// `inode.i_uid`
    pub inode_owner: u32,
    /// `inode.i_writecount`
    pub inode_writers: u32,
    /// Seconds of the ctime, 64 bits: `inode.i_ctime.tv_sec`, `__i_ctime.tv_sec` (6.6) or `i_ctime_sec` (6.11).
    pub inode_changed: u32,
    /// Nanoseconds of the ctime in the lower 30 bits of 32, above them a flag of the kernel's own (6.13): as above.
    pub inode_changed_nanos: u32,
    /// `super_block.s_flags`
    pub super_flags: u32,
    /// `linux_binprm.fdpath`
    pub binprm_descriptor: u32,
    /// `task_struct.fs`
    pub task_fs: u32,
    /// `task_struct.cred`
    pub task_credentials: u32,
    /// `cred.user_ns`
    pub credentials_users: u32,
    /// `user_namespace.level`
    pub users_level: u32,
    /// `fs_struct.root.mnt`
    pub fs_root_mount: u32,
    /// `fs_struct.root.dentry`
    pub fs_root_dentry: u32,
    /// `mount.mnt`
    pub mount_inner: u32,
    /// `mount.mnt_id`
    pub mount_id: u32,
    /// `bpf_sock_addr_kern.uaddr`
    pub asked_address: u32,
    /// `bpf_sock_addr_kern.sk`
    pub asked_socket: u32,
    /// `bpf_sock_addr_kern.uaddrlen`, since 6.7; 0: there is none.
    pub asked_length: u32,
    /// `linux_binprm.cred`: what the program will have.
    pub binprm_credentials: u32,
    /// `task_struct.real_cred`: what others act on; another than `cred` while the kernel acts in somebody else's name.
    pub task_real_credentials: u32,
    /// `cred.euid`
    pub credentials_user: u32,
    /// `cred.egid`
    pub credentials_group: u32,
    /// `cred.cap_permitted`
    pub credentials_permitted: u32,
    /// `qstr.name`
    pub string_name: u32,
    /// `READING_MODULE` of `enum kernel_read_file_id`.
    pub reading_module: u32,
    /// `READING_KEXEC_IMAGE` of the same.
    pub reading_kexec: u32,
    /// `LOADING_MODULE` of `enum kernel_load_data_id`.
    pub loading_module: u32,
    /// `LOADING_KEXEC_IMAGE` of the same.
    pub loading_kexec: u32,
    /// `file.f_mode`
    pub file_mode: u32,
    /// `vfsmount.mnt_root`
    pub mount_root: u32,
    /// 1: the hook `inode_setattr` has three arguments, and the entry is the second.
    pub setattr_says_ids: u32,
    /// `inode.i_rdev`
    pub inode_device: u32,
    /// `super_block.s_magic`
    pub super_magic: u32,
    /// `mm_struct.exe_file`
    pub mm_program: u32,
    /// `path.dentry`
    pub path_dentry: u32,
    /// `task_struct.thread_pid`
    pub task_number: u32,
    /// `pid.level`
    pub pid_level: u32,
    /// `pid.numbers`
    pub pid_numbers: u32,
    /// `sock.__sk_common.skc_cookie`
    pub sock_cookie: u32,
    /// `sock.sk_bpf_storage`
    pub sock_storage: u32,
    /// `bpf_local_storage.list`
    pub storage_list: u32,
    /// `bpf_local_storage_elem.snode`
    pub element_node: u32,
    /// `bpf_local_storage_elem.sdata.smap`
    pub element_map: u32,
    /// `bpf_local_storage_elem.sdata.data`
    pub element_value: u32,
}
const _: () = assert!(size_of::<Offsets>() == 100 * 4);

pod!(Offsets);
