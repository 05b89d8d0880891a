//! The offsets that the programs need, resolved from the running kernel. A field that is not there means a kernel that
//! Tipstaff cannot hold a session on, and is named.

use std::path::Path;

use tipstaff_common::offsets::Offsets;

use super::{
    KernelError,
    btf::{Btf, BtfError},
};

const BTF: &str = "/sys/kernel/btf/vmlinux";

/// The function that programs of the hook `inode_setattr` are attached to.
const SETATTR: &str = "bpf_lsm_inode_setattr";

const TYPES: [&str; 33] = [
    "bpf_local_storage",
    "bpf_local_storage_data",
    "bpf_local_storage_elem",
    "bpf_sock_addr_kern",
    "cgroup",
    "cgroup_root",
    "cred",
    "css_set",
    "dentry",
    "file",
    "file_lock_context",
    "fs_struct",
    "inode",
    "kernel_load_data_id",
    "kernel_read_file_id",
    "kernfs_node",
    "linux_binprm",
    "mm_struct",
    "mount",
    "msghdr",
    "net",
    "path",
    "pid",
    "sock",
    "sock_flags",
    "socket",
    "unix_address",
    "unix_sock",
    "user_namespace",
    "vfsmount",
    "super_block",
    "task_struct",
    "qstr",
];

/// Reads the kernel's BTF: every offset, and what is left of it for those names (see [`Btf::reduced`]).
pub fn resolve(names: &[String]) -> Result<(Offsets, Vec<u8>), KernelError> {
    let data = read(Path::new(BTF))?;
    let btf = Btf::parse(&data, &TYPES).map_err(missing)?;
    Ok((offsets(&btf)?, btf.reduced(names).map_err(missing)?))
}

