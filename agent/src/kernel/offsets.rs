//! The offsets that the programs need, resolved from the running kernel. A field that is not there means a kernel that
//! Tipstaff cannot hold a session on, and is named.

use std::path::Path;

use tipstaff_common::offsets::Offsets;

use super::{KernelError, btf::Btf};

const BTF: &str = "/sys/kernel/btf/vmlinux";

const STRUCTURES: [&str; 11] = [
    "cgroup",
    "css_set",
    "dentry",
    "file",
    "inode",
    "kernfs_node",
    "linux_binprm",
    "mm_struct",
    "super_block",
    "task_struct",
    "path",
];

/// Reads the kernel's BTF and resolves every offset.
pub fn resolve() -> Result<Offsets, KernelError> {
    let data = read(Path::new(BTF))?;
    let missing = |error: super::btf::BtfError| KernelError::Missing {
        what: format!("what Tipstaff reads in its type information ({error})"),
        hint: "",
    };
    let btf = Btf::parse(&data, &STRUCTURES).map_err(missing)?;
    let at = |structure: &str, field: &str| btf.offset(structure, field).map_err(missing);
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
        node_id: at("kernfs_node", "id")?,
    })
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
