//! Sockets, and the addresses that they are given.

use core::{ffi::c_void, mem::offset_of};

use aya_ebpf::helpers::{bpf_get_socket_cookie, bpf_probe_read_kernel};
use tipstaff_common::{offsets::Offsets, socket::SocketRow};

use super::{Cgroup, Dentry, offset, read};
use crate::verdict::Fault;

/// A socket of the network layer (`struct sock`) by its address.
#[derive(Clone, Copy)]
pub struct Sock(pub u64);

/// `AF_INET`
pub const INET: u16 = 2;
/// `AF_INET6`
pub const INET6: u16 = 10;
/// Maps that one socket's storage is searched for, at most: each program that keeps something with it has one.
const STORED: u32 = 32;

impl Sock {
    /// What a program on addresses was asked about (`struct bpf_sock_addr_kern`).
    #[inline(always)]
    pub fn of_context(context: u64) -> Result<Self, Fault> {
        read(context, offset_of!(Offsets, asked_socket)).map(Self)
    }

    /// It is the kernel's own: a network file system's, a tunnel's.
    #[inline(always)]
    pub fn is_kernels(self) -> Result<bool, Fault> {
        let bit = offset(offset_of!(Offsets, sock_kernel_bit));
        // SAFETY: the helper checks the address and copies; it never faults.
        let byte = unsafe { bpf_probe_read_kernel((self.0 + bit / 8) as *const u8) };
        byte.map(|byte| byte >> (bit % 8) & 1 == 1).map_err(|_errno| Fault::Unreadable)
    }

    /// The kernel reads or writes a disk with it (NBD, NVMe over TCP, iSCSI): it may use the memory that is kept for that.
    /// No program can ask for the mark; root has it set where it hands a socket to such a driver.
    #[inline(always)]
    pub fn is_for_storage(self) -> Result<bool, Fault> {
        let flags: u64 = read(self.0, offset_of!(Offsets, sock_flags))?;
        Ok(flags >> (offset(offset_of!(Offsets, sock_storage_bit)) & 63) & 1 == 1)
    }

    /// The cgroup that it was made in.
    #[inline(always)]
    pub fn cgroup(self) -> Result<Cgroup, Fault> {
        read(self.0, offset_of!(Offsets, sock_cgroup)).map(Cgroup)
    }

    /// `AF_*`
    #[inline(always)]
    pub fn family(self) -> Result<u16, Fault> {
        read(self.0, offset_of!(Offsets, sock_family))
    }

    /// `SOCK_*`
    #[inline(always)]
    pub fn kind(self) -> Result<u16, Fault> {
        read(self.0, offset_of!(Offsets, sock_type))
    }

    /// `IPPROTO_*`
    #[inline(always)]
    pub fn protocol(self) -> Result<u16, Fault> {
        read(self.0, offset_of!(Offsets, sock_protocol))
    }

    /// `TCP_*`, whatever the protocol.
    #[inline(always)]
    pub fn state(self) -> Result<u8, Fault> {
        read(self.0, offset_of!(Offsets, sock_state))
    }

    /// The port that it is bound to, host order; 0: none.
    #[inline(always)]
    pub fn local_port(self) -> Result<u16, Fault> {
        read(self.0, offset_of!(Offsets, sock_local_port))
    }

    /// The port that it is connected to, host order; 0: none.
    #[inline(always)]
    pub fn remote_port(self) -> Result<u16, Fault> {
        read::<u16>(self.0, offset_of!(Offsets, sock_remote_port)).map(u16::from_be)
    }

    /// The address that it is bound to, as the rules know addresses.
    #[inline(always)]
    pub fn local(self) -> Result<[u8; 16], Fault> {
        self.address(offset_of!(Offsets, sock_local4), offset_of!(Offsets, sock_local6))
    }

    /// The address that it is connected to, as above.
    #[inline(always)]
    pub fn remote(self) -> Result<[u8; 16], Fault> {
        self.address(offset_of!(Offsets, sock_remote4), offset_of!(Offsets, sock_remote6))
    }