fn offsets(btf: &Btf<'_>) -> Result<Offsets, KernelError> {
    let at = |structure: &str, field: &str| btf.offset(structure, field).map_err(missing);
    let constant = |of: &str, name: &str| btf.constant(of, name).map_err(missing);
    Ok(Offsets {
        binprm_file: at("linux_binprm", "file")?,
        binprm_filename: at("linux_binprm", "filename")?,
        binprm_buffer: at("linux_binprm", "buf")?,
        file_inode: at("file", "f_inode")?,
        file_dentry: at("file", "f_path.dentry")?,
        dentry_parent: at("dentry", "d_parent")?,
        dentry_inode: at("dentry", "d_inode")?,
        inode_number: at("inode", "i_ino")?,
        inode_generation: at("inode", "i_generation")?,
        inode_super: at("inode", "i_sb")?,
        super_device: at("super_block", "s_dev")?,
        task_tgid: at("task_struct", "tgid")?,
        task_pid: at("task_struct", "pid")?,
        task_leader: at("task_struct", "group_leader")?,
        task_parent: at("task_struct", "real_parent")?,
        task_mm: at("task_struct", "mm")?,
        task_exit_code: at("task_struct", "exit_code")?,
        task_exit_state: at("task_struct", "exit_state")?,
        task_exec_id: at("task_struct", "self_exec_id")?,
        task_cgroups: at("task_struct", "cgroups")?,
        css_set_default: at("css_set", "dfl_cgrp")?,
        mm_arg_start: at("mm_struct", "arg_start")?,
        mm_arg_end: at("mm_struct", "arg_end")?,
        cgroup_node: at("cgroup", "kn")?,
        cgroup_level: at("cgroup", "level")?,
        cgroup_ancestors: at("cgroup", "ancestors")?,
        cgroup_root: at("cgroup", "root")?,
        root_hierarchy: at("cgroup_root", "hierarchy_id")?,
        node_id: at("kernfs_node", "id")?,
        socket_sock: at("socket", "sk")?,
        sock_kernel_bit: btf.bit("sock", "sk_kern_sock").map_err(missing)?,
        sock_flags: at("sock", "__sk_common.skc_flags")?,
        sock_storage_bit: constant("sock_flags", "SOCK_MEMALLOC")?,
        sock_type: at("sock", "sk_type")?,
        sock_protocol: at("sock", "sk_protocol")?,
        sock_cgroup: at("sock", "sk_cgrp_data.cgroup")?,
        sock_family: at("sock", "__sk_common.skc_family")?,
        sock_state: at("sock", "__sk_common.skc_state")?,
        sock_local_port: at("sock", "__sk_common.skc_num")?,
        sock_remote_port: at("sock", "__sk_common.skc_dport")?,
        sock_local4: at("sock", "__sk_common.skc_rcv_saddr")?,
        sock_remote4: at("sock", "__sk_common.skc_daddr")?,
        sock_local6: at("sock", "__sk_common.skc_v6_rcv_saddr")?,
        sock_remote6: at("sock", "__sk_common.skc_v6_daddr")?,
        sock_namespace: at("sock", "__sk_common.skc_net.net")?,
        namespace_number: at("net", "ns.inum")?,
        message_name: at("msghdr", "msg_name")?,
        message_name_length: at("msghdr", "msg_namelen")?,
        unix_address: at("unix_sock", "addr")?,
        unix_dentry: at("unix_sock", "path.dentry")?,
        unix_address_length: at("unix_address", "len")?,
        unix_address_name: at("unix_address", "name")?,
        dentry_name: at("dentry", "d_name.name")?,
        dentry_name_length: at("dentry", "d_name.len")?,
        inode_mode: at("inode", "i_mode")?,
        inode_size: at("inode", "i_size")?,
        inode_links: at("inode", "i_nlink")?,
        inode_owner: at("inode", "i_uid")?,
        inode_writers: at("inode", "i_writecount")?,
        inode_changed: one_of(btf, "inode", &["i_ctime_sec", "__i_ctime.tv_sec", "i_ctime.tv_sec"])?,
        inode_changed_nanos: one_of(btf, "inode", &["i_ctime_nsec", "__i_ctime.tv_nsec", "i_ctime.tv_nsec"])?,
        super_flags: at("super_block", "s_flags")?,
        binprm_descriptor: at("linux_binprm", "fdpath")?,
        task_fs: at("task_struct", "fs")?,
        task_credentials: at("task_struct", "cred")?,
        credentials_users: at("cred", "user_ns")?,
        users_level: at("user_namespace", "level")?,
        fs_root_mount: at("fs_struct", "root.mnt")?,
        fs_root_dentry: at("fs_struct", "root.dentry")?,
        mount_inner: at("mount", "mnt")?,
        mount_id: at("mount", "mnt_id")?,
        asked_address: at("bpf_sock_addr_kern", "uaddr")?,
        asked_socket: at("bpf_sock_addr_kern", "sk")?,
        // without it there are no hooks on unix sockets that would ask
        asked_length: btf.offset("bpf_sock_addr_kern", "uaddrlen").unwrap_or(0),
        binprm_credentials: at("linux_binprm", "cred")?,
        task_real_credentials: at("task_struct", "real_cred")?,
        credentials_user: at("cred", "euid")?,
        credentials_group: at("cred", "egid")?,
        credentials_permitted: at("cred", "cap_permitted")?,
        string_name: at("qstr", "name")?,
        reading_module: constant("kernel_read_file_id", "READING_MODULE")?,
        reading_kexec: constant("kernel_read_file_id", "READING_KEXEC_IMAGE")?,
        loading_module: constant("kernel_load_data_id", "LOADING_MODULE")?,
        loading_kexec: constant("kernel_load_data_id", "LOADING_KEXEC_IMAGE")?,
        file_mode: at("file", "f_mode")?,
        mount_root: at("vfsmount", "mnt_root")?,
        setattr_says_ids: u32::from(btf.arguments(SETATTR).map_err(missing)? == Some(3)),
        inode_device: at("inode", "i_rdev")?,
        super_magic: at("super_block", "s_magic")?,
        mm_program: at("mm_struct", "exe_file")?,
        path_dentry: at("path", "dentry")?,
        task_number: at("task_struct", "thread_pid")?,
        pid_level: at("pid", "level")?,
        pid_numbers: at("pid", "numbers")?,
        sock_cookie: at("sock", "__sk_common.skc_cookie")?,
        sock_storage: at("sock", "sk_bpf_storage")?,
        storage_list: at("bpf_local_storage", "list")?,
        element_node: at("bpf_local_storage_elem", "snode")?,
        element_map: at("bpf_local_storage_elem", "sdata.smap")?,
        element_value: at("bpf_local_storage_elem", "sdata.data")?,
    })
}

fn missing(error: BtfError) -> KernelError {
    KernelError::Missing { what: format!("what Tipstaff reads in its type information ({error})"), hint: "" }
}

/// A field that kernels have under one name or another.
fn one_of(btf: &Btf<'_>, structure: &str, names: &[&str]) -> Result<u32, KernelError> {
    let mut found = names.iter().map(|name| btf.offset(structure, name));
    let first = found.next().unwrap_or_else(|| btf.offset(structure, ""));
    first.or_else(|error| found.find_map(Result::ok).ok_or(error)).map_err(missing)
}

fn read(path: &Path) -> Result<Vec<u8>, KernelError> {
    match std::fs::read(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(KernelError::Missing {
            what: format!("its own type information ({} is not there)", path.display()),
            hint: ", built with CONFIG_DEBUG_INFO_BTF=y",
        }),
        other => other.map_err(KernelError::file("read", path)),
    }
}
