//! Files: by their entry in a directory, by their inode, and as they are open.

use core::mem::offset_of;

use aya_ebpf::helpers::{bpf_probe_read_kernel, bpf_probe_read_kernel_str_bytes};
use tipstaff_common::{
    limits::PATH_BYTES,
    offsets::Offsets,
    rule::{Content, FileId},
};

use super::{offset, read};
use crate::verdict::Fault;

/// A directory entry by its address.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Dentry(pub u64);

impl Dentry {
    /// The directory above, in the same file system; itself at the root.
    #[inline(always)]
    pub fn parent(self) -> Result<Self, Fault> {
        read(self.0, offset_of!(Offsets, dentry_parent)).map(Self)
    }

    /// Where its name lies and how many bytes that has.
    #[inline(always)]
    pub fn name(self) -> Result<(u64, u32), Fault> {
        Ok((read(self.0, offset_of!(Offsets, dentry_name))?, read(self.0, offset_of!(Offsets, dentry_name_length))?))
    }

    /// Its inode.
    #[inline(always)]
    pub fn inode(self) -> Result<Inode, Fault> {
        read(self.0, offset_of!(Offsets, dentry_inode)).map(Inode)
    }

    /// Which file it names.
    #[inline(always)]
    pub fn identity(self) -> Result<FileId, Fault> {
        self.inode()?.identity()
    }

    /// Copies its name; how many bytes.
    #[inline(always)]
    pub fn copy_name(self, to: &mut [u8; PATH_BYTES]) -> Result<usize, Fault> {
        let name: u64 = read(self.0, offset_of!(Offsets, dentry_name))?;
        // SAFETY: the helper checks the address and copies; it never faults.
        let read = unsafe { bpf_probe_read_kernel_str_bytes(name as *const u8, to) };
        read.map(<[u8]>::len).map_err(|_errno| Fault::Unreadable)
    }

    /// The first bytes of its name; what comes after the name's end is not defined.
    #[inline(always)]
    pub fn name_start(self) -> Result<[u8; 8], Fault> {
        let name: u64 = read(self.0, offset_of!(Offsets, dentry_name))?;
        // SAFETY: the helper checks the address and copies; it never faults. A short name lies inside the dentry.
        unsafe { bpf_probe_read_kernel(name as *const [u8; 8]) }.map_err(|_errno| Fault::Unreadable)
    }
}

/// An inode by its address.
#[derive(Clone, Copy)]
pub struct Inode(pub u64);

/// `S_IFMT`, `S_IFBLK` and `S_IFCHR` (`include/uapi/linux/stat.h`)
const KIND: u16 = 0o170_000;
const BLOCK_DEVICE: u16 = 0o060_000;
const CHARACTER_DEVICE: u16 = 0o020_000;
/// `MEM_MAJOR` above 20 bits of minor number (`include/linux/kdev_t.h`; the devices in `drivers/char/mem.c`).
const MEMORY: [u32; 3] = [1 << 20 | 1, 1 << 20 | 2, 1 << 20 | 4];
/// `IB_UVERBS_MAJOR`, `IB_UMAD_MAJOR` (`drivers/infiniband/core`): what sends without a socket.
const INFINIBAND: u32 = 231;
/// `SB_KERNMOUNT` (`include/linux/fs.h`): the kernel's own mount, which nothing has a path in.
const KERNEL_MOUNT: u64 = 1 << 22;
/// Above the nanoseconds of a ctime: `I_CTIME_QUERIED` (`include/linux/fs.h`, 6.13).
const NANOS: u32 = (1 << 30) - 1;

impl Inode {
    /// Which file it is.
    #[inline(always)]
    pub fn identity(self) -> Result<FileId, Fault> {
        let superblock: u64 = read(self.0, offset_of!(Offsets, inode_super))?;
        Ok(FileId {
            inode: self.number()?,
            device: read(superblock, offset_of!(Offsets, super_device))?,
            generation: read(self.0, offset_of!(Offsets, inode_generation))?,
        })
    }

    /// Its number.
    #[inline(always)]
    pub fn number(self) -> Result<u64, Fault> {
        read(self.0, offset_of!(Offsets, inode_number))
    }

    /// The device number of its file system.
    #[inline(always)]
    pub fn device(self) -> Result<u32, Fault> {
        let superblock: u64 = read(self.0, offset_of!(Offsets, inode_super))?;
        read(superblock, offset_of!(Offsets, super_device))
    }

    /// Size and ctime.
    #[inline(always)]
    pub fn content(self) -> Result<Content, Fault> {
        let seconds: u64 = read(self.0, offset_of!(Offsets, inode_changed))?;
        let nanos: u32 = read(self.0, offset_of!(Offsets, inode_changed_nanos))?;
        let changed = seconds.wrapping_mul(1_000_000_000).wrapping_add(u64::from(nanos & NANOS));
        Ok(Content { size: read(self.0, offset_of!(Offsets, inode_size))?, changed })
    }