    #[inline(always)]
    fn address(self, v4: usize, v6: usize) -> Result<[u8; 16], Fault> {
        match self.family()? {
            INET => Ok(mapped(read(self.0, v4)?)),
            INET6 => read(self.0, v6),
            _ => Ok([0; 16]),
        }
    }

    /// Inode number of its network namespace.
    #[inline(always)]
    pub fn namespace(self) -> Result<u32, Fault> {
        let namespace: u64 = read(self.0, offset_of!(Offsets, sock_namespace))?;
        read(namespace, offset_of!(Offsets, namespace_number))
    }

    /// That of a `struct socket`; `None`: it has none.
    #[inline(always)]
    pub fn of_socket(socket: u64) -> Result<Option<Self>, Fault> {
        let place: u64 = read(socket, offset_of!(Offsets, socket_sock))?;
        Ok(if place == 0 { None } else { Some(Self(place)) })
    }

    /// Its cookie; 0: it has none yet.
    #[inline(always)]
    pub fn cookie(self) -> Result<u64, Fault> {
        read(self.0, offset_of!(Offsets, sock_cookie))
    }

    /// What the socket's storage holds for the map at an address (`struct bpf_local_storage`), read as any of the kernel's memory:
    /// for programs that have the socket's address, and not as the verifier's pointer. `None`: nothing. The map's own structure
    /// is the first field of what the storage points to (`bpf_local_storage_map.map`), so that both have one address; an element
    /// that is taken out meanwhile stays where it is until the program is done (RCU: it does not sleep), and leads on.
    #[inline(always)]
    pub fn stored<T>(self, map: u64) -> Result<Option<T>, Fault> {
        let storage: u64 = read(self.0, offset_of!(Offsets, sock_storage))?;
        if storage == 0 {
            return Ok(None);
        }
        let mut node: u64 = read(storage, offset_of!(Offsets, storage_list))?;
        for _ in 0..STORED {
            if node == 0 {
                return Ok(None);
            }
            let element = node - offset(offset_of!(Offsets, element_node));
            let owner: u64 = read(element, offset_of!(Offsets, element_map))?;
            if owner == map {
                return read(element, offset_of!(Offsets, element_value)).map(Some);
            }
            // SAFETY: the helper checks the address and copies; it never faults. `hlist_node.next` is the first field
            node = unsafe { bpf_probe_read_kernel(node as *const u64) }.map_err(|_errno| Fault::Unreadable)?;
        }
        Err(Fault::Unreadable)
    }

    /// Writes what it is and what it is connected to into a row.
    #[inline(always)]
    pub fn describe(self, row: &mut SocketRow) -> Result<(), Fault> {
        row.family = self.family()?;
        row.kind = self.kind()?;
        row.protocol = self.protocol()?;
        row.state = u16::from(self.state()?);
        row.namespace = self.namespace()?;
        if row.family == INET || row.family == INET6 {
            row.local = self.local()?;
            row.remote = self.remote()?;
            row.local_port = self.local_port()?;
            row.remote_port = self.remote_port()?;
        }
        Ok(())
    }
}

/// An IPv4 address in the form that the rules know: `::ffff:a.b.c.d`.
#[inline(always)]
pub fn mapped(v4: [u8; 4]) -> [u8; 16] {
    // by words: byte by byte it is sixteen stores
    words([0, u64::from(u32::from_le_bytes(v4)) << 32 | 0xffff_0000])
}

/// Sixteen bytes of two words, as they lie in memory.
#[inline(always)]
pub fn words(words: [u64; 2]) -> [u8; 16] {
    // SAFETY: as many bytes, integers only.
    unsafe { core::mem::transmute::<[u64; 2], [u8; 16]>(words) }
}

/// The socket of the network layer in a `struct socket`, as the verifier's pointer; null: it has none.
///
/// VERIFIER: of an argument of a hook only. What follows from a helper's pointer is a socket to most kernels and nothing to some
/// (a 6.18: `R2 type=untrusted_ptr_`); there it is an address, see [`Sock::stored`].
#[inline(always)]
pub fn sock_of(socket: *mut c_void) -> *mut c_void {
    // SAFETY: the verifier knows what `socket` points to, and checks that a pointer to a `struct sock` is read there.
    unsafe { *socket.byte_add(offset(offset_of!(Offsets, socket_sock)) as usize).cast::<*mut c_void>() }
}

