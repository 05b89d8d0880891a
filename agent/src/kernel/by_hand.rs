//! Loads programs of the object for attach types that aya 0.14 does not know, on the maps that it made, and links them to
//! a cgroup.

use std::{
    collections::{BTreeMap, HashSet},
    fs::{self, File},
    os::{
        fd::{AsFd as _, AsRawFd as _, OwnedFd},
        unix::fs::MetadataExt as _,
    },
};

use aya_obj::{Function, Object};
use tipstaff_common::session::HostRoot;

use super::{
    KernelError,
    load::OBJECT,
    programs::{Load, link_to_cgroup, load_program, load_types},
};

/// `BPF_PROG_TYPE_CGROUP_SOCK_ADDR`
const SOCKET_ADDRESS: u32 = 18;
/// Inode of the initial mount namespace, which never goes away (`PROC_MNT_INIT_INO`; before it had a number of its own, the
/// host's first process is asked).
const INITIAL_MOUNTS: u64 = 0xefff_fff8;

/// Loads each program for its attach type, and links them to the cgroup once all are loaded.
pub(super) fn attach<'p>(
    programs: &[(&'p str, u32)],
    maps: &BTreeMap<String, OwnedFd>,
    cgroup: &File,
) -> Result<Vec<(&'p str, OwnedFd)>, KernelError> {
    let mut object = Object::parse(OBJECT).map_err(|e| KernelError::refused("the kernel object", &e))?;
    let types = types(&mut object)?;
    relocate(&mut object, maps)?;
    let loaded: Vec<(&str, u32, OwnedFd)> = programs
        .iter()
        .map(|(name, attach_type)| Ok((*name, *attach_type, load(&object, &types, name, *attach_type)?)))
        .collect::<Result<_, KernelError>>()?;
    let link = |(name, attach_type, program): &(&'p str, u32, OwnedFd)| {
        let link = link_to_cgroup(program.as_fd(), cgroup.as_fd(), *attach_type);
        link.map(|link| (*name, link)).map_err(|e| KernelError::refused(format!("program {name}"), &e))
    };
    loaded.iter().map(link).collect()
}

/// The object's own types, in the kernel.
fn types(object: &mut Object) -> Result<OwnedFd, KernelError> {
    let refused =
        |error: &(dyn std::error::Error + 'static)| KernelError::refused("the types of the kernel object", error);
    let missing = || KernelError::Missing { what: "type information for programs".into(), hint: "" };
    let features = aya::features().btf().ok_or_else(missing)?;
    let types = object.fixup_and_sanitize_btf(features).map_err(|e| refused(&e))?.ok_or_else(missing)?.to_bytes();
    load_types(&types).map_err(|e| refused(&e))
}

/// Puts descriptors of maps, and the functions that are called, into the programs.
fn relocate(object: &mut Object, maps: &BTreeMap<String, OwnedFd>) -> Result<(), KernelError> {
    let declared = std::mem::take(&mut object.maps);
    let sections: HashSet<usize> = object.functions.keys().map(|(section, _)| *section).collect();
    let known = declared.iter().filter_map(|(name, map)| Some((name.as_str(), maps.get(name)?.as_raw_fd(), map)));
    let refused = |e: aya_obj::relocation::EbpfRelocationError| KernelError::refused("the kernel object", &e);
    object.relocate_maps(known, &sections).map_err(refused)?;
    object.relocate_calls(&sections).map_err(refused)?;
    object.sanitize_functions(aya::features());
    Ok(())
}

fn load(object: &Object, types: &OwnedFd, name: &str, attach_type: u32) -> Result<OwnedFd, KernelError> {
    let found = object.programs.get(name).and_then(|program| {
        let function = object.functions.get(&(program.section_index, program.address))?;
        Some((program, function))
    });
    let Some((program, function)) = found else {
        let what = format!("program {name} in the kernel object");
        return Err(KernelError::Missing { what, hint: "; rebuild with `cargo xtask build`" });
    };
    let Function { instructions, func_info, line_info, func_info_rec_size, line_info_rec_size, .. } = function;
    let (functions, lines) = (func_info.func_info_bytes(), line_info.line_info_bytes());
    let count = |bytes: &[u8], size: &usize| bytes.len().checked_div(*size).unwrap_or(0) as u32;
    let mut short = [0; 16];
    // the last byte stays 0
    short[..15].iter_mut().zip(name.bytes()).for_each(|(to, byte)| *to = byte);
    let load = Load {
        kind: SOCKET_ADDRESS,
        instruction_count: instructions.len() as u32,
        instructions: instructions.as_ptr() as u64,
        license: program.license.as_ptr() as u64,
        name: short,
        attach_type,
        types: types.as_raw_fd().cast_unsigned(),
        function_size: *func_info_rec_size as u32,
        functions: functions.as_ptr() as u64,
        function_count: count(&functions, func_info_rec_size),
        line_size: *line_info_rec_size as u32,
        lines: lines.as_ptr() as u64,
        line_count: count(&lines, line_info_rec_size),
        ..Load::default()
    };
    load_program(load).map_err(|e| KernelError::refused(format!("program {name}"), &e))
}

/// Where this process's paths begin. All 0 where its mounts are not those of the host's first process: the number of one
/// can be another's once this process is gone.
pub(super) fn root() -> HostRoot {
    let namespace = |who: &str| fs::metadata(format!("/proc/{who}/ns/mnt")).map(|namespace| namespace.ino()).ok();
    let own = namespace("self");
    let lasts = own == Some(INITIAL_MOUNTS) || (own.is_some() && own == namespace("1"));
    let found = || {
        let root = File::open("/").ok()?;
        let said = fs::read_to_string(format!("/proc/self/fdinfo/{}", root.as_raw_fd())).ok()?;
        let mount = said.lines().find_map(|line| line.strip_prefix("mnt_id:"))?.trim().parse().ok()?;
        Some(HostRoot { inode: root.metadata().ok()?.ino(), mount, pad: 0 })
    };
    if lasts { found().unwrap_or_default() } else { HostRoot::default() }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::MetadataExt as _};

    #[test]
    fn the_root_is_known_among_the_hosts_mounts_and_nowhere_else() {
        if nix::unistd::geteuid().is_root() {
            // the first process's may be hidden
            let namespace = |who: &str| fs::metadata(format!("/proc/{who}/ns/mnt")).map(|found| found.ino()).ok();
            let (root, own) = (super::root(), namespace("self"));
            let lasts = [namespace("1"), Some(super::INITIAL_MOUNTS)].contains(&own);
            let expected = if lasts { (true, fs::metadata("/").unwrap().ino()) } else { (false, 0) };
            assert_eq!((root.mount != 0, root.inode), expected);
        }
    }
}