    /// Names that it has.
    #[inline(always)]
    pub fn links(self) -> Result<u32, Fault> {
        read(self.0, offset_of!(Offsets, inode_links))
    }

    /// Whether nobody but root can write it, as its mode says.
    #[inline(always)]
    pub fn is_roots_alone(self) -> Result<bool, Fault> {
        let owner: u32 = read(self.0, offset_of!(Offsets, inode_owner))?;
        let mode: u16 = read(self.0, offset_of!(Offsets, inode_mode))?;
        Ok(owner == 0 && mode & 0o022 == 0)
    }

    /// Whether somebody has it open to write; a writable mapping counts as long as it stands.
    #[inline(always)]
    pub fn has_writers(self) -> Result<bool, Fault> {
        Ok(read::<i32>(self.0, offset_of!(Offsets, inode_writers))? > 0)
    }

    /// A block device, the machine's memory or ports (`/dev/mem`, `/dev/kmem`, `/dev/port`), or an adapter that reaches others' memory
    /// (`/dev/infiniband`).
    #[inline(always)]
    pub fn is_raw_device(self) -> Result<bool, Fault> {
        let mode: u16 = read(self.0, offset_of!(Offsets, inode_mode))?;
        match mode & KIND {
            BLOCK_DEVICE => Ok(true),
            CHARACTER_DEVICE => {
                let number: u32 = read(self.0, offset_of!(Offsets, inode_device))?;
                Ok(MEMORY.contains(&number) || number >> 20 == INFINIBAND)
            }
            _ => Ok(false),
        }
    }

    /// Which kind of file system it is in: `*_MAGIC` (`include/uapi/linux/magic.h`).
    #[inline(always)]
    pub fn magic(self) -> Result<u64, Fault> {
        let superblock: u64 = read(self.0, offset_of!(Offsets, inode_super))?;
        read(superblock, offset_of!(Offsets, super_magic))
    }

    /// Whether it lies where no path leads: memfd_create(2).
    #[inline(always)]
    pub fn is_nowhere(self) -> Result<bool, Fault> {
        let superblock: u64 = read(self.0, offset_of!(Offsets, inode_super))?;
        Ok(read::<u64>(superblock, offset_of!(Offsets, super_flags))? & KERNEL_MOUNT != 0)
    }
}

/// Whether the hook on a file's attributes is told first by which ids of users its mount goes.
#[inline(always)]
pub fn setattr_says_ids() -> bool {
    offset(offset_of!(Offsets, setattr_says_ids)) != 0
}

/// What a `struct path` leads to.
#[inline(always)]
pub fn entry_of_path(path: u64) -> Result<Dentry, Fault> {
    read(path, offset_of!(Offsets, path_dentry)).map(Dentry)
}

/// What the root of a `struct vfsmount` is.
#[inline(always)]
pub fn root_of_mount(mount: u64) -> Result<FileId, Fault> {
    read(mount, offset_of!(Offsets, mount_root)).map(Dentry)?.identity()
}

/// How a file is open: `FMODE_*` (`include/linux/fs.h`; the same bits in 6.1, 6.12 and 7.2).
#[derive(Clone, Copy)]
pub struct Mode(pub u32);

impl Mode {
    /// It can be written through (`FMODE_WRITE`).
    #[inline(always)]
    pub const fn writes(self) -> bool {
        self.0 & 1 << 1 != 0
    }

    /// It names the file and no more: `O_PATH` (`FMODE_PATH`).
    #[inline(always)]
    pub const fn only_names(self) -> bool {
        self.0 & 1 << 14 != 0
    }

    /// It holds a mount that is in no tree: of fsmount(2), or a copy by open_tree(2) (`FMODE_NEED_UNMOUNT`).
    #[inline(always)]
    pub const fn is_mount(self) -> bool {
        self.0 & 1 << 28 != 0
    }
}

/// An open file by its address.
#[derive(Clone, Copy)]
pub struct File(pub u64);

impl File {
    /// Which file it is.
    #[inline(always)]
    pub fn identity(self) -> Result<FileId, Fault> {
        self.inode()?.identity()
    }

    /// Its inode, of the file system that it was opened in.
    #[inline(always)]
    pub fn inode(self) -> Result<Inode, Fault> {
        read(self.0, offset_of!(Offsets, file_inode)).map(Inode)
    }

    /// How it is open.
    #[inline(always)]
    pub fn mode(self) -> Result<Mode, Fault> {
        read(self.0, offset_of!(Offsets, file_mode)).map(Mode)
    }

    /// Where it was opened.
    #[inline(always)]
    pub fn dentry(self) -> Result<Dentry, Fault> {
        read(self.0, offset_of!(Offsets, file_dentry)).map(Dentry)
    }
}