/// An address that a program gave, in kernel memory by now (`struct sockaddr`).
#[derive(Clone, Copy)]
pub struct Address {
    place: u64,
    length: u32,
}

impl Address {
    /// At `place`, of so many bytes.
    #[inline(always)]
    pub const fn at(place: u64, length: u32) -> Self {
        Self { place, length }
    }

    /// The address that a `struct bpf_sock_addr_kern` is about, which is what a program's context really is. The kernel
    /// lets programs read it in the words of `struct bpf_sock_addr` only, which has none for names.
    #[inline(always)]
    pub fn of_context(context: u64) -> Result<Self, Fault> {
        let place: u64 = read(context, offset_of!(Offsets, asked_address))?;
        let length: u32 = read(context, offset_of!(Offsets, asked_length))?;
        if place == 0 { Err(Fault::Unreadable) } else { Ok(Self { place, length }) }
    }

    /// What follows the family: where, and how many bytes.
    #[inline(always)]
    pub const fn name(self) -> (u64, u32) {
        (self.place + 2, self.length.saturating_sub(2))
    }

    /// The address in a message (`struct msghdr`); `None`: none.
    #[inline(always)]
    pub fn of_message(message: u64) -> Result<Option<Self>, Fault> {
        let place: u64 = read(message, offset_of!(Offsets, message_name))?;
        let length: u32 = read(message, offset_of!(Offsets, message_name_length))?;
        Ok(if place == 0 || length == 0 { None } else { Some(Self { place, length }) })
    }

    /// `AF_*`; too short for one is `AF_UNSPEC`.
    #[inline(always)]
    pub fn family(self) -> Result<u16, Fault> {
        if self.length < 2 { Ok(0) } else { self.field(0) }
    }

    /// Port in host order and address, of a family of the Internet. False: too short for one, which the kernel refuses.
    /// VERIFIER: written to a place, here and by who calls this: an `Option` in a `Result` leaves a register unwritten.
    #[inline(always)]
    pub fn internet(self, family: u16, port: &mut u16, address: &mut [u8; 16]) -> Result<bool, Fault> {
        // `struct sockaddr_in` has 16 bytes, 8 of which count; the kernel takes `struct sockaddr_in6` without its last
        // field (`SIN6_LEN_RFC2133`)
        if self.length < if family == INET { 8 } else { 24 } {
            return Ok(false);
        }
        *port = u16::from_be(self.field(2)?);
        *address = if family == INET { mapped(self.field(4)?) } else { self.field(8)? };
        Ok(true)
    }

    #[inline(always)]
    fn field<T>(self, at: u64) -> Result<T, Fault> {
        // SAFETY: the helper checks the address and copies; it never faults.
        unsafe { bpf_probe_read_kernel((self.place + at) as *const T) }.map_err(|_errno| Fault::Unreadable)
    }
}

/// What a unix socket is bound to (`struct unix_sock`).
#[derive(Clone, Copy)]
pub struct UnixSock(pub u64);

impl UnixSock {
    /// Where its name lies and how many bytes that has; `None`: it has no name.
    #[inline(always)]
    pub fn name(self) -> Result<Option<(u64, u32)>, Fault> {
        let address: u64 = read(self.0, offset_of!(Offsets, unix_address))?;
        if address == 0 {
            return Ok(None);
        }
        // the length counts the family before the name
        let length: u32 = read(address, offset_of!(Offsets, unix_address_length))?;
        let place = address + offset(offset_of!(Offsets, unix_address_name)) + 2;
        Ok(if length <= 2 { None } else { Some((place, length - 2)) })
    }

    /// The directory entry of its file.
    #[inline(always)]
    pub fn dentry(self) -> Result<Dentry, Fault> {
        read(self.0, offset_of!(Offsets, unix_dentry)).map(Dentry)
    }
}

/// A socket's cookie; made now where it has none.
#[inline(always)]
pub fn cookie(socket: *mut c_void) -> u64 {
    // SAFETY: the helper takes what the verifier knows as a socket or a context.
    unsafe { bpf_get_socket_cookie(socket) }
}
